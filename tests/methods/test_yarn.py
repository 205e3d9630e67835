"""YaRN against transformers and by hand, its temperature, and options that cannot be."""

from __future__ import annotations

import pytest
import torch
from strategies import RATIOS, build, latent, transformers_frequencies

from benchmark import registry
from benchmark.files import UserError


@pytest.mark.parametrize(("head", "base"), [(64, 10000.0), (72, 10000.0), (64, 100.0), (16, 10000.0)])
@pytest.mark.parametrize(("trained", "tested"), [*RATIOS, (1024, 4096), (4096, 8192)])
def test_yarn_equals_transformers(head, base, trained, tested):
    method = latent("yarn", head, base)
    theirs, factor = transformers_frequencies("yarn", head // 2, base, trained, tested)
    torch.testing.assert_close(method.theta(trained, tested, None).float(), theirs, rtol=1e-5, atol=0)
    assert method.attention_factor(tested / trained) == pytest.approx(factor, rel=1e-9)


def test_yarn_by_hand():
    method, plain = latent("yarn"), latent("extrapolation").plain()
    kept = (method.theta(16, 32, None) / plain - 0.5) / 0.5
    assert kept.tolist() == pytest.approx([1, 0.5] + [0] * 14, abs=1e-9)
    assert method.attention_factor(2) ** 2 == pytest.approx(1.143, abs=5e-4)
    tables = method.encode((16, 32)).rotary
    torch.testing.assert_close(tables[0].square() + tables[1].square(), torch.full_like(tables[0], 1.069315**2))


def test_yarn_keeps_fast_bands_on_long_grids():
    """The ramp the right way up: at 4096 tokens the fastest bands stay and the slowest are interpolated."""
    ratio = latent("yarn").theta(4096, 8192, None) / latent("extrapolation").plain()
    assert ratio[0] == 1
    assert ratio[-1].item() == pytest.approx(0.5)
    assert (ratio.diff() <= 1e-12).all()


def test_yarn_temperature_is_off_where_the_protocol_scales():
    method = latent("yarn", switches={"attention_scale": "fitv2"})
    encoding = method.encoding((32, 32))
    torch.testing.assert_close(encoding.rotary[0].square() + encoding.rotary[1].square(), torch.ones(1024, 32))
    assert encoding.logit_scale == pytest.approx(1.25)
    assert latent("yarn").encoding((32, 32)).logit_scale == 1


def test_options_of_the_wrong_type_are_refused():
    with pytest.raises(UserError, match=r"^options\.yarn\.beta_fast must be a number, not 'many'"):
        build("yarn", options={"yarn": {"beta_fast": "many"}})


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("yarn", {"beta_fast": 0.5}, "0 < beta_slow < beta_fast"),
        ("yarn", {"beta_slow": -1.0}, "0 < beta_slow < beta_fast"),
        ("ntk_by_parts", {"beta_1": 0.0}, "0 < beta_1 < beta_0"),
        ("resonance", {"gamma_0": 1.0}, "0 < gamma_1 < gamma_0"),
        ("dype", {"gamma_1": -1.0}, "0 < gamma_1 < gamma_0"),
    ],
)
def test_impossible_options(name, options, message):
    with pytest.raises(UserError, match=message):
        registry.load(name).make_options(options)
