"""Bad inputs: what is given, to which command, and what must be said. Every one ends with exit code 2 and one line.

A case is a function of a folder, in which it may write what it gives; it returns the command's words. OUT is added.
"""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from benchmark.files import ROOT

SMOKE = ["--protocol", "smoke"]


@dataclass(frozen=True)
class Case:
    name: str
    words: Callable[[Path], list[str]]
    said: str  # in the error's line
    quick: bool = False  # refused before anything heavy: part of `make test`


CASES: list[Case] = []


def case(name: str, said: str, words: Callable[[Path], list[str]] | list[str], quick: bool = False) -> None:
    CASES.append(Case(name, words if callable(words) else lambda _: list(words), said, quick))


# --- Protocols: overrides --------------------------------------------------------------------------------------------

for override, said in [
    *[(f"train.lr={value}", "train.lr") for value in (".nan", ".inf", "-.inf", "-1", "1e30", "[]", "text", "true", "")],
    *[(f"train.weight_decay={value}", "train.weight_decay") for value in (".nan", ".inf", "-1", "1e9")],
    *[(f"train.clip={value}", "train.clip") for value in (".nan", ".inf", "-1")],
    *[(f"train.warmup={value}", "train.warmup") for value in ("-1", "1.5", "1000000000000")],
    *[(f"train.decay={value}", "train.decay") for value in ("-1", ".inf")],
    *[
        (f"train.steps={value}", "train.steps")
        for value in ("0", "-1", "1000000000000000000000000000000", "1e3", "null", "{a: 1}")
    ],
    *[(f"train.batch={value}", "train.batch") for value in ("0", "-8", "99999999999")],
    *[
        (f"train.betas={value}", "train.betas")
        for value in ("[]", "[0.9]", "[0.9,1.1]", "[0.9,.nan]", "0.9", "[a,b]", "[-1,0.9]")
    ],
    *[(f"train.ema={value}", "train.ema") for value in ("1", "-0.1", ".nan")],
    *[(f"core.mlp_ratio={value}", "core.mlp_ratio") for value in ("0", "-1", ".nan", ".inf", "0.0001")],
    *[(f"core.rope_base={value}", "core.rope_base") for value in ("0", "-1", ".nan", ".inf")],
    *[(f"core.patch={value}", "patch") for value in ("0", "-4", "4.5", "100000")],
    *[(f"core.width={value}", "width") for value in ("0", "31", "1000000000000")],
    *[(f"core.depth={value}", "core.depth") for value in ("0", "1000000000")],
    *[(f"core.heads={value}", "heads") for value in ("0", "3")],
    *[(f"core.channels={value}", "channels") for value in ("0", "4", "-3")],
    *[(f"core.classes={value}", "classes") for value in ("0", "3")],
    *[(f"data.factor={value}", "factor") for value in ("0", "8", "-1")],
    *[(f"data.count={value}", "data.count") for value in ("-1", "1.5", "1000000000000")],
    *[(f"data.card={value}", "unknown data set") for value in ("nowhere", "''", "'../../x'")],
    *[(f"data.card={value}", "data.card") for value in ("7", "[a]")],
    *[(f"objective.shift={value}", "objective.shift") for value in ("0", "-1", ".nan", ".inf")],
    *[(f"objective.class_dropout={value}", "class_dropout") for value in ("1", "-0.1", ".nan")],
    ("objective.class_dropout=0", "guidance needs a null class"),
    *[(f"sample.guidance={value}", "sample.guidance") for value in (".nan", ".inf", "-1", "1e30")],
    *[(f"sample.labels={value}", "sample.labels") for value in ("even", "0", "[balanced]")],
    *[(f"sample.count={value}", "sample.count") for value in ("0", "1", "-5", "100000000000000")],
    *[(f"sample.steps={value}", "sample.steps") for value in ("0", "-1", "10000000000")],
    *[(f"score.reference={value}", "score.reference") for value in ("0", "-1", "1000000000000")],
    *[(f"score.splits={value}", "score.splits") for value in ("-1", "33")],
    ("train.lr=${oc.env:HOME}", "interpolation"),
    ("train.lr=!!python/object/apply:os.system [id]", "the tag"),
    ("train.lr=" + "[" * 1000, "nested"),
    ("train.lr=[1", "not valid YAML"),
    ("train.step=3", "did you mean 'train.steps'"),
    ("options.nosuch.a=1", "unknown method 'nosuch'"),
    ("options.yarn.temperature=.nan", "finite"),
    ("cells.16x16=[]", "cells.16x16"),
    ("cells.16x16=[200000x200000]", "16384"),
    ("cells.16x16=[15x15]", "not a multiple"),
    ("cells.0x0=[16x16]", "HEIGHTxWIDTH"),
    ("cells.16x16=16x16", "cells.16x16"),
    ("methods=[7]", "methods"),
    ("nonsense", "is not an override"),
]:
    late = override == "core.classes=3"  # fewer than the data have: found when they are there
    case(f"override {override[:50]}", said, ["train", "extrapolation", *SMOKE, override], quick=not late)

