"""The standard detector: Inception-v3 as used by guided-diffusion's evaluator."""

from __future__ import annotations

import io

import torch
from torch import Tensor

from benchmark.evaluate.detectors.base import Detector
from benchmark.evaluate.detectors.weights import find_weights, he_initialise, load_into, untrained, url_hash

# Operations at 299 x 299; 2048 features, which give the 1008 logits, and 2023 spatial ones. The evaluator of guided-diffusion
# takes the inception score of runs of 5,000 images: ten splits of 50,000 samples, two of 10,000.
FACTS = {"flops": 11.43e9, "numbers": 4071, "bytes": 2, "classes": 1008, "split_images": 5000,
         "weights": "weights-inception-2015-12-05-6726825d.pth"}  # fmt: skip


class Inception(Detector):
    """Inception-v3 of the field's evaluator (guided-diffusion), in torch-fidelity's translation, its own resize included.

    The resize is TensorFlow 1's: bilinear to 299 x 299, no half-pixel centres, no antialiasing. Spatial features are the
    first seven channels of Mixed_6d.branch1x1 after its ReLU (mixed_6/conv there), flattened as rows, columns, channels.
    """

    name = "inception"

    def __init__(self, weights: str | None = None, device: torch.device | str = "cpu"):
        # Seconds, for this detector alone.
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

        class Network(FeatureExtractorInceptionV3):
            """The extractor as constructed, without weights: they are put in later, from a checked file."""

            def load_state_dict(self, state_dict, strict=True, assign=False):
                return super().load_state_dict(state_dict, strict and bool(state_dict), assign)

        self.widths = {"features": 2048, "spatial": 17 * 17 * 7, "logits": 1008}
        path = find_weights(self.name, weights, URL_INCEPTION_V3, sha256=url_hash(URL_INCEPTION_V3))
        empty = io.BytesIO()
        torch.save({}, empty)
        empty.seek(0)
        with untrained():
            self.network = Network("inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=empty)
            he_initialise(self.network)
        self.hash = load_into(self.network, path, self.name, URL_INCEPTION_V3)
        self.network.eval().to(device)
        self.head = self.network.fc.weight.detach()  # [1008, 2048]
        self._spatial: list[Tensor] = []
        self.network.Mixed_6d.branch1x1.register_forward_hook(lambda module, inputs, output: self._spatial.append(output))

    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        self._spatial.clear()
        features, logits = self.network(images)
        (branch,) = self._spatial  # [B, 192, 17, 17]
        spatial = branch[:, :7].permute(0, 2, 3, 1).flatten(1)
        self._spatial.clear()
        return {"features": features, "spatial": spatial, "logits": logits}
