"""The protocols that have records, and those of their kind, keep their hashes: one that moves leaves its records behind."""

from __future__ import annotations

import pytest

from benchmark import protocol

HASHES = {
    "shapes": "f84033ddc738",
    "shapes-long": "b687c9a02ea9",
    "shapes-28k": "2b1f4c0a782a",
    "shapes-attention-jin": "4a7c48a30dc3",
    "shapes-timestep-shift": "7e8b07b8da01",
    "smoke": "860c3f47a510",
}


@pytest.mark.parametrize("name", HASHES)
def test_a_committed_protocol_keeps_its_hash(name: str) -> None:
    assert protocol.load(name).hash == HASHES[name]
