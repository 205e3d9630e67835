"""Detectors: networks that turn uint8 images into the features that scores are made of, behind one interface; and spectra.

A detector is called with uint8 [B, 3, H, W] and returns a dict of float32 tensors, as far as it has them:

    features   [B, D]   for FID, precision and recall, KID
    spatial    [B, S]   for sFID
    logits     [B, C]   for the inception score: without bias, as the field's evaluator takes them
    predicted  [B]      the class it sees, as a number of the data set's classes
    objects    [B]      how many objects it sees

Detectors stay outside Lightning modules: callbacks that average weights would copy them.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import io
import os
import pickle
import shutil
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmark import classifier
from benchmark.files import UserError, atomic, file_hash, unknown

WEIGHTS_VARIABLE = "DETECTOR_WEIGHTS"
TIMEOUT = 15  # seconds without an answer, after which a download has failed
RANDOM = "random"  # as weights: an untrained network, for tests; its scores mean nothing


class Detector:
    """What all detectors share; subclasses fill `network` and `widths` and answer `look`.

    Args:
        weights: path of a weight file; None takes the detector's own (see `find_weights`), "random" none at all.
        device: where the network runs. Results come back on the same device.
    """

    name: str
    widths: dict[str, int]  # output -> width; 0 for one number per image
    network: nn.Module
    hash: str  # the first 12 hexadecimal digits of the SHA-256 of the weights

    def __init__(self, weights: str | None = None, device: torch.device | str = "cpu"):
        raise NotImplementedError

    def look(self, images: Tensor) -> dict[str, Tensor]:
        """The outputs for checked images [B, 3, H, W] on the detector's device."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Outputs for uint8 images [B, 3, H, W].

        Raises:
            UserError: images are not uint8, not [B, 3, H, W], or there are none.
        """
        if images.dtype != torch.uint8:
            raise UserError(f"detectors take uint8 images (0 to 255), not {images.dtype}")
        if images.ndim != 4 or images.shape[1] != 3:
            hint = ": that is NHWC, permute it" if images.ndim == 4 and images.shape[3] == 3 else ""
            raise UserError(f"detectors take images as [B, 3, H, W], not {list(images.shape)}{hint}")
        if not len(images):
            raise UserError("there are no images in this batch")
        with exact_float32():
            outputs = self.look(images.to(self.device))
        assert outputs.keys() == self.widths.keys(), (outputs.keys(), self.widths)
        return {name: value.float() for name, value in outputs.items()}


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """Turns off TF32 and automatic mixed precision: both move features by about 1e-3."""
    matmul = torch.backends.cuda.matmul.allow_tf32
    cudnn = torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn


class Inception(Detector):
    """Inception-v3 of the field's evaluator (guided-diffusion), in torch-fidelity's translation, its own resize included.

    The resize is TensorFlow 1's: bilinear to 299 x 299, no half-pixel centres, no antialiasing. Spatial features are the
    first seven channels of Mixed_6d.branch1x1 after its ReLU (mixed_6/conv there), flattened as rows, columns, channels.
    """

    name = "inception"

    def __init__(self, weights: str | None = None, device: torch.device | str = "cpu"):
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
        self._spatial: list[Tensor] = []
        self.network.Mixed_6d.branch1x1.register_forward_hook(lambda module, inputs, output: self._spatial.append(output))

    def look(self, images: Tensor) -> dict[str, Tensor]:
        self._spatial.clear()
        features, logits = self.network(images)
        (branch,) = self._spatial  # [B, 192, 17, 17]
        spatial = branch[:, :7].permute(0, 2, 3, 1).flatten(1)
        self._spatial.clear()
        return {"features": features, "spatial": spatial, "logits": logits}


class Dinov2(Detector):
    """DINOv2 ViT-L/14 of timm, for FD-DINOv2 (Stein et al. 2023): agrees with people's judgement better than Inception.

    Images are resized to 224 x 224, bicubic with antialiasing, and normalised with ImageNet's mean and deviation; the
    feature is the class token after the last norm. timm resamples the position embedding from its 37 x 37 grid.
    """

    name = "dinov2"
    model = "vit_large_patch14_dinov2.lvd142m"
    url = f"https://huggingface.co/timm/{model}/resolve/main/model.safetensors"

    def __init__(self, weights: str | None = None, device: torch.device | str = "cpu"):
        import timm
        from timm.models.vision_transformer import checkpoint_filter_fn

        path = find_weights(self.name, weights, self.url, file=f"{self.model}.safetensors")
        with untrained():
            self.network = timm.create_model(self.model, img_size=224, num_classes=0, global_pool="token")
        self.widths = {"features": self.network.num_features}
        self.hash = load_into(self.network, path, self.name, self.url, checkpoint_filter_fn)
        self.network.eval().requires_grad_(False).to(device)
        mean, deviation = timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD
        self.mean = torch.tensor(mean, device=device)[:, None, None]
        self.deviation = torch.tensor(deviation, device=device)[:, None, None]

    def look(self, images: Tensor) -> dict[str, Tensor]:
        x = nn.functional.interpolate(images.float() / 255, (224, 224), mode="bicubic", antialias=True)
        return {"features": self.network((x - self.mean) / self.deviation)}


class Shapes(Detector):
    """The classifier of the embedded data set; knows the classes and the number of objects."""

    name = "shapes"

    def __init__(self, weights: str | None = None, device: torch.device | str = "cpu"):
        if weights == RANDOM:
            with untrained():
                self.network = classifier.Classifier().eval().requires_grad_(False).to(device)
            self.hash = state_hash(self.network)
        else:
            self.network = classifier.load(weights or classifier.WEIGHTS, device)
            self.hash = file_hash(weights or classifier.WEIGHTS)[:12]
        with torch.inference_mode():
            outputs = self.look(torch.zeros(1, 3, 16, 16, dtype=torch.uint8, device=self.device))
        self.widths = {name: value.shape[1] if value.ndim == 2 else 0 for name, value in outputs.items()}

    def look(self, images: Tensor) -> dict[str, Tensor]:
        outputs = dict(self.network(images))
        outputs["predicted"] = outputs["logits"].argmax(dim=1)
        outputs["logits"] = outputs["logits"] - self.network.head.bias
        return outputs


def log_spectrum(images: Tensor) -> Tensor:
    """Radial power spectrum of images in decibels; needs no detector and works on rectangles.

    The image's mean is taken off, a separable Hann window is applied (the edges of a photograph do not meet, and without a
    window that step would cover the high frequencies), and |FFT|^2 is divided by the window's energy: grey levels squared,
    white noise of variance v gives v at every frequency. Channels are averaged. Frequency is sqrt(fy^2 + fx^2) in cycles
    per pixel, fy = row / H, fx = column / W, so that it means the same on both axes of a rectangle; bin b = 1 .. K holds
    what rounds to b / min(H, W), with K = min(H, W) // 2, so that the last one ends at the Nyquist frequency. Before
    the logarithm 1/12 is added, the variance of rounding to whole grey levels, below which nothing can be told.

    Args:
        images: uint8 [n, C, H, W].

    Returns:
        10 log10(power), float32 [n, K].
    """
    height, width = images.shape[-2:]
    short = min(height, width)
    bins = short // 2
    device = images.device
    window = torch.hann_window(height, dtype=torch.float64, device=device)[:, None] * torch.hann_window(
        width, dtype=torch.float64, device=device
    )
    frequency = torch.hypot(
        torch.fft.fftfreq(height, dtype=torch.float64, device=device)[:, None],
        torch.fft.rfftfreq(width, dtype=torch.float64, device=device)[None, :],
    )
    # A real image has a symmetric spectrum; every column but the first (and, for even widths, the last) stands for two.
    weight = torch.full((width // 2 + 1,), 2.0, dtype=torch.float64, device=device)
    weight[0] = 1
    if width % 2 == 0:
        weight[-1] = 1
    index = (frequency * short).round().long()
    inside = (index >= 1) & (index <= bins)
    index, weight = (index[inside] - 1), weight.expand(height, -1)[inside]
    share = torch.zeros(bins, dtype=torch.float64, device=device).index_add_(0, index, weight)
    x = images.to(torch.float32)
    x = (x - x.mean(dim=(-2, -1), keepdim=True)) * window.float()
    power = torch.fft.rfft2(x).abs().square().double().mean(dim=1) / window.square().sum()  # [n, H, W // 2 + 1]
    binned = torch.zeros(len(images), bins, dtype=torch.float64, device=device)
    binned.index_add_(1, index, power[:, inside] * weight)
    return (10 * (binned / share + 1 / 12).log10()).float()


DETECTORS: dict[str, type[Detector]] = {cls.name: cls for cls in (Inception, Dinov2, Shapes)}


def load(name: str, weights: str | Path | None = None, device: torch.device | str = "cpu") -> Detector:
    """A detector by name.

    Args:
        weights: path of its weight file. None: its own, which is shipped with the project (shapes), or else the file that the
            variable DETECTOR_WEIGHTS names, or else one that is downloaded once. "random": see `Detector`.

    Raises:
        UserError: unknown name, or weights that are missing, damaged or of another network.
    """
    if name not in DETECTORS:
        raise unknown("detector", name, DETECTORS)
    return DETECTORS[name](None if weights is None else str(weights), device)


def url_hash(url: str) -> str:
    """The start of the file's SHA-256, which is the last part of its name, as in weights-inception-2015-12-05-6726825d.pth."""
    return Path(url).stem.rpartition("-")[2]


