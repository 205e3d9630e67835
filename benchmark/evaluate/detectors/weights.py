"""Detector weight files: located, downloaded once, verified, loaded; and untrained networks for tests."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import pickle
import shutil
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from benchmark.files import UserError, atomic, file_hash
from benchmark.registry import WEIGHTS_VARIABLE, weights_file
from benchmark.streams import UNTRAINED_SEED

TIMEOUT = 15  # seconds without an answer, after which a download has failed
RANDOM = "random"  # as weights: an untrained network, for tests; its scores mean nothing


def url_hash(url: str) -> str:
    """The start of the file's SHA-256, which is the last part of its name, as in weights-inception-2015-12-05-6726825d.pth."""
    return Path(url).stem.rpartition("-")[2]


def find_weights(name: str, weights: str | None, url: str, sha256: str = "") -> Path | None:
    """The path of a detector's weight file: the one given or in DETECTOR_WEIGHTS, or its own (`registry.weights_file`).

    Its own is downloaded if missing. None means "random".

    Args:
        weights: a path given by the user, or None.
        url: where the detector's own file is published.
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
    path = weights_file(name)
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
        torch.manual_seed(UNTRAINED_SEED)
        yield


def he_initialise(network: nn.Module) -> None:
    """Convolutions that keep the variance of activations: with torch's default an untrained deep net is constant."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