# --- Protocols and cards: files --------------------------------------------------------------------------------------


def given(name: str, content: bytes | str, verb: str = "train") -> Callable[[Path], list[str]]:
    def words(folder: Path) -> list[str]:
        path = folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return [verb, *(["extrapolation"] if verb == "train" else []), "--protocol", str(path)]

    return words


def carded(content: bytes | str) -> Callable[[Path], list[str]]:
    def words(folder: Path) -> list[str]:
        path = folder / "mine.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return ["shards", *SMOKE, f"data.card={path}", "data.count=0"]

    return words


FILES = [
    ("a number", "7\n", "must hold fields"),
    ("a list", "- 7\n", "must hold fields"),
    ("nothing", "", "must hold fields"),
    ("not UTF-8", b"title: \xff\xfe\n", "not UTF-8"),
    ("a NUL", b"title: a\x00b\n", "not valid YAML"),
    ("a thousand levels", "title: " + "[" * 1000 + "]" * 1000, "nested"),
    ("aliases that grow", "".join(f"x{i}: &x{i} [{f'*x{i - 1}, ' * 9 if i else 'a'}]\n" for i in range(10)), "alias"),
    ("a Python tag", "title: !!python/object/apply:os.system [id]\n", "the tag"),
    ("interpolation", "title: ${oc.env:HOME}\n", "interpolation"),
    ("a key twice", "title: a\ntitle: b\n", "twice"),
    ("a million brackets", "title: " + "[" * 1_000_000, "nested"),
    ("ten megabytes", "#" * 10_000_000, "too many for a file of this kind"),
]
for name, content, said in FILES:
    case(f"protocol file: {name}", said, given("mine.yaml", content), quick=True)
    case(f"card file: {name}", said, carded(content))
case("protocol file: its own name", "name cannot be set", given("mine.yaml", "base: smoke\nname: ../../evil\n"), quick=True)
case("protocol file: a path as its name", "must be a name of", given("My protocol.yaml", "base: smoke\n"), quick=True)
case("protocol file: unknown base", "unknown base", given("mine.yaml", "base: smok\n"), quick=True)
case("protocol file: unknown section", "unknown", given("mine.yaml", "base: smoke\ntrane: {steps: 1}\n"), quick=True)
for name in ("../../etc/passwd", "/", "x" * 5000, "smoke.yaml"):  # an empty one is one that was not given
    case(f"protocol {name[:20]!r}", "unknown protocol", ["train", "extrapolation", "--protocol", name], quick=True)