def find_weights(name: str, weights: str | None, url: str, file: str | None = None, sha256: str = "") -> Path | None:
    """The path of a detector's weight file: the one given or in DETECTOR_WEIGHTS, or its own in torch's cache.

    Its own is downloaded if it is not there. None stands for "random".

    Args:
        weights: a path given by the user, or None.
        url: where the detector's own file is published.
        file: its name in the cache, the URL's by default.
        sha256: the start of its hash, if one is published; a file that differs is refused.
    """
    weights = weights or os.environ.get(WEIGHTS_VARIABLE) or None
    if weights == RANDOM:
        return None
    expected = f" (SHA-256 {sha256}...)" if sha256 else ""
    if weights is not None:
        if not Path(weights).is_file():
            raise UserError(f"the weights of detector '{name}' are not at {weights}; give the path of {url}{expected}")
        return Path(weights)
    path = Path(torch.hub.get_dir()) / "checkpoints" / (file or Path(url).name)
    if not path.is_file():
        try:
            with atomic(path) as draft:
                with urllib.request.urlopen(url, timeout=TIMEOUT) as answer, open(draft, "wb") as target:
                    shutil.copyfileobj(answer, target)
                    expected_bytes = answer.headers.get("Content-Length")
                if expected_bytes and draft.stat().st_size != int(expected_bytes):
                    raise ConnectionError(f"it broke off after {draft.stat().st_size} of {expected_bytes} bytes")
                check_hash(draft, sha256, url)
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error  # of a URLError
            raise UserError(
                f"the weights of detector '{name}' could not be downloaded ({reason}): put {url}{expected} at {path}, "
                f"or name a file by {WEIGHTS_VARIABLE}=PATH"
            ) from None
    else:
        check_hash(path, sha256, str(path))
    return path


