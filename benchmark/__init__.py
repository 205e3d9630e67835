"""PosBench: positional encodings for Diffusion Transformers, on one core, at every train -> test resolution.

Data flows one way, and stages meet only in files:

    card -> shards -> Batch -> Method (LightningModule) -> checkpoint -> samples -> features -> record -> leaderboard

Conventions, everywhere: y before x; `grid_hw` counts tokens, `size_hw` counts pixels; t = 0 is data and t = 1 is noise.
"""