DRAWN = "kind: shapes\nclasses: 8\n"
for text, said in (
    ("name: ../../evil\n", "name must be"), ("name: /tmp/evil\n", "name must be"), ("name: null\n", "name must be"),
    ("name: 7\n", "name must be"), ("name: ''\n", "name must be"), (f"name: {'x' * 300}\n", "name must be"),
    ("count: many\n", "count must be"), ("count: -1\n", "count must be"), ("size: 64\n", "size must be"),
    ("size: 64x64\n", "size must be"), ("size: [64.5, 64]\n", "size"), ("size: [0, 64]\n", "size"), ("size: [64]\n", "size"),
    ("size: [1000000, 1000000]\n", "size"), ("range: [0]\n", "range"), ("splits: 3\n", "splits"), ("licence: [a]\n", "licence"),
    ("colour: red\n", "unknown setting of the card"),
    ("count: .inf\n", "count must be"), ("description: {a: b}\n", "description"),
):  # fmt: skip
    case(f"card: {text.strip()[:40]}", said, carded(DRAWN + text))
case("card: a thousand million pictures", "on disk", carded("kind: shapes\nclasses: 8\nsize: [64, 64]\ncount: 1000000000\n"))

# --- Options of the command line -------------------------------------------------------------------------------------

TRAIN = ["train", "extrapolation", *SMOKE]
for words, said in (
    (["--devices", "²"], "DEVICES"), (["--devices", "0"], "DEVICES"), (["--devices", "-1"], "DEVICES"),
    (["--devices", "many"], "DEVICES"), (["--devices", "100000"], "DEVICES"), (["--devices", "9" * 5000], "DEVICES"),
    (["--nodes", "0"], "NODES"), (["--nodes", "2"], "NODES is 2"), (["--nodes", "-1"], "NODES"),
    (["--every-minutes", "inf"], "every-minutes"), (["--every-minutes", "nan"], "every-minutes"),
    (["--every-minutes", "-1"], "0.01"),
    (["--every-steps", "0"], "every-steps"), (["--every-steps", "1" + "0" * 20], "intervals must be"), (["--seed", "-1"], "seed"),
    (["--seed", "x"], "seed"), (["--seed", "1" + "0" * 20], "seed"), (["--workers", "-1"], "workers"),
    (["--train", "20x20"], "has no cell"), (["--train", "../x"], "has no cell"), (["--nonsense"], "unknown option of train"),
):  # fmt: skip
    case(f"option {' '.join(words)[:30]}", said, [*TRAIN, *words])
for words, said in (
    (["trane", "nope"], "unknown verb 'trane'; did you mean 'train'? (choose from: bench, "), ([""], "unknown verb"),
    (["x" * 5000], "unknown verb"), (["--nonsense"], "unknown option '--nonsense' (choose from: --help, --version)"),
    (["plan", "--protocl", "smoke"], "unknown option of plan '--protocl'"),
    ([*TRAIN, "--sed", "0"], "unknown option of train '--sed'; did you mean '--seed'? (choose from: --compile, --data, "),
    ([*TRAIN, "-q"], "unknown option of train '-q'"),
    (["train"], "train needs METHOD: a file name in methods/; see `list`"),
    (["reference", "shapes"], "reference needs SIZE: HEIGHTxWIDTH in pixels"),
    (["list", "methods"], "got unexpected extra argument(s) (methods); see `python -m benchmark list --help`"),
    ([*TRAIN, "--price", "2"], "unknown option of train '--price'"),
    (["bench", "nope", "--keep=1"], "option '--keep' does not take"),
    ([*TRAIN, "--seed", "x"], "--seed: Input should be a valid integer"),
    ([*TRAIN, "--seed", "-1"], "--seed: Input should be greater than or equal to 0"),
    ([*TRAIN, "--seed", str(2**32)], "--seed: Input should be less than or equal to 4294967295"),
    ([*TRAIN, "--seed", "1\n2" * 2000], "--seed: "),
):  # fmt: skip
    case(f"usage {' '.join(words)[-40:]!r}", said, words, quick=True)
for name in ("nosuch", "", "../methods/yarn", "x" * 5000, "yarn\n"):
    case(f"method {name[:16]!r}", "unknown method", ["bench", name, *SMOKE], quick=True)
