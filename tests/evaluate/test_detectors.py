"""Detectors against torch-fidelity, torchmetrics and timm with random weights; weights that are missing or wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import synthetic
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torchmetrics.image.fid import NoTrainInceptionV3

from benchmark import protocol, registry
from benchmark.data import shapes
from benchmark.evaluate import classifier, detectors
from benchmark.evaluate.detectors.dinov2 import Dinov2
from benchmark.evaluate.detectors.inception import Inception
from benchmark.evaluate.detectors.weights import (
    find_weights,
)
from benchmark.files import UserError, file_hash
from benchmark.plan import cost
from benchmark.results import record


def images(count: int, height: int, width: int) -> torch.Tensor:
    """Noise over a slope: no two resize rules agree on it."""
    generator = torch.Generator().manual_seed(height * width)
    noise = torch.randint(0, 120, (count, 3, height, width), generator=generator)
    return (noise + torch.arange(width) * 100 // width).to(torch.uint8)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A weight file of an untrained Inception, as a user would name it."""
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(Inception("random").network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def inception(weights):
    return detectors.load("inception", weights)


@pytest.fixture(scope="module")
def peer(weights):
    return FeatureExtractorInceptionV3("peer", ["2048", "logits_unbiased", "logits"], str(weights))


SIZES = [(32, 32), (256, 256), (299, 299), (512, 512), (96, 320)]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_inception_is_torch_fidelitys(inception, peer, height, width):
    x = images(2 if height < 512 else 1, height, width)
    outputs = inception(x)
    features, logits, biased = peer(x)
    assert torch.equal(outputs["features"], features)
    assert torch.equal(outputs["logits"], logits)
    assert not torch.allclose(logits, biased, rtol=1e-4)
    assert features.std() > 1e-3


@pytest.mark.parametrize(("height", "width"), [(256, 256), (96, 320)])
def test_inception_is_torchmetrics_without_antialiasing(inception, weights, height, width):
    x = images(1, height, width)
    plain, smooth = (
        NoTrainInceptionV3("inception-v3-compat", ["2048"], str(weights), antialias=antialias)(x) for antialias in (False, True)
    )
    assert torch.equal(inception(x)["features"], plain)
    assert not torch.allclose(plain, smooth, rtol=1e-3)


def test_spatial_features_are_seven_channels_after_relu(inception, peer):
    """By hand, from the input of the block in torch-fidelity's network."""
    seen = []
    handle = peer.Mixed_6d.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    x = images(2, 64, 48)
    peer(x)
    handle.remove()
    branch = peer.Mixed_6d.branch1x1
    y = torch.einsum("bchw,oc->bohw", seen[0].double(), branch.conv.weight[:7, :, 0, 0].double())
    gain = branch.bn.weight / (branch.bn.running_var + 1e-3).sqrt()
    y = (y * gain[:7, None, None] + (branch.bn.bias - branch.bn.running_mean * gain)[:7, None, None]).clamp(min=0)
    spatial = inception(x)["spatial"]
    assert spatial.shape == (2, 17 * 17 * 7)
    for row, column, channel in [(0, 0, 0), (3, 16, 6), (16, 2, 4)]:
        found = spatial[:, (row * 17 + column) * 7 + channel]
        torch.testing.assert_close(found.double(), y[:, channel, row, column], rtol=1e-4, atol=1e-5)
    assert (spatial >= 0).all()


def test_batch_size_does_not_matter(inception):
    x = images(3, 40, 56)
    complete, parts = inception(x), [inception(part) for part in x.split([1, 2])]
    for name, value in complete.items():
        torch.testing.assert_close(value, torch.cat([part[name] for part in parts]), rtol=1e-5, atol=1e-5)


def test_autocast_does_not_reach_a_detector(inception):
    x = images(1, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = inception(x)["features"]
    assert torch.equal(inside, inception(x)["features"])


def test_widths_and_hash(inception, weights):
    outputs = inception(images(1, 32, 32))
    assert {name: value.shape[1] for name, value in outputs.items()} == inception.widths
    torch.testing.assert_close(outputs["features"] @ inception.head.T, outputs["logits"])
    assert inception.hash == file_hash(weights)[:12]
    assert all(not p.requires_grad for p in inception.network.parameters())


def test_dinov2_is_timms(monkeypatch, tmp_path):
    """A small sibling, random, stored at 518 pixels as the published weights are."""
    model = "vit_small_patch14_dinov2.lvd142m"
    monkeypatch.setattr(Dinov2, "model", model)
    torch.manual_seed(1)
    stored = timm.create_model(model, num_classes=0)
    path = tmp_path / "dinov2.safetensors"
    save_file(stored.state_dict(), path)
    detector = detectors.load("dinov2", path)
    overlay = {"file": str(path)}
    peer = timm.create_model(model, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0, img_size=224).eval()
    x = images(2, 224, 224)
    mean, deviation = (torch.tensor(values)[:, None, None] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        expected = peer.forward_features((x / 255 - mean) / deviation)[:, 0]
    found = detector(x)["features"]
    assert detector.widths == {"features": 384}
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    for height, width in ((60, 300), (512, 384)):  # and its resize is Pillow's, in floats, so that nothing is cut at 0 and 255
        y = images(1, height, width)
        channels = [
            Image.fromarray(channel.float().numpy(), "F").resize((224, 224), Image.Resampling.BICUBIC) for channel in y[0]
        ]
        resized = torch.from_numpy(np.stack([np.asarray(channel) for channel in channels]))[None]
        with torch.no_grad():
            expected = peer.forward_features((resized / 255 - mean) / deviation)[:, 0]
        torch.testing.assert_close(detector(y)["features"], expected, rtol=1e-3, atol=1e-3)


def test_shapes_detector_takes_the_bias_off_logits():
    detector = detectors.load("shapes", "random")
    x = torch.from_numpy(shapes.render_batch("heldout", range(3), (40, 64))).permute(0, 3, 1, 2)
    outputs, plain = detector(x), detector.network(x)
    assert not torch.allclose(outputs["logits"], plain["logits"])
    torch.testing.assert_close(outputs["logits"] + detector.network.head.bias, plain["logits"])
    assert torch.equal(outputs["predicted"].long(), plain["logits"].argmax(1))
    assert detector.widths["features"] == classifier.FEATURES
    assert {name: value.ndim for name, value in outputs.items()} == {
        name: 2 if width else 1 for name, width in detector.widths.items()
    }


def test_photos_detector_takes_the_bias_off_logits():
    detector = detectors.load("photos", "random")
    torch.nn.init.normal_(detector.network.head.bias.data)
    x = torch.from_numpy(shapes.render_batch("heldout", range(3), (40, 64))).permute(0, 3, 1, 2)
    torch.testing.assert_close(detector(x)["logits"] + detector.network.head.bias, detector.network(x)["logits"])


def test_untrained_detectors_are_reproducible():
    state = torch.get_rng_state()
    assert detectors.load("shapes", "random").hash == detectors.load("shapes", "random").hash
    assert torch.equal(state, torch.get_rng_state())


# --- Bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (torch.zeros(2, 3, 16, 16), "uint8 images .* not torch.float32"),
        (torch.zeros(2, 16, 16, 3, dtype=torch.uint8), "NHWC, permute it"),
        (torch.zeros(3, 16, 16, dtype=torch.uint8), r"\[B, 3, H, W\], not \[3, 16, 16\]"),
        (torch.zeros(2, 1, 16, 16, dtype=torch.uint8), r"not \[2, 1, 16, 16\]"),
        (torch.zeros(0, 3, 16, 16, dtype=torch.uint8), "no images"),
    ],
)
def test_wrong_images(batch, message):
    with pytest.raises(UserError, match=message):
        detectors.load("shapes", "random")(batch)


def test_unknown_detector_lists_the_choices():
    with pytest.raises(UserError, match=r"unknown detector 'incption'; did you mean 'inception'\? .*inception, photos, shapes"):
        detectors.load("incption")


@pytest.mark.parametrize("name", ["inception", "dinov2"])
def test_offline_without_weights(monkeypatch, tmp_path, name):
    """The error names the file, the hash, where to put it, and the variable; nothing is left behind."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("DETECTOR_WEIGHTS", raising=False)

    def unreachable(url, timeout):
        assert timeout <= 30
        raise OSError("Network is unreachable")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    with pytest.raises(UserError) as error:
        detectors.load(name)
    message = str(error.value)
    assert "\n" not in message
    assert f"{tmp_path}/hub/checkpoints/" in message
    assert "DETECTOR_WEIGHTS=PATH" in message
    if name == "inception":
        assert "weights-inception-2015-12-05-6726825d.pth (SHA-256 6726825d...)" in message
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_weights_from_the_variable(monkeypatch, weights, inception):
    monkeypatch.setenv("DETECTOR_WEIGHTS", str(weights))
    assert detectors.load("inception").hash == inception.hash
    monkeypatch.setenv("DETECTOR_WEIGHTS", "random")
    with pytest.raises(UserError, match="DETECTOR_WEIGHTS is the path of a weight file"):
        detectors.load("inception")


def test_missing_weights(tmp_path):
    with pytest.raises(UserError, match=r"are not at .*/none\.pth; .*-6726825d\.pth \(SHA-256 6726825d"):
        detectors.load("inception", tmp_path / "none.pth")


def test_download_that_is_damaged_is_not_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    source = tmp_path / "weights-6726825d.pth"
    source.write_bytes(b"half a file")
    with pytest.raises(UserError, match=r"is damaged: .* expected 6726825d"):
        find_weights("inception", None, source.as_uri(), sha256="6726825d")
    assert [path for path in (tmp_path / "home").rglob("*") if path.is_file()] == []
    good = file_hash(source)[:8]
    path = find_weights("inception", None, source.as_uri(), sha256=good)
    assert path.read_bytes() == b"half a file"
    path.write_bytes(b"changed since")
    with pytest.raises(UserError, match="is damaged"):
        find_weights("inception", None, source.as_uri(), sha256=good)


class Code:
    """Pickled, a call of Path.touch."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("content", [b"", b"no pickle at all", "state of another network", "code"])
def test_wrong_weight_files(tmp_path, content):
    """Also a pickle that would run code: it is refused, not run."""
    path = tmp_path / "wrong.pth"
    if content == "state of another network":
        torch.save({"fc.weight": torch.zeros(2)}, path)
    elif content == "code":
        torch.save(Code(tmp_path / "ran"), path)
    else:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"does not hold the weights of detector 'inception' \(.*\); those are at http.*6726825d"):
        detectors.load("inception", path)
    assert not (tmp_path / "ran").exists()


