"""Every method trains and samples with its tensors on a CUDA device, pretended, to the numbers of the processor."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import small
import torch
from pretended import CUDA, PretendedCuda

from benchmark import registry
from benchmark.model import precision
from benchmark.model.method import Method


def build(name: str, **sections) -> Method:
    protocol = small.protocol(**sections)
    return small.fill(registry.load(name)(protocol, "16x24", 0, protocol.options.get(name, {})))


def on_device(batch: dict) -> dict:
    return {key: value.to(CUDA) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}


@pytest.mark.parametrize("name", registry.names())
def test_trains_and_samples_on_a_device(name):
    method, batch = build(name), small.batch(small.protocol(), "16x24", 0)
    loss, images = method.loss(batch), method.generate("32x48", 0, [0, 1])
    with PretendedCuda():
        method = build(name).to(CUDA)
        moved = method.loss(on_device(batch))
        assert moved.device == CUDA
        assert float(moved.detach()) == pytest.approx(float(loss.detach()), rel=1e-5)
        moved.backward()
        for key, parameter in method.named_parameters():  # one without a gradient would stop a training on several GPUs
            assert parameter.grad is not None, key
            assert parameter.grad.device == CUDA, key
        found = method.generate("32x48", 0, [0, 1])
        assert found.device == CUDA
    torch.testing.assert_close(found.held, images, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("solver", ["ddpm", "ddim"])
def test_ddpm_trains_and_samples_on_a_device(solver):
    sections = {"objective": {"name": "ddpm"}, "sample": {"solver": solver}}
    batch = small.batch(small.protocol(**sections), "16x24", 0)
    with PretendedCuda():
        method = build("extrapolation", **sections).to(CUDA)
        assert method.loss(on_device(batch)).device == CUDA
        assert method.generate("32x48", 0, [0, 1]).device == CUDA


def test_a_tensor_left_on_the_processor_is_found():
    with PretendedCuda():
        x = torch.ones(3, device=CUDA)
        assert (x * torch.tensor(2.0)).device == CUDA  # a number without dimensions may come from there
        assert x[torch.tensor([0, 1])].device == CUDA
        for wrong in (lambda: x + torch.ones(3), lambda: torch.ones(3)[x.long()], lambda: torch.cat([x, torch.ones(1)]),
                      lambda: torch.randn(2, device=CUDA, generator=torch.Generator())):  # fmt: skip
            with pytest.raises(RuntimeError, match="processor"):
                wrong()


def test_the_average_of_the_weights_waits_for_no_device():
    """The number of updates is looked at in every step, and Lightning puts it on the device."""
    method = build("extrapolation")
    averaging = precision.averaging(method.protocol)
    averaging.setup(None, method, "fit")
    average = averaging._average_model
    with PretendedCuda():
        method.to(CUDA)
        average.n_averaged = average.n_averaged.to(CUDA)
        averaging.on_fit_start(None, method)
        assert {value.device for value in average.module.parameters()} == {CUDA}
        assert average.n_averaged.device.type == "cpu"
        for step in (1, 2, 2):  # the last is no step of the optimizer
            averaging.on_train_batch_end(SimpleNamespace(global_step=step), method, None, None, 0)
    assert average.n_averaged == 2


def test_the_average_is_that_of_torch():
    """Three updates of weights that move, against torch's own rule."""
    method = build("rpe2d")
    ours, theirs = precision.averaging(method.protocol), precision.averaging(method.protocol)
    for averaging in (ours, theirs):
        averaging.setup(None, method, "fit")
        averaging.on_fit_start(None, method)
    for step in (1, 2, 3):
        with torch.no_grad():
            for value in method.parameters():
                value.add_(step * torch.ones_like(value).cumsum(0) / 7)
        ours.on_train_batch_end(SimpleNamespace(global_step=step), method, None, None, 0)
        theirs._average_model.update_parameters(method)
    found, expected = (averaging._average_model.state_dict() for averaging in (ours, theirs))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in found)