case("reference of 200000x200000", "16384", ["reference", "shapes", "200000x200000", "--detector", "shapes"])
case("reference of no size", "HEIGHTxWIDTH", ["reference", "shapes", "64", "--detector", "shapes"])
case("reference of a folder that is not there", "not a folder", ["reference", "nowhere", "64x64", "--detector", "shapes"])
case("a detector of photos without pictures", "as --data", ["detector", "--name", "photos"], quick=True)
case("a detector that is not trained here", "small detector", ["detector", "--name", "inception"], quick=True)
case("the shapes detector with pictures", "--name photos", ["detector", "--data", "nowhere"], quick=True)
case(
    "a detector of pictures that are not there",
    "does not exist",
    ["detector", "--name", "photos", "--data", "nowhere"],
    quick=True,
)
case("no pictures", "needs DATA", ["bench", "yarn", "--protocol", "imagenet-256-b2"], quick=True)
case("a core beyond any memory", "of memory", [*TRAIN, "core.width=65536", "core.depth=1024", "core.heads=1024"])
case("a batch beyond any memory", "memory", [*TRAIN, "train.batch=1000000", "core.width=1024", "core.heads=8"])

# --- Places ----------------------------------------------------------------------------------------------------------


def out_is_a_file(folder: Path) -> list[str]:
    (folder / "file").write_text("x")
    return [*TRAIN, "--out", str(folder / "file")]


case("OUT is a file", "file", out_is_a_file)
case("OUT is below a device", "null", [*TRAIN, "--out", "/dev/null/x"])
case("OUT is longer than a name may be", "long", [*TRAIN, "--out", "/tmp/" + "x" * 300])
case("OUT in /proc", "/proc", [*TRAIN, "--out", "/proc/x"])
case("OUT is the clone", "give another folder", [*TRAIN, "--out", str(ROOT)], quick=True)
case("OUT is in leaderboards/", "give another folder", [*TRAIN, "--out", str(ROOT / "leaderboards" / "x")], quick=True)

# --- Data ------------------------------------------------------------------------------------------------------------

FOLDER_CARD = "kind: folder\n"


def picture(kind: str = "PNG", size: tuple[int, int] = (20, 20), mode: str = "RGB") -> bytes:
    stream = io.BytesIO()
    Image.new(mode, size).save(stream, kind)
    return stream.getvalue()


