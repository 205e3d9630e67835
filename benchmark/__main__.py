"""The command line: `python -m benchmark <verb> --help`. `make` wraps the same commands."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import signal
import sys
import threading
import time
import tomllib
import traceback
from importlib import metadata
from typing import Annotated, NoReturn

import typer

from benchmark.cli import stages, tools
from benchmark.cli.usage import Verbs
from benchmark.files import PARENT, ROOT, STOP_SIGNALS, UNWRITABLE, Stopped, UserError, is_full, is_memory, shown, stop_signals

DENIED = (*UNWRITABLE, errno.ENOENT, errno.EINVAL)  # in one line, without a traceback

app = typer.Typer(
    name="python -m benchmark",
    cls=Verbs,
    help="PosBench: positional encodings for Diffusion Transformers, on one core, at every train -> test resolution.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.registered_commands += [*stages.app.registered_commands, *tools.app.registered_commands]


def version(wanted: bool) -> None:
    if wanted:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        print(f"posbench {project['version']}, torch {metadata.version('torch')}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[bool, typer.Option("--version", callback=version, is_eager=True, help="show versions and exit")] = False,
) -> None:
    pass


CONTINUING = ("bench", "sweep", "reproduce", "shards", "latents", "train", "sample", "score")  # from what is complete


def stop(number: int, frame: object) -> None:
    """Ctrl-C and the like. Files are complete or absent, so leaving is safe everywhere; training puts its own handler on top.

    A terminal and SLURM signal the entire process group; a decoding worker must live until the main process has saved.
    """
    if multiprocessing.parent_process() is not None:
        return
    for other in STOP_SIGNALS:
        signal.signal(other, signal.SIG_IGN)  # a second one would cut short what cleans up after the first
    kept = sys.argv[1:2] and sys.argv[1] in CONTINUING and not any(word.startswith("--samples") for word in sys.argv)
    continues = "; finished work is kept, run the same command to continue" if kept else ""
    raise Stopped(f"stopped{continues}", 128 + number)


RANKS = "POSBENCH_RANKS"  # in the environment: the process whose ranks Lightning starts


def watch_parent() -> None:
    """Ends a rank, or a stage that another process of ours runs, soon after that process was killed.

    The parent is read from the environment: a process that imports for ten seconds may be orphaned before it can ask.
    """
    parent, launcher = os.environ.pop(PARENT, ""), os.environ.get(RANKS, "")
    os.environ[RANKS] = str(os.getpid())
    if os.environ.get("LOCAL_RANK", "0") != "0" and "TORCHELASTIC_RUN_ID" not in os.environ:
        parent = launcher
    if not parent:
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(1)
        os._exit(1)  # safe everywhere: files are complete or absent

    threading.Thread(target=watch, daemon=True).start()


def main() -> int:
    """Runs the command line; user errors become one line and exit code 2."""
    for number in stop_signals():
        signal.signal(number, stop)
    sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be no UTF-8
    watch_parent()
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Stopped as reason:
        print(reason, file=sys.stderr)
        return reason.code
    except Exception as error:
        if is_full(error):
            where = getattr(error, "filename", None)
            print(f"error: no space left on the device{f' ({where})' if where else ''}; free some and run again", file=sys.stderr)
        elif isinstance(error, OSError) and error.errno in DENIED:
            print(f"error: {shown(str(error.filename), 300)}: {error.strerror}", file=sys.stderr)
        elif isinstance(error, MemoryError | RuntimeError) and is_memory(error):
            reason = (str(error).splitlines() or ["no details"])[0][:200]
            print(f"error: out of memory ({reason}); use a smaller batch or image size", file=sys.stderr)
        else:
            raise
        return 2
    return 0


def leave(code: int) -> NoReturn:
    """Ends the process. Of several ranks one that fails does so at once.

    Lightning takes NCCL's groups down when Python exits, which all ranks have to do together: this one would wait there for the
    others, and they, in their next collective, for this one.
    """
    distributed = sys.modules.get("torch.distributed")
    if code and distributed is not None and distributed.is_available() and distributed.is_initialized():
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)  # files are complete or absent
    sys.exit(code)


def run() -> NoReturn:
    """The process from its beginning to its end."""
    try:
        code = main()
    except SystemExit as ended:  # of typer's
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except Exception:
        traceback.print_exc()
        code = 1
    leave(code)


if __name__ == "__main__":
    run()
