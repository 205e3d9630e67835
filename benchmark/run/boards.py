"""The last stage: a run's own leaderboard, and submitting a row to the committed ones."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from benchmark import progress, registry
from benchmark.board import generate, ranking, real, table, view
from benchmark.files import ROOT, UserError, atomic, listed, locked, walk
from benchmark.identity import cells_of
from benchmark.plan.layout import GRID
from benchmark.plan.place import Run
from benchmark.plan.report import make_bench
from benchmark.plan.stages import Sample, Score, graph, records_folder
from benchmark.protocol import Protocol, size_hw
from benchmark.results import record, verified

BOARDS = ROOT / "leaderboards"
WEBP_SIDE = 16383  # pixels that the format can have


def board(protocol: Protocol, run: Run) -> Path | None:
    """Makes the leaderboards of a run under OUT: the committed records with the run's own in their place or beside them.

    Returns:
        their folder. None for custom runs and protocols that are not ranked, whose records belong to no committed table, and for
        a run without records.
    """
    source, target = records_folder(protocol, run) / protocol.name, run.out / "leaderboards"
    if protocol.custom or not protocol.ranked or not any(source.glob("*/*.json")):
        return None
    target.mkdir(parents=True, exist_ok=True)
    with locked(run.out / ".leaderboards.lock"):  # against another run that shares OUT
        for folder in ("records", "grids", "notes"):
            shutil.rmtree(target / folder, ignore_errors=True)  # of an older protocol, or gone since
            _copy_tree(BOARDS / folder, target / folder)
        _copy_tree(source, target / "records" / protocol.name)
        new = new_records(protocol, run)
        keep_grids(protocol, [record.read(source.parent / place, protocol) for place in new], run, target)
        if (BOARDS / verified.NAME).is_file():
            shutil.copyfile(BOARDS / verified.NAME, target / verified.NAME)
        else:
            (target / verified.NAME).unlink(missing_ok=True)
        generate.generate(target / "records", target, new={place.parts[:2] for place in new})
        return target


def _copy_tree(source: Path, target: Path) -> None:
    """Copies the files of a folder, if it is there, but for drafts; not their modes, which may be a read-only clone's."""
    for folder, names in walk(source):
        place = target / Path(folder).relative_to(source)
        for name in names:
            place.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Path(folder, name), place / name)


def new_records(protocol: Protocol, run: Run) -> list[Path]:
    """The records of a run under OUT that are not the committed ones: their paths below a folder of records."""
    source, found = records_folder(protocol, run), []
    for path in (source / protocol.name).glob("*/*.json"):  # another protocol with the same rules may have some beside them
        committed = BOARDS / "records" / path.relative_to(source)
        if not committed.is_file() or committed.read_bytes() != path.read_bytes():
            found.append(path.relative_to(source))
    return found


def keep_grids(protocol: Protocol, records: Sequence[record.Record], run: Run, target: Path) -> list[Path]:
    """Puts the first rows of the grids of records' cells below a folder of leaderboards, as WebP: a tenth of the bytes.

    Of a cell whose samples are not there any more no grid is left: an older one would not belong to its new record. Images that
    are also those of the base have one picture, the base's, which the page shows for both rows.

    Returns:
        the new pictures.
    """
    written, without = [], []
    wanted = {(item.method, *item.pair, item.seed) for item in records}
    known = {name for name in registry.names() if registry.about(name).kind != registry.BROKEN}
    rows = sorted({(item.method, item.seed) for item in records if item.method in known}, key=_base_first)
    for stage in [stage for method, seed in rows for stage in graph(protocol, [method], seed, run)]:
        if not isinstance(stage, Sample):
            continue
        cell = stage.cell
        if (cell.method, cell.train, cell.test, cell.seed) not in wanted:
            continue
        path = target / "grids" / protocol.name / cell.method / f"{cell.train}-{cell.test}-s{cell.seed}.webp"
        _hand_on(protocol, path)
        for ending in view.PICTURES:  # an older one may have another format
            path.with_suffix(ending).unlink(missing_ok=True)
        if not (stage.is_complete() and (source := stage.images / GRID).is_file()):
            without.append(stage.title)
            continue
        height = real.ROWS * (size_hw(cell.test)[0] + real.GAP) - real.GAP
        with Image.open(source) as sheet, atomic(path) as draft:
            first = sheet.convert("RGB").crop((0, 0, sheet.width, min(height, sheet.height)))
            while max(first.size) > WEBP_SIDE:
                first = first.reduce(2)
            first.save(draft, format="WEBP", quality=90, method=6)  # at 75 the seams between patches would be smoothed away
        written.append(path)
    for path in sorted((target / "grids" / protocol.name).glob("*/*.webp")):
        base = path.parent.parent / _base(path.parent.name) / path.name
        if base != path and base.is_file() and base.read_bytes() == path.read_bytes() and _is_shared(protocol, path, target):
            path.unlink()
    if without:
        progress.say(f"no sample grid for {listed(without)}: the samples are not in {run.out}")
    return [path for path in written if path.is_file()]


