"""The protocols that have records, and those of their kind, keep their hashes: one that moves leaves its records behind."""

from __future__ import annotations

import pytest

from benchmark import protocol

HASHES = {
    "shapes": "47f6881589a5",
    "shapes-attention-jin": "800fe3584077",
    "shapes-long": "8c221e79a237",
    "shapes-timestep-shift": "987f32fb9c0e",
    "smoke": "860c3f47a510",
}


@pytest.mark.parametrize("name", HASHES)
def test_a_committed_protocol_keeps_its_hash(name: str) -> None:
    assert protocol.load(name).hash == HASHES[name]
