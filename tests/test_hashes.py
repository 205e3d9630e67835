"""The committed protocols keep their hashes: records hold them, and a hash that moves leaves every record of its table behind."""

from __future__ import annotations

import pytest

from benchmark import protocol

HASHES = {
    "imagenet-256-b2": "241b3bc2ced7",
    "imagenet-256-s2": "5e17828259a9",
    "imagenet-256-s2-10k": "ba1d36c8b970",
    "imagenet-256-xl2": "97646d1674cc",
    "imagenet-256-xl2-ft": "50f95218d246",
    "imagenet-512-xl2": "808be73a8a3c",
    "imagenet-512-xl2-ft": "39fa3f253357",
    "shapes": "47f6881589a5",
    "shapes-attention-jin": "800fe3584077",
    "shapes-gpu": "4a54a861dd7b",
    "shapes-timestep-shift": "987f32fb9c0e",
    "smoke": "860c3f47a510",
}


@pytest.mark.parametrize("name", HASHES)
def test_a_committed_protocol_keeps_its_hash(name: str) -> None:
    assert protocol.load(name).hash == HASHES[name]