def _base(method: str) -> str:
    """The method whose checkpoint a row uses; itself for one whose file is broken or gone."""
    return registry.about(method).trains_as if method in registry.names() else method


def _base_first(row: tuple[str, int]) -> tuple[bool, str, int]:
    return _base(row[0]) != row[0], *row


def _is_shared(protocol: Protocol, picture: Path, boards: Path) -> bool:
    """Whether the images of a cell are its base's, as the FIDs of their records tell; a picture has the name of its record."""
    fids = []
    for method in (picture.parent.name, _base(picture.parent.name)):
        path = boards / "records" / protocol.name / method / f"{picture.stem}.json"
        scores = record.read(path, protocol).scores if path.is_file() else None
        fids.append(scores["fid"]["value"] if scores else None)
    return record.same_images(*fids)


def _hand_on(protocol: Protocol, picture: Path) -> None:
    """Gives the picture of a base, before another takes its place, to the committed rows that are shown with it."""
    if not picture.is_file():
        return
    for folder in (BOARDS / "records" / protocol.name).glob("*"):
        own = picture.parent.parent / folder.name / picture.name
        if own == picture or _base(folder.name) != picture.parent.name or view.picture(own.parent, own.stem):
            continue
        if _is_shared(protocol, own, BOARDS):
            own.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(picture, own)


@contextlib.contextmanager
def changing() -> Iterator[None]:
    """Held while the committed leaderboards change: two at once would leave tables without each other's row."""

    def busy() -> None:
        progress.say(f"waiting for another process, which is changing {BOARDS}")

    with contextlib.ExitStack() as held:
        try:
            held.enter_context(locked(BOARDS.parent / ".leaderboards.lock", busy))
        except (UserError, OSError):  # a file system without locks, or a read-only one
            progress.say(f"{BOARDS} cannot be locked: change it by one command at a time")
        yield