def bomb(side: int = 60_000) -> bytes:
    """A PNG of a few bytes that announces 3.6 thousand million pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


def shards_of(make: Callable[[Path], object], card: str = FOLDER_CARD) -> Callable[[Path], list[str]]:
    """`shards` of data that `make` writes into a folder (or of the path that it returns)."""

    def words(folder: Path) -> list[str]:
        (folder / "mine.yaml").write_text(card)
        data = folder / "data"
        data.mkdir()
        made = make(data)
        where = made if isinstance(made, str) else str(data)
        return ["shards", *SMOKE, f"data.card={folder / 'mine.yaml'}", "data.count=0", "--data", where]

    return words


def tree(*extra: tuple[str, bytes]) -> Callable[[Path], None]:
    def make(data: Path) -> None:
        for name, content in (("a/0.png", picture()), ("b/0.png", picture()), *extra):
            (data / name).parent.mkdir(exist_ok=True)
            (data / name).write_bytes(content)

    return make


def fifo(data: Path) -> None:
    tree()(data)
    os.mkfifo(data / "a" / "pipe.png")


def dangling(data: Path) -> None:
    tree()(data)
    (data / "a" / "link.png").symlink_to("/nowhere")


def tar(*members: tarfile.TarInfo | tuple[str, bytes], cut: int = 0) -> Callable[[Path], None]:
    def make(data: Path) -> None:
        with tarfile.open(data / "x.tar", "w") as file:
            for member in members:
                if isinstance(member, tuple):
                    info = tarfile.TarInfo(member[0])
                    info.size = len(member[1])
                    file.addfile(info, io.BytesIO(member[1]))
                else:
                    file.addfile(member)
        if cut:
            os.truncate(data / "x.tar", cut)

    return make


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


PAIR = (("0.png", picture()), ("0.cls", b"0"))
case("pictures: a pipe in a class folder", "not a regular file", shards_of(fifo))
case("pictures: a link to nothing", "unreadable", shards_of(dangling))
case("pictures: a decompression bomb", "unreadable", shards_of(tree(("a/1.png", bomb()))))
case("pictures: a truncated JPEG", "unreadable", shards_of(tree(("a/1.jpg", picture("JPEG", (200, 200))[:400]))))
case("pictures: text", "unreadable", shards_of(tree(("a/1.png", b"hello"))))
case("pictures: empty", "unreadable", shards_of(tree(("a/1.png", b""))))
DEEP = picture(mode="I;16")
case("pictures: all of 16 bits", "more than 8 bits a channel", shards_of(tree(("a/0.png", DEEP), ("b/0.png", DEEP))))
case("pictures: none", "holds no images", shards_of(lambda data: None))
case("pictures: more classes than the card says", "the card says", shards_of(tree(), "kind: folder\nclasses: 3\n"))
case("tar: an absolute path", "points outside", shards_of(tar(*PAIR, ("/tmp/evil.png", picture()))))
case("tar: a path that climbs", "points outside", shards_of(tar(*PAIR, ("../../evil.png", picture()))))
case("tar: a link", "a link", shards_of(tar(*PAIR, special("1.png", tarfile.SYMTYPE, "/etc/passwd"))))
case("tar: a hard link", "a link", shards_of(tar(*PAIR, special("1.png", tarfile.LNKTYPE, "0.png"))))
case("tar: a device", "a device", shards_of(tar(*PAIR, special("1.png", tarfile.CHRTYPE))))
case("tar: a pipe", "a device", shards_of(tar(*PAIR, special("1.png", tarfile.FIFOTYPE))))
case("tar: no label", "has no label", shards_of(tar(("0.png", picture()))))
case("tar: a label that is text", "has no label", shards_of(tar(PAIR[0], ("0.cls", b"dog"))))
case("tar: a label of 5000 digits", "has no label", shards_of(tar(PAIR[0], ("0.cls", b"9" * 5000))))
case("tar: a label of 30 digits", "is not one of", shards_of(tar(PAIR[0], ("0.cls", b"9" * 30))))
case("tar: a negative label", "is not one of", shards_of(tar(PAIR[0], ("0.cls", b"-1"))))
case(
    "tar: a label above the card's classes",
    "is not one of",
    shards_of(tar(PAIR[0], ("0.cls", b"5")), "kind: folder\nclasses: 2\n"),
)
case("tar: two pictures", "has 2 images", shards_of(tar(*PAIR, ("0.jpg", picture("JPEG")))))
case("tar: cut short", "x.tar", shards_of(tar(*PAIR, cut=700)))
case("tar: nested JSON", "has no label", shards_of(tar(PAIR[0], ("0.json", b"[" * 100_000))))
case("tar: text", "x.tar", shards_of(lambda data: (data / "x.tar").write_bytes(b"hello" * 1000)))
case("tar: empty", "x.tar", shards_of(lambda data: (data / "x.tar").write_bytes(b"")))
case("tar: a folder", "not a regular file", shards_of(lambda data: (data / "x.tar").mkdir()))
case("tar: a pipe as the tar", "not a regular file", shards_of(lambda data: os.mkfifo(data / "x.tar")))
case("parquet: text", "parquet file", shards_of(lambda data: (data / "x.parquet").write_bytes(b"hello" * 1000)))
for pattern, said in (("x-{0..999999999}.tar", "more than"), ("x-{0..", "valid brace"), ("{" * 3000, "valid brace"),
                      ("x-{a,b", "valid brace"),
                      ("x-{a,b}{c,d}.tar", "does not"), ("{0..99999}{0..99999}.tar", "more than"), ("y" * 5000, "does not"),
                      ("x-{" + "9" * 400 + ".." + "1" * 400 + "}.tar", "more than"),
                      ("{" + ",".join("ab" * 3000) + "}", "more than"),
                      ("x-{0..5..0}.tar", "does not exist"), ("file.txt", "does not")):  # fmt: skip
    case(f"DATA {pattern[:24]}", said, shards_of(lambda data, pattern=pattern: str(data / pattern)))
case("DATA of a drawn data set", "must be empty", [*TRAIN, "--data", "/tmp"])


def manifest(change: Callable[[dict], object]) -> Callable[[Path], list[str]]:
    """`train` on shards whose manifest was edited by hand."""

    def words(folder: Path) -> list[str]:
        data = folder / "shards"
        shutil.copytree(BASE / "shards", data)
        value = json.loads((data / "manifest.json").read_text())
        changed = change(value)
        (data / "manifest.json").write_text(changed if isinstance(changed, str) else json.dumps(value))
        return [*TRAIN, "--data", str(data)]

    return words


BASE = Path("base")  # a complete smoke run, made by whoever runs these: shards/, runs/, weights.safetensors

for key in ("shards", "count", "kind", "classes", "fingerprint", "index", "card", "format"):
    case(f"manifest without {key}", "manifest", manifest(lambda value, key=key: value.pop(key) and None))
for key, to, said in (
    ("shards", 3, "shards must be a list"),
    ("shards", [{}], "shards.0 lacks name"),
    ("count", "many", "count must be a whole number"),
    ("count", 10**30, "count must be at most"),
    ("count", 1, "not the index of the 1 samples"),
    ("kind", "words", "unknown kind"),
    ("classes", 0, "classes must be at least 1"),
    ("classes", 3, "labels 0 to 7, of 3 classes"),
    ("classes", -1, "classes must be at least 1"),
    ("card", "../../evil", "card must be a name"),
    ("fingerprint", 7, "fingerprint must be a text"),
    ("format", 99, "not of format 1"),
):
    case(f"manifest with {key} {str(to)[:12]}", said, manifest(lambda value, key=key, to=to: value.update({key: to})))
case(
    "manifest: shard that climbs", "shards.0.name", manifest(lambda value: value["shards"][0].update(name="../../etc/passwd.tar"))
)
case("manifest: a list", "manifest", manifest(lambda value: "[]"))
case("manifest: a thousand levels", "manifest", manifest(lambda value: "[" * 100_000))
case("manifest: not JSON", "manifest", manifest(lambda value: "{"))


def index(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], list[str]]:
    def words(folder: Path) -> list[str]:
        data = folder / "shards"
        shutil.copytree(BASE / "shards", data)
        rows = np.load(data / "index.npy")
        np.save(data / "index.npy", change(rows))
        return [*TRAIN, "--data", str(data), "train.steps=8"]

    return words


def with_column(name: str, value: int) -> Callable[[np.ndarray], np.ndarray]:
    def change(rows: np.ndarray) -> np.ndarray:
        rows[name] = value
        return rows

    return change


case("index: labels out of range", "labels", index(with_column("label", 99)))
case("index: negative labels", "labels", index(with_column("label", -1)))
case("index: offsets beyond the shard", "damaged", index(with_column("offset", 2**60)))
case("index: negative offsets", "damaged", index(with_column("offset", -5)))
case("index: sizes beyond memory", "damaged", index(with_column("bytes", 2**60)))
case("index: too few rows", "is not the index", index(lambda rows: rows[:3]))
case("index: another type", "is not the index", index(lambda rows: np.zeros(len(rows))))
case("index: objects", "cannot be read", index(lambda rows: np.array([{}] * len(rows), object)))

# --- Checkpoints and arrays ------------------------------------------------------------------------------------------


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil-was-here",)


def init(name: str, content: Callable[[], bytes]) -> Callable[[Path], list[str]]:
    def words(folder: Path) -> list[str]:
        (folder / name).write_bytes(content())
        return [*TRAIN, f"train.init={folder / name}"]

    return words


def weights() -> bytes:
    return (BASE / "weights.safetensors").read_bytes()


case("init: not there", "does not exist", [*TRAIN, "train.init=/nowhere.safetensors"], quick=True)
case("init: a folder", "does not exist", [*TRAIN, "train.init=/tmp"], quick=True)
case("init: truncated safetensors", "safetensors file", init("x.safetensors", lambda: weights()[:-100]))
case("init: header of 2**60 bytes", "safetensors file", init("x.safetensors", lambda: struct.pack("<Q", 2**60) + b"{}"))
case("init: empty", "not a ", init("x.safetensors", lambda: b""))
case("init: empty .pt", "not a ", init("x.pt", lambda: b""))
case("init: a pickle with code", "refused", init("x.pt", lambda: pickle.dumps(Evil())))
case("init: a pickled list", "refused", init("x.pt", lambda: pickle.dumps([1, 2])))
case("init: text", "not a ", init("x.pt", lambda: b"hello"))


def npz(**arrays: object) -> Callable[[Path], list[str]]:
    def words(folder: Path) -> list[str]:
        np.savez(folder / "x.npz", **arrays)
        return scored(folder / "x.npz")

    return words


def scored(path: Path, reference: str = "") -> list[str]:
    return ["score", "--samples", str(path), "--reference", reference or str(path), "--detector", "shapes"]


def raw(content: bytes) -> Callable[[Path], list[str]]:
    def words(folder: Path) -> list[str]:
        (folder / "x.npz").write_bytes(content)
        return scored(folder / "x.npz")

    return words


def zipped(content: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr("arr_0.npy", content)
    return stream.getvalue()


IMAGES = np.zeros((8, 16, 16, 3), np.uint8)
case("npz: objects", "must be uint8", npz(arr_0=np.array([{}, {}], object)))
case("npz: floats", "uint8", npz(arr_0=IMAGES.astype(float)))
case("npz: channels first", "NCHW", npz(arr_0=IMAGES.transpose(0, 3, 1, 2)))
case("npz: Fortran order", "Fortran", npz(arr_0=np.asfortranarray(IMAGES)))
case("npz: no images", "no images", npz(arr_0=IMAGES[:0]))
case("npz: images without pixels", "without pixels", npz(arr_0=IMAGES[:, :0]))
case("npz: one image", "at least 4", npz(arr_0=IMAGES[:1]))
case("npz: the same image", "same features", npz(arr_0=IMAGES))
case("npz: another name", "arr_0", npz(images=IMAGES))
case("npz: too small for the detector", "at least 8 pixels", npz(arr_0=IMAGES[:, :4, :4]))
case("npz: text", "damaged", raw(b"hello"))
case("npz: empty", "damaged", raw(b""))
case("npz: a header that lies", "damaged", raw(zipped(b"\x93NUMPY\x01\x00\x10\x00{'descr': 'evil'}")))
case("samples: not there", "does not exist", scored(Path("/nowhere.npz")))


def unreferenced(folder: Path) -> list[str]:
    np.savez(folder / "x.npz", arr_0=IMAGES)
    return ["score", "--samples", str(folder / "x.npz"), "--reference", "nowhere.npz"]  # Inception: nothing is fetched


case("a reference that is not there", "nowhere.npz does not exist", unreferenced, quick=True)
case("samples without a reference", "needs --samples and --reference", ["score", "--samples", "x.npz"])

# --- Files of a run --------------------------------------------------------------------------------------------------


def continued(verb: list[str], change: Callable[[Path], object]) -> Callable[[Path], list[str]]:
    """A command on a run some of whose files were damaged."""

    def words(folder: Path) -> list[str]:
        out = folder / "out"
        shutil.copytree(BASE / "runs", out, dirs_exist_ok=True)
        change(out)
        return [*verb, *SMOKE, "--out", str(out)]

    return words


def edit_file(pattern: str, content: bytes) -> Callable[[Path], None]:
    def change(out: Path) -> None:
        found = sorted(out.glob(pattern))
        assert found, pattern
        for path in found:
            path.write_bytes(content)

    return change


SAMPLE = ["sample", "yarn"]  # whose cells are not sampled yet; it uses the weights of extrapolation
for name, content in (("truncated", b"\0" * 100), ("empty", b""), ("text", b"hello")):
    case(f"weights: {name}", "cannot be read", continued(SAMPLE, edit_file("trainings/*/weights.safetensors", content)))
case("training.json: not JSON", "not valid JSON", continued(SAMPLE, edit_file("trainings/*/training.json", b"{")))
case("training.json: not UTF-8", "not UTF-8", continued(SAMPLE, edit_file("trainings/*/training.json", b"\xff")))
case("training.json: deep", "not valid JSON", continued(SAMPLE, edit_file("trainings/*/training.json", b"[" * 100_000)))
case("training.json: a list", "lacks fingerprint", continued(SAMPLE, edit_file("trainings/*/training.json", b"[]")))
case("training.json: no fields", "lacks fingerprint", continued(SAMPLE, edit_file("trainings/*/training.json", b"{}")))


def record_case(name: str, said: str, change: Callable[[dict], object]) -> None:
    """`reproduce`-free reading of one record: the page's check of a record file."""

    def words(folder: Path) -> list[str]:
        source = sorted((ROOT / "leaderboards" / "records" / "shapes-long").glob("*/*.json"))[0]
        value = json.loads(source.read_text())
        changed = change(value)
        target = folder / "records" / "shapes-long" / source.parent.name / source.name
        target.parent.mkdir(parents=True)
        target.write_bytes(changed if isinstance(changed, bytes) else json.dumps(value).encode())
        return ["@records", str(folder / "records")]

    CASES.append(Case(f"record: {name}", words, said, quick=True))


