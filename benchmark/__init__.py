"""PosBench: positional encodings for Diffusion Transformers, on one core, at every train -> test resolution.

Data flows one way, and stages meet only in files:

    card -> shards -> Batch -> Method (LightningModule) -> checkpoint -> samples -> features -> record -> leaderboard

Conventions, everywhere: y before x; `grid_hw` counts tokens, `size_hw` counts pixels; t = 0 is data and t = 1 is noise.
"""

import os

# NVIDIA's containers set it, and torch reads it when it is imported: float32 products (precision, the core) would be TF32's.
os.environ.pop("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", None)