def test_wrong_shapes_weights(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        detectors.load("shapes", tmp_path / "none.safetensors")


def test_a_new_detector_is_one_file(monkeypatch, tmp_path):
    """Protocols, plans and records know it by its FACTS, which are read without importing it."""
    means = (
        "import torch\n"
        "from benchmark.evaluate.detectors.base import Detector\n"
        "FACTS = {'flops': 2e6, 'numbers': 4, 'classes': 4, 'split_images': 100}\n"
        "class Means(Detector):\n"
        "    name, hash, widths = 'means', '0' * 12, {'features': 3, 'logits': 4}\n"
        "    def __init__(self, weights, device):\n"
        "        self.network = torch.nn.Linear(3, 4, device=device)\n"
        "    def outputs(self, images):\n"
        "        means = images.float().mean((2, 3))\n"
        "        return {'features': means, 'logits': self.network(means)}\n"
    )
    synthetic.detectors(tmp_path / "detectors", monkeypatch, means=means)
    assert registry.detectors() == ["dinov2", "inception", "means", "photos", "shapes"]
    rules = protocol.load("smoke", ["score.detector=means", "score.splits=0", "sample.count=512"])
    assert rules.splits == 5
    assert cost.detecting(rules, 3).float32 == 6e6
    scores = {name: {"value": 5.0, "low": 5.0, "high": 5.0, "replicates": [5.0]} for name in ("fid", "is")}
    with pytest.raises(UserError, match="the detector knows 4 classes"):
        record._fit_scores(scores, 1, registry.detector_facts("means").classes)
    found = detectors.load("means")(torch.full((2, 3, 8, 8), 9, dtype=torch.uint8))
    assert torch.equal(found["features"], torch.full((2, 3), 9.0))


@pytest.mark.parametrize(
    ("facts", "message"),
    [("", "declares no FACTS"), ("FACTS = {'flops': 1e9}", "numbers"), ("FACTS = {'flops': f(), 'numbers': 1}", "literal"),
     ("FACTS = {'flops': 1e9, 'numbers': 1, 'speed': 2}", "speed")],
)  # fmt: skip
def test_a_detector_without_its_facts_is_refused(monkeypatch, tmp_path, facts, message):
    (tmp_path / "means.py").write_text(f"{facts}\nclass Means(Detector):\n    pass\n")
    monkeypatch.setattr(registry, "DETECTORS", tmp_path)
    with pytest.raises(UserError, match=message):
        registry.detectors()


@pytest.mark.parametrize("name", registry.detectors())
def test_facts_are_what_a_detector_keeps_of_an_image(monkeypatch, name, request):
    head = None
    if name == "dinov2":
        with torch.device("meta"):  # an untrained one takes a gigabyte
            found = {"features": timm.create_model(Dinov2.model, num_classes=0).num_features}
    else:
        detector = request.getfixturevalue("inception") if name == "inception" else detectors.load(name)
        found, head = detector.widths, getattr(detector, "head", None)
    facts = registry.detector_facts(name)
    assert facts.classes == found.get("logits", 0)
    assert facts.numbers == sum(max(width, 1) for width in found.values()) - (0 if head is None else facts.classes)