def check_hash(path: Path, sha256: str, where: str) -> None:
    found = file_hash(path)
    if not found.startswith(sha256):
        raise UserError(f"{where} is damaged: its SHA-256 is {found[:12]}..., expected {sha256}...; remove and fetch it again")


def load_into(
    network: nn.Module, path: Path | None, name: str, url: str, translate: Callable[[dict, nn.Module], dict] | None = None
) -> str:
    """Puts a weight file (safetensors, or a pickled dict of tensors) into a detector's network and returns its hash.

    Args:
        path: the file; None leaves the network untrained.
        url: where the right file is published.
        translate: from the file's state dict to the network's.
    """
    if path is None:
        return state_hash(network)
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
        network.load_state_dict(translate(state, network) if translate else state)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, OSError, ValueError, LookupError, TypeError,
            AttributeError, EOFError) as error:  # fmt: skip
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        raise UserError(f"{path} does not hold the weights of detector '{name}' ({reason}); those are at {url}") from None
    return file_hash(path)[:12]


def state_hash(network: nn.Module) -> str:
    """The first 12 hexadecimal digits of the SHA-256 of a network's tensors."""
    state = hashlib.sha256()
    for key, value in network.state_dict().items():
        state.update(key.encode())
        state.update(value.detach().cpu().contiguous().numpy().tobytes())
    return state.hexdigest()[:12]


@contextlib.contextmanager
def untrained() -> Iterator[None]:
    """The same untrained network every time, without touching the caller's random state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def he_initialise(network: nn.Module) -> None:
    """Convolutions that keep the variance of activations: with torch's default an untrained deep net is constant."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
