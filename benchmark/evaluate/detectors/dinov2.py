"""DINOv2 ViT-L/14, for FD-DINOv2."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmark.evaluate.detectors.base import Detector
from benchmark.evaluate.detectors.weights import find_weights, load_into, untrained

FACTS = {"flops": 162.0e9, "numbers": 1024, "bytes": 2, "weights": "vit_large_patch14_dinov2.lvd142m.safetensors"}  # at 224 x 224


class Dinov2(Detector):
    """DINOv2 ViT-L/14 of timm, for FD-DINOv2 (Stein et al. 2023): agrees with people's judgement better than Inception.

    Images are resized to 224 x 224, bicubic with antialiasing, and normalised with ImageNet's mean and deviation; the
    feature is the class token after the last norm. timm resamples the position embedding from its 37 x 37 grid.
    """

    name = "dinov2"
    model = "vit_large_patch14_dinov2.lvd142m"
    url = f"https://huggingface.co/timm/{model}/resolve/main/model.safetensors"

    def __init__(self, weights: str | None = None, device: torch.device | str = "cpu"):
        import timm  # seconds, for this detector alone
        from timm.models.vision_transformer import checkpoint_filter_fn  # as above

        path = find_weights(self.name, weights, self.url)
        with untrained():
            self.network = timm.create_model(self.model, img_size=224, num_classes=0, global_pool="token")
        self.widths = {"features": self.network.num_features}
        self.hash = load_into(self.network, path, self.name, self.url, checkpoint_filter_fn)
        self.network.eval().requires_grad_(False).to(device)
        mean, deviation = timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD
        self.mean = torch.tensor(mean, device=device)[:, None, None]
        self.deviation = torch.tensor(deviation, device=device)[:, None, None]

    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        x = nn.functional.interpolate(images.float() / 255, (224, 224), mode="bicubic", antialias=True)
        return {"features": self.network((x - self.mean) / self.deviation)}
