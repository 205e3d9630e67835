"""What methods' files say of themselves, read without importing them: the same as the classes say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmark import registry
from benchmark.files import ROOT, UserError


@pytest.mark.parametrize("name", registry.names())
def test_it_is_what_the_class_says(name: str) -> None:
    cls, about = registry.load(name), registry.about(name)
    assert about.title == cls.title
    assert about.trains_as == registry.trained_name(name)
    for key in ("paper", "kind", "year"):
        declared = getattr(cls, key, None)
        if declared and key != "paper":
            assert getattr(about, key) == declared
    assert about.paper == "" or about.paper.startswith("https://")
    assert about.year is None or 2015 < about.year < 2100


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(registry, "FOLDER", tmp_path)
    return tmp_path


def test_attributes_are_inherited_as_python_does(folder: Path) -> None:
    (folder / "base.py").write_text(
        '"""Base (arXiv 2001.01234, section 2)."""\nfrom benchmark.model.method import Method\n\n\n'
        'class Layer(Module):\n    title = "no method"\n\n\n'
        'class Base(Method):\n    title = "Base"\n    year: int = 2019\n    paper = "2001.01234"\n'
    )
    (folder / "child.py").write_text(
        '"""Child."""\nfrom methods.base import Base\n\n\nclass Child(Base):\n    title = "Child"\n    trains_as = "base"\n'
    )
    (folder / "own.py").write_text(
        'from methods.child import Child\n\n\nclass Own(Child):\n    title = "Own"\n    trains_as = None\n'
        '    paper = "arXiv:2305.00001"\n'
    )
    assert registry.about("base") == registry.About("Base", "https://arxiv.org/abs/2001.01234", 2019, "trained", "base")
    assert registry.about("child") == registry.About("Child", "https://arxiv.org/abs/2001.01234", 2019, "training-free", "base")
    assert registry.about("own") == registry.About("Own", "https://arxiv.org/abs/2305.00001", 2019, "trained", "own")
    (folder / "child.py").write_text('from methods.base import Base\n\n\nclass Child(Base):\n    title = "Changed"\n')
    assert registry.about("child").title == "Changed"
    with pytest.raises(UserError, match="unknown method"):
        registry.about("absent")


def test_torch_is_not_imported() -> None:
    code = (
        "import sys; from benchmark import registry; [registry.about(n) for n in registry.names()]; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
