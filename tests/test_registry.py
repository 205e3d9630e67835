"""What methods' files say of themselves, read without importing them: the same as the classes say."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import small

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
    registry.revisions("child")["base"] = 9  # what is handed out is the caller's own
    assert registry.revisions("child") == expected
    (folder / "base.py").write_text("class Base(Method):\n    revision = 10\n")
    assert registry.revisions("child") == {"base": 10, "child": 10}
    (folder / "base.py").write_text("from methods.other import Other\n\n\nclass Base(Other):\n    title = 'y'\n")
    assert registry.revisions("child") == {"base": 7, "child": 7, "other": 7}
    (folder / "base.py").unlink()
    assert registry.revisions("child") == {"child": 0}, "of a method that cannot be read"


METHOD = "from benchmark.model.method import Method\n\n\n"
GOOD = f"{METHOD}class Good(Method):\n    title = 'Good'\n"
OTHER = "from methods.good import Good\n\n\nclass Other(Good):\n    title = 'Other'\n    trains_as = 'good'\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"{METHOD}x = 1\n\n\ndef f()\n    pass\n", "methods/bad.py, line 7: expected ':'"),
        ("return 1\n", "methods/bad.py, line 1: 'return' outside function"),
        ("\0", "methods/bad.py"),
        ('"""A docstring alone."""\n', "methods/bad.py defines no Method: its class must name its base as imported by "
         "`from benchmark.model.method import Method` or `from methods.NAME import Class`"),
        ("class Bad(Absent):\n    pass\n", "methods/bad.py defines no Method"),
        ("import methods.good as g\n\n\nclass Bad(g.Good):\n    trains_as = 'good'\n",
         "methods/bad.py, line 1: write `from methods.NAME import Class` instead of `import methods.good as g`"),
        ("from methods import good\n\n\nclass Bad(good.Good):\n    pass\n",
         "methods/bad.py, line 1: write `from methods.NAME import Class` instead of `from methods import good`"),
        ("from .good import Good\n\n\nclass Bad(Good):\n    pass\n", "instead of `from .good import Good`"),
        ("from benchmark.model import method\n\n\nclass Bad(method.Method):\n    pass\n", "methods/bad.py defines no Method"),
        ("from methods.absent import Absent\n\n\nclass Bad(Absent):\n    pass\n",
         "methods/bad.py, line 1: there is no methods/absent.py"),
        (f"{METHOD}class One(Method):\n    pass\n\n\nclass Two(Method):\n    pass\n",
         "methods/bad.py must define exactly one Method, it defines 2"),
        (f"BASE = 'good'\n{OTHER}    trains_as = BASE\n", "methods/bad.py: trains_as must be a string literal"),
        (f"{OTHER}    note, trains_as = NAMES\n", "methods/bad.py: trains_as must be a string literal"),
        (f"{OTHER}    trains_as = 3\n", "methods/bad.py: trains_as must be a string literal"),
        (f"{OTHER}    trains_as = 'god'\n", "methods/bad.py: trains_as: unknown method 'god'; did you mean 'good'?"),
        (f"{OTHER}    trains_as = 'other'\n",
         "methods/bad.py: trains_as is 'other', which is training-free itself; name the method that both use: 'good'"),
        (f"{OTHER}    trains_as = 'bad'\n", "methods/bad.py: trains_as is 'bad', the method itself; leave it out"),
        (f"{OTHER}    year = str(2024)\n", "methods/bad.py: year must be an integer literal"),
    ],
)  # fmt: skip
def test_a_broken_file_is_named_and_leaves_the_others_alone(
    text: str, said: str, folder: Path, capsys: pytest.CaptureFixture
) -> None:
    for name, content in (("good", GOOD), ("other", OTHER), ("bad", text)):
        (folder / f"{name}.py").write_text(content)
    if "year" not in said:
        for refused in (registry.trained_name, registry.load):
            with pytest.raises(UserError) as error:
                refused("bad")
            assert said in str(error.value)
            assert "\n" not in str(error.value)
    registry._warn.cache_clear()
    assert registry.about("bad") == registry.About("bad", "", None, registry.BROKEN, "bad")
    assert registry.shared() == "good"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: ")
    assert said in line
    assert registry.about("other") == registry.About("Other", "", None, "training-free", "good")
    assert registry.revisions("other") == {"good": 1, "other": 1}


def test_records_of_a_broken_file_are_stale(folder: Path, capsys: pytest.CaptureFixture) -> None:
    (folder / "good.py").write_text("class\n")
    (folder / "other.py").write_text(OTHER)
    registry._warn.cache_clear()
    assert registry.revisions("other") == {"other": 0}
    assert capsys.readouterr().err == "warning: methods/good.py, line 1: invalid syntax\n"


def test_a_class_is_found_through_what_the_file_imports(folder: Path) -> None:
    (folder / "good.py").write_text(f"{GOOD}\n\nclass Slot(Module):\n    title = 'no method'\n")
    (folder / "_helpers.py").write_text(f"{METHOD}class Shared(Method):\n    year = 2020\n")
    (folder / "other.py").write_text(
        "from methods._helpers import Shared as Base\nfrom methods.good import Good, Slot\n\n\n"
        "class Mine(Slot):\n    title = 'no method'\n\n\nclass Good(Mixin, Good, Base):\n    trains_as = 'good'\n"
    )
    assert registry.about("other") == registry.About("Good", "", 2020, "training-free", "good")
    assert registry.revisions("other") == {"_helpers": 1, "good": 1, "other": 1}
    assert registry.names() == ["good", "other"]


def test_a_class_trains_as_its_file_says(monkeypatch: pytest.MonkeyPatch) -> None:
    cls = registry.load("yarn")
    monkeypatch.setattr(cls, "trains_as", None)
    with pytest.raises(UserError, match=r"methods/yarn\.py: trains_as is None when it is imported and 'extrapolation' when"):
        registry.load("yarn")


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


def test_a_method_is_built_with_the_protocols_options() -> None:
    rules = small.protocol(options={"rpe2d": {"h_max": 20}, "ledit": {"recipe": "finetune"}})
    assert registry.build("rpe2d", rules, "16x24", 0).options.h_max == 20
    assert registry.build("ledit", rules, "16x24", 0).options.recipe == "finetune"
    assert registry.build("ledit_finetune", rules, "16x24", 0).options.dilated == 0.1