for name, said, change in (
    ("unknown schema", "schema 99 is unknown", lambda v: v.update(schema=99)),
    ("NaN", "NaN", lambda v: v["training"].update(loss=math.nan)),
    ("infinite", "Infinity", lambda v: v["hours"].update(sample=math.inf)),
    ("5000 digits", "digits", lambda v: json.dumps(v).replace('"seed": ', '"seed": ' + "9" * 5000).encode()),
    ("a path as a name", "method.name must be", lambda v: v["method"].update(name="../../etc")),
    ("markup as a name", "method.name must be", lambda v: v["method"].update(name="<script>")),
    ("markup as a protocol", "protocol.name must be", lambda v: v["protocol"].update(name="<b>")),
    ("a duplicate key", "duplicate key", lambda v: json.dumps(v).replace('"seed"', '"seed": 0, "seed"').encode()),
    ("a thousand levels", "not valid JSON", lambda v: b"[" * 100_000),
    ("not UTF-8", "not UTF-8", lambda v: b"\xff\xfe"),
    ("a list", "must be an object", lambda v: b"[]"),
    ("empty", "not valid JSON", lambda v: b""),
    ("another seed than its place", "holds another cell", lambda v: v.update(seed=77)),
    ("a negative FID", "scores.fid.value", lambda v: v["scores"]["fid"].update(value=-1)),
    ("a score as text", "scores.fid.value", lambda v: v["scores"]["fid"].update(value="low")),
    ("unknown score", "beauty is unknown", lambda v: v["scores"].update(beauty={"value": 1})),
    ("options that are deep", "method.options", lambda v: v["method"].update(options={"a": [[[[[[[[[[1]]]]]]]]]]})),
    ("a title of two lines", "method.title", lambda v: v["method"].update(title="a\nb")),
):
    record_case(name, said, change)
