"""What will be measured on a GPU, tried on a processor; and the seams that a GPU alone takes, on the meta device."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from benchmark import files
from benchmark.__main__ import app
from benchmark.files import UserError
from benchmark.measure import gpu
from benchmark.model import checkpoint, dit
from benchmark.model.method import Method


class Stopped:
    """Instead of a process: a training that is told to stop in step 13."""

    def __init__(self, command: list[str], **_) -> None:
        step = Method.training_step

        def asked(self, batch, batch_index=0):
            if batch["step"] == 12:
                os.kill(os.getpid(), signal.SIGTERM)
            return step(self, batch, batch_index)

        with mock.patch.object(Method, "training_step", asked), contextlib.suppress(files.Stopped):
            app(command[3:], standalone_mode=False)

    poll = send_signal = wait = lambda *_: 0


def test_parts_in_the_tiny_mode(tmp_path, monkeypatch):
    """All but the resuming without deterministic kernels, which on a processor is the same; trainings run in this process."""
    here = {"run": lambda command, **_: app(command[3:], standalone_mode=False), "Popen": Stopped, "DEVNULL": None}
    monkeypatch.setattr(gpu, "subprocess", SimpleNamespace(**here))
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.setitem(checkpoint.SIZES, "S", checkpoint.Size(1, 16, 2))
    monkeypatch.setattr(gpu, "_peak", lambda precision, device: 1e9)
    parts = ["attention", "resume, deterministic", "imagenet-64", "S/2, 4 tokens"]
    found = gpu.measure(tmp_path, minutes=60, device="cpu", tiny=True, parts=parts)
    assert found["left out"] == []
    assert found["resume, deterministic"]["equal"]
    assert found["resume, deterministic"]["stopped at"] == 13 < found["resume, deterministic"]["steps"]
    assert found["imagenet-64"]["images/s"] > 0
    assert found["S/2, 4 tokens"]["ratio"] > 0
    assert all(case["kernels"] for case in found["attention"].values())
    assert json.loads((tmp_path / "gpu" / "cpu.json").read_text()) == found


def test_what_there_is_no_time_for_is_named(tmp_path):
    found = gpu.measure(tmp_path, minutes=0, device="cpu", tiny=True)
    assert found["left out"] == ["attention", "resume", "resume, deterministic", "imagenet-64", "S/2, 4 tokens"]


def test_parts_are_chosen_by_name(tmp_path):
    found = gpu.measure(tmp_path, device="cpu", tiny=True, parts=["attention"])
    assert found.keys() == {"device", "torch", "left out", "attention"}
    with pytest.raises(UserError, match=r"unknown part 'XL/2'.*choose from: S/2, 4 tokens, attention, imagenet-64, resume"):
        gpu.measure(tmp_path, device="cpu", tiny=True, parts=["XL/2"])


@pytest.mark.parametrize("case", ["none", "causal", "mask", "bias", "both"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_attention_has_its_shapes_off_the_processor(case, dtype):
    """The branch that GPUs take, run without one: on the meta device, where shapes and types are all there is."""
    with torch.device("meta"):
        q = torch.empty(2, 3, 20, 16, dtype=dtype)
        mask = {"causal": "causal", "mask": torch.empty(20, 20, dtype=torch.bool), "both": torch.empty(20, 20, dtype=torch.bool)}
        bias = torch.empty(3, 20, 20) if case in ("bias", "both") else None
        out = dit.attend(q, q, q, mask.get(case), bias, None)
    assert out.shape == q.shape
    assert out.dtype == dtype
