"""Worker processes that end with this one."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from benchmark.files import UserError


def parallel(function: Callable, jobs: list, workers: int, devices: Sequence[str] = ()) -> Iterator[Any]:
    """`function` of each job, in any order; in this process for one worker, else in a pool of fresh ones.

    Args:
        devices: one for each worker: its `own_device`.
    """
    if workers <= 1:
        _DEVICE[:] = devices
        yield from map(function, jobs)
        return
    # Fresh processes, because forking would copy the locks of whatever threads run here.
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    for name in devices:
        queue.put(name)
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, context, _start_worker, (queue if devices else None,))
    try:
        for future in as_completed([pool.submit(function, job) for job in jobs]):
            yield future.result()
    except BrokenProcessPool:
        raise UserError("a worker process died (out of memory?): use fewer workers") from None
    except BaseException:  # Ctrl-C above all: what the workers are at may take minutes, and can be done again
        for worker in set(multiprocessing.active_children()) - others:
            worker.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_DEVICE: list[str] = []


def own_device() -> str:
    """What a worker of a pool with devices computes on."""
    return _DEVICE[0]


def _start_worker(queue: Any) -> None:
    """Leaves Ctrl-C and a closed terminal to the parent, which ends its workers, and ends when the parent was killed."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    if queue is not None:
        _DEVICE[:] = [queue.get()]
