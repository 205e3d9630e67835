"""Names, places, lists in messages, drafts of the dead: what every writer and reader passes."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmark import files
from benchmark.files import UserError


def test_a_list_is_cut_at_five_names() -> None:
    assert files.listed("abc") == "a, b, c"
    assert files.listed(range(5)) == "0, 1, 2, 3, 4"
    assert files.listed(range(17)) == "0, 1, 2, 3, 4 and 12 more"


@pytest.mark.parametrize("name", ["../evil", "/evil", "", ".", "..", "a/b", "a\0b", "a b", "A", "x" * 65, None, 7, ["a"]])
def test_a_name_that_could_lead_anywhere_is_refused(name: object) -> None:
    with pytest.raises(UserError, match="card must be a name of"):
        files.checked_name(name, "card")


@pytest.mark.parametrize("part", ["../evil", "/evil", "a/../b", "", ".", "..", "a//b", "a\0b", "x" * 300])
def test_no_output_leaves_its_root(part: str, tmp_path: Path) -> None:
    with pytest.raises(UserError):
        files.below(tmp_path, "cells", part)
    assert files.below(tmp_path, "cells", "yarn-16x16") == tmp_path / "cells" / "yarn-16x16"


def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", ""):
        with pytest.raises(UserError, match="not a regular file"):
            files.read_text(tmp_path / name)
    with pytest.raises(OSError, match="not a regular file"):
        files.read_regular(tmp_path / "pipe")
    for name in ("x" * 300, "a\0b", "none/there"):
        with pytest.raises(UserError):
            files.read_text(tmp_path / name)


def test_only_drafts_of_the_dead_are_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import os, sys; from benchmark import files\n"
        "with files.atomic(sys.argv[1]) as draft:\n    draft.write_text('half'); os._exit(1)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "result")], cwd=files.ROOT, check=False)
    (left,) = tmp_path.glob(".*.part")
    assert socket.gethostname()[:40] in left.name
    with files.atomic(tmp_path / "mine") as draft:
        draft.write_text("still being written")
        files.sweep(tmp_path)
        assert draft.is_file(), "that of a living process"
        assert not left.exists()
    foreign = []
    for host in ("another-host+4026531836", f"{socket.gethostname()[:40]}+1"):  # the second: a container of the same name
        with monkeypatch.context() as there:
            there.setattr(files, "_here", lambda host=host: host)
            there.setattr(os, "getpid", lambda: 99_999_999)  # a number that is nobody's here
            there.setattr(files.shutil, "rmtree", lambda *_, **__: None)  # it is killed before it tidies up
            with contextlib.suppress(KeyboardInterrupt), files.atomic(tmp_path / "theirs"):
                raise KeyboardInterrupt
        foreign += [draft for draft in tmp_path.glob(".theirs.*.part") if draft not in foreign]
    assert len(foreign) == 2
    files.sweep(tmp_path)
    assert all(draft.is_dir() for draft in foreign), "of another machine, and young"
    for draft in foreign:
        os.utime(draft, (0, 0))
    files.sweep(tmp_path)
    assert not any(draft.exists() for draft in foreign)


def test_a_lock_keeps_others_out_and_ends_with_its_process_not_with_a_child_of_it(tmp_path: Path) -> None:
    """The child, which outlives its parent as a loader's workers do, shares the parent's descriptors."""
    path, said = tmp_path / ".lock", []
    script = f"""
import os, sys, time
from pathlib import Path
from benchmark import files
with files.locked(Path({str(path)!r})):
    if os.fork() == 0:
        time.sleep(60)
        os._exit(0)
    print("held", flush=True)
    sys.stdin.read()
"""
    holder = subprocess.Popen([sys.executable, "-c", script], cwd=files.ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              start_new_session=True)  # fmt: skip
    try:
        assert holder.stdout.readline() == b"held\n"

        def busy() -> None:
            said.append("busy")
            holder.kill()

        start = time.monotonic()
        with files.locked(path, busy):
            assert said == ["busy"]
        assert time.monotonic() - start < 30

        def held() -> None:
            raise AssertionError("the lock outlived its block")

        with files.locked(path, held):
            pass
        assert not files._held
    finally:
        os.killpg(holder.pid, signal.SIGKILL)
        holder.wait()


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Lustre that was mounted without them."""

    def flock(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("fcntl.flock", flock)
    with (
        pytest.raises(files.UserError, match=r"without locks \(Function not implemented;.*choose another OUT"),
        files.locked(tmp_path / ".lock"),
    ):
        pass


def test_a_file_is_replaced_whole_and_flushed_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, seen, fsync, replace = tmp_path / "a", [], os.fsync, os.replace
    files.write_text(path, "old")
    os.link(path, tmp_path / "held")  # as one who reads it holds it
    monkeypatch.setattr(os, "fsync", lambda handle: seen.append("fsync") or fsync(handle))
    monkeypatch.setattr(os, "replace", lambda *paths: seen.append("replace") or replace(*paths))
    files.write_text(path, "new")
    assert ((tmp_path / "held").read_text(), path.read_text(), seen[:2]) == ("old", "new", ["fsync", "replace"])
