"""What methods' files say of themselves, read without importing them: the same as the classes say."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import textwrap
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
        if declared:
            assert about.paper.endswith(declared) if key == "paper" else getattr(about, key) == declared
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
    (folder / "child.py").write_text(
        'from methods.base import Base\n\n\nclass Child(Base):\n    title, trains_as = "Both", "base"\n    year = later = 2021\n'
    )
    assert registry.about("child") == registry.About("Both", "https://arxiv.org/abs/2001.01234", 2021, "training-free", "base")
    with pytest.raises(UserError, match="unknown method"):
        registry.about("absent")


def test_the_example_of_the_guide_says_what_it_is(folder: Path) -> None:
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (folder / "half.py").write_text(textwrap.dedent(re.search(r"```python\n(.*?)```", guide, re.DOTALL)[1]))
    shutil.copy(ROOT / "methods" / "extrapolation.py", folder)
    assert registry.about("half") == registry.About(
        "Half speed", "https://arxiv.org/abs/2400.00000", 2024, "training-free", "extrapolation"
    )


def test_a_file_is_read_once_until_it_changes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "base.py").write_text("class Base(Method):\n    revision = 2\n")
    (folder / "other.py").write_text("class Other(Method):\n    revision = 7\n")
    (folder / "child.py").write_text("from methods.base import Base\n\n\nclass Child(Base):\n    title = 'x'\n")
    expected = {"base": 2, "child": 2}
    assert registry.revisions("child") == expected
    with monkeypatch.context() as patch:
        patch.setattr(registry.ast, "parse", None)
        patch.setattr(registry.ast, "walk", None)
        patch.setattr(registry.ast, "literal_eval", None)
        assert registry.revisions("child") == expected
        assert registry.sources("child") == ["methods/base.py", "methods/child.py"]
    registry.revisions("child")["base"] = 9  # what is handed out is the caller's own
    assert registry.revisions("child") == expected
    (folder / "base.py").write_text("class Base(Method):\n    revision = 10\n")
    assert registry.revisions("child") == {"base": 10, "child": 10}
    (folder / "base.py").write_text("from methods.other import Other\n\n\nclass Base(Other):\n    title = 'y'\n")
    assert registry.revisions("child") == {"base": 7, "child": 7, "other": 7}
    (folder / "base.py").unlink()
    with pytest.raises(FileNotFoundError):
        registry.revisions("child")


def test_what_is_no_method_is_not_listed(folder: Path) -> None:
    for name in ("yarn.py", "_shared.py", ".#yarn.py", "README.md", "yarn.pyc"):
        (folder / name).write_text("")
    assert registry.names() == ["yarn"]


def test_torch_is_not_imported() -> None:
    code = (
        "import sys; from benchmark import registry; [registry.about(n) for n in registry.names()]; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
