"""LEDiT as printed for fine-tuning: every second block causal, one convolution with dilation in a tenth of the steps.

See methods/ledit.py, option `recipe`: no norm after the convolution, (self-attention, causal attention) x depth / 2,
multi-dilation training. Meant to start from a pretrained DiT (`train.init`) whose sin-cos table is left out.
"""

from __future__ import annotations

from dataclasses import dataclass

from methods.ledit import LEDiT


class LEDiTFinetune(LEDiT):
    title = "LEDiT (fine-tuning recipe)"

    @dataclass(frozen=True)
    class Options(LEDiT.Options):
        recipe: str = "finetune"