def submit(protocol: Protocol, method: str, seed: int, run: Run) -> tuple[list[Path], str]:
    """Copies a complete row of a ranked protocol from OUT into leaderboards/, with its grids, and regenerates them.

    Everything is made in a copy first: what cannot be read, drawn or ranked leaves leaderboards/ as it was.

    Returns:
        (what was written, what that changes in the rankings as markdown).

    Raises:
        UserError: a custom run, a protocol that is not ranked, a row that lacks a cell or holds a stale one, a row made with
            code that was not committed or is unknown, or of different code or trainings, or of one that broke down.
    """
    if protocol.custom or not protocol.ranked:
        kind = "a custom run" if protocol.custom else f"protocol '{protocol.name}', which is not ranked,"
        raise UserError(f"records of {kind} have no leaderboard")
    source = records_folder(protocol, run)
    paths = [record.place(protocol.name, method, cell.train, cell.test, seed) for cell in cells_of(protocol, [method], seed)]
    missing = [path.name for path in paths if not (source / path).is_file()]
    row, bench = f"the row of {method} with seed {seed}", f"run `{make_bench(protocol, method, seed, run)}`"
    if missing:
        raise UserError(f"{row} lacks {len(missing)} of {len(paths)} cells in {source}: {bench}")
    values = [record.read(source / path, protocol) for path in paths]
    stale = [path.name for path, value in zip(paths, values, strict=True) if value.stale]
    if stale:
        raise UserError(f"{row} was made by code that has changed since ({listed(stale)} in {source}): {bench}")
    if dirty := [path.name for path, value in zip(paths, values, strict=True) if value.value["code"]["dirty"]]:
        raise UserError(
            f"{row} was made with changes to benchmark/, methods/ or datasets/ that were not committed ({listed(dirty)}): commit "
            f"them and {bench}, which makes new records"
        )
    if any(value.value["code"]["commit"] is None for value in values):
        why = record.git_state(*record.CODE).why
        remedy = f"git cannot do so here either ({why})" if why else f"{bench}, which scores it anew"
        raise UserError(f"{row} was made where git could not name the commit, so its code is unknown: {remedy}")
    made = [stage.is_complete() for stage in graph(protocol, [method], seed, run) if isinstance(stage, Score)]
    commits = {value.value["code"]["commit"] for value in values}
    trained = {(value.train, value.value["training"]["fingerprint"]) for value in values}
    if (len(commits) > 1 and any(made) and not all(made)) or len(trained) > len(protocol.cells):
        raise UserError(f"{row} holds cells of different code or trainings: {bench}, which makes the others anew")
    if broken := next((value.broken for value in values if value.broken), ""):
        raise UserError(f"{row} cannot be submitted: {broken}; lower train.lr")
    with changing(), tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / BOARDS.name
        shutil.copytree(BOARDS, draft)
        before = {path.relative_to(draft.parent) for path in draft.rglob("*") if path.is_file()}
        if (readme := BOARDS.parent / "README.md").is_file():  # shows a table too
            shutil.copyfile(readme, draft.parent / readme.name)
        for path in paths:
            (draft / "records" / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / path, draft / "records" / path)
        keep_grids(protocol, values, run, draft)
        generate.generate(draft / "records", draft)
        changes = ranking.ranking_changes(BOARDS / "records", draft / "records")
        if notes := outside(protocol, values):
            changes += "\n" + "".join(f"- {note}\n" for note in notes)
        return copied(draft.parent, BOARDS.parent, before), changes


def outside(protocol: Protocol, row: list[record.Record]) -> list[str]:
    """What is said of a new row whose FID at a training size is not where another seed of its base is expected.

    The base of a method without training is the one whose checkpoint it uses; of others, the one whose checkpoint most methods
    use: plain RoPE. The band is the 95 % prediction interval over the seeds of the base's committed records.
    """
    method, seed = row[0].method, row[0].seed
    base = registry.trained_name(method)
    if base == method:
        base = registry.shared()
    known: dict[str, dict[int, float]] = {}  # training size -> seed -> FID
    for path in sorted((BOARDS / "records" / protocol.name / base).glob("*.json")):
        item = record.read(path, protocol)
        if item.train == item.test and item.scores and not item.stale and (base, item.seed) != (method, seed):
            known.setdefault(item.train, {})[item.seed] = item.scores["fid"]["value"]
    said = []
    for item in row:
        if item.train != item.test or item.scores is None:
            continue
        seeds, title = known.get(item.train, {}), registry.about(base).title
        if len(seeds) < table.ENOUGH:
            said.append(f"No reference band at {item.train}: {title} has {len(seeds)} of the {table.ENOUGH} required seeds.")
            continue
        low, high = table.predicted(list(seeds.values()))
        value = item.scores["fid"]["value"]
        if not low <= value <= high:
            said.append(
                f"FID {value:.3g} at the training size {item.train} is outside the reference band of {title}, {max(low, 0):.3g} "
                f"to {high:.3g} (95 % of its seeds, estimated from {len(seeds)}): explain why in the pull request."
            )
    return said


def copied(draft: Path, target: Path, before: set[Path]) -> list[Path]:
    """Makes files of `target` those of `draft`, as far as they differ; those of `before` that are not in the draft go.

    Returns:
        the files that were written.
    """
    written = []
    now = {path.relative_to(draft) for path in draft.rglob("*") if path.is_file()}
    for path in sorted(now):
        content = (draft / path).read_bytes()
        if not (target / path).is_file() or content != (target / path).read_bytes():
            with atomic(target / path) as new:
                new.write_bytes(content)
            written.append(target / path)
    for path in before - now:
        (target / path).unlink(missing_ok=True)
    return written
