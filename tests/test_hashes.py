"""The protocols that have records, and those of their kind, keep their hashes: one that moves leaves its records behind."""

from __future__ import annotations

import pytest

from benchmark import protocol

HASHES = {
    "shapes": "6462763686de",
    "shapes-attention-jin": "caf14cf4d36f",
    "shapes-timestep-shift": "a1ee07af0a51",
    "smoke": "860c3f47a510",
}


@pytest.mark.parametrize("name", HASHES)
def test_a_committed_protocol_keeps_its_hash(name: str) -> None:
    assert protocol.load(name).hash == HASHES[name]
