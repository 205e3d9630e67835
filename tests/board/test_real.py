"""Real scenes beside samples: the scenes themselves, kept as they are rendered, whatever compressed them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from synthetic import tiny

from benchmark import protocol
from benchmark.board import generate, real
from benchmark.data import shapes
from benchmark.files import UserError


@pytest.fixture
def board(home: Path, rules: protocol.Protocol) -> Path:
    """A board with samples of two sizes, and so with real scenes of these."""
    tiny(home / "records", rules)
    for size in ("16x32", "32x32"):
        path = home / "grids" / "shapes-tiny" / "yarn" / f"16x16-{size}-s0.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (24, 12)).save(path)
    generate.generate(home / "records", home)
    return home


def test_scenes_of_every_size_that_has_samples_a_class_a_column(board: Path) -> None:
    folder = board / "grids" / "real"
    assert sorted(path.name for path in folder.iterdir()) == ["16x32.png", "32x32.png"]
    sheet = np.asarray(Image.open(folder / "16x32.png"))
    assert sheet.shape == (2 * 16 + 2, 8 * 32 + 7 * 2, 3)
    for number in range(16):
        assert shapes.label("reference", number) == number % 8
        y, x = (number // 8) * 18, (number % 8) * 34
        assert (sheet[y : y + 16, x : x + 32] == shapes.render("reference", number, (16, 32))).all()
    assert (sheet[16:18] == 255).all()


def test_another_picture_is_found_and_another_compression_is_not_one(board: Path) -> None:
    path = board / "grids" / "real" / "32x32.png"
    content = path.read_bytes()
    with Image.open(path) as image:
        image.save(path, format="PNG", compress_level=1)
    assert path.read_bytes() != content
    assert generate.generate(board / "records", board, check=True) == []
    changed = np.array(Image.open(path))
    changed[3, 5, 1] ^= 1
    Image.fromarray(changed).save(path)
    for write in (lambda: None, lambda: path.write_bytes(content[:-40]), lambda: path.write_bytes(b"")):
        write()
        with pytest.raises(UserError, match=r"grids/real/32x32\.png shows different content"):
            generate.generate(board / "records", board, check=True)
    assert generate.generate(board / "records", board) == [path.resolve()]
    assert path.read_bytes() == content
    path.unlink()
    with pytest.raises(UserError, match=r"real/32x32\.png is missing"):
        generate.generate(board / "records", board, check=True)


def test_what_no_size_needs_goes(board: Path) -> None:
    left = board / "grids" / "real" / "64x64.png"
    left.write_bytes(real.picture("64x64"))
    with pytest.raises(UserError, match=r"real/64x64\.png is left over"):
        generate.generate(board / "records", board, check=True)
    generate.generate(board / "records", board)
    assert not left.exists()


def test_photographs_are_not_rendered() -> None:
    assert {name for name in protocol.names() if real.is_rendered(protocol.load(name))} == {
        "shapes", "shapes-long", "shapes-28k", "shapes-attention-jin", "shapes-timestep-shift", "smoke",
    }  # fmt: skip
