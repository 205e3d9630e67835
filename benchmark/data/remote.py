"""Remote shards, read through a local cache of bounded size."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmark.files import UserError, atomic, digest, file_hash, is_full, locked

# --- Addressing ------------------------------------------------------------------------------------------------------


REMOTE = re.compile(r"pipe:|[a-z0-9+]+://")
CACHE_BYTES = 64 << 30
OWN = "posbench-shards"  # the folder in a cache that is ours alone: what lies beside it is never counted, nor removed
# Exceptions of the libraries behind fsspec that are no OSError, by module; only those that are loaded can have been raised.
TROUBLE = {"aiohttp": "ClientError", "botocore.exceptions": "BotoCoreError", "gcsfs.retry": "HttpError"}


def cache_folder() -> Path:
    """The local folder for remote shards: the one that the environment's SHARD_CACHE names, else runs/cache."""
    return Path(os.environ.get("SHARD_CACHE") or "runs/cache")


@dataclass(frozen=True)
class Remote:
    """Files behind a URL or a command, through a local cache of bounded size.

    Args:
        location: of the folder: http(s)://, s3://, gs:// or anything else that fsspec knows, or "pipe:COMMAND" with {} for
            the name of a file, such as "pipe:ssh host cat /shards/{}".
        cache: local folder, shared by all processes of this machine; shards go into a folder of our own in it.
        limit: bytes of shards in it; the least recently used go first.
        tries: how often a file is asked for, with growing pauses that begin at `pause` seconds.
    """

    location: str
    cache: Path
    limit: int
    tries: int = 4
    pause: float = 1.0

    @property
    def folder(self) -> Path:
        return self.cache / OWN / digest(self.location)

    def path(self, name: str, sha256: str | None = None) -> Path:
        """Where the copy of a file lies. A shard's has its hash: another of the same size may be at the same address later."""
        return self.folder / (f"{sha256[:12]}-{name}" if sha256 and name.endswith(".tar") else name)

    def fetch(self, name: str, size: int | None = None, sha256: str | None = None) -> Path:
        """A local copy of a file: the cached one if it has the `size`, or else the hash, that is given; or else a new one.

        A new one's hash is checked.

        Raises:
            UserError: the source is gone or gives something else, after all tries; or no room.
        """
        path = self.path(name, sha256)
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.parent / f".{path.name}.lock"):  # one process fetches, the others wait for it
            given = size is not None or sha256 is not None
            same = given and path.is_file() and (file_hash(path) == sha256 if size is None else path.stat().st_size == size)
            if same:
                os.utime(path)
                return path
            self._make_room(size or 0)
            for attempt in range(self.tries):
                time.sleep(self.pause * 2 ** (attempt - 1) if attempt else 0)
                try:
                    with atomic(path) as draft:
                        self._copy(name, draft)
                        if sha256 is not None and file_hash(draft) != sha256:
                            raise OSError(f"what came is not what the manifest lists ({draft.stat().st_size} bytes)")
                    return path
                except self._errors() as error:
                    if is_full(error):
                        raise UserError(
                            f"no space left for {self.cache}: free some, or set SHARD_CACHE to a folder on another disk"
                        ) from None
                    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{name} cannot be read from {self.location} after {self.tries} tries ({reason})")

    def _errors(self) -> tuple[type[Exception], ...]:
        """What a bad connection raises."""
        return OSError, *(getattr(sys.modules[module], name) for module, name in TROUBLE.items() if module in sys.modules)

    def _copy(self, name: str, path: Path) -> None:
        if self.location.startswith("pipe:"):
            from webdataset.gopen import gopen  # imports torch

            with gopen(self.location.replace("{}", name)) as stream, open(path, "wb") as file:
                shutil.copyfileobj(stream, file, 1 << 20)
            return
        import fsspec  # only where there are remote files

        try:
            source = fsspec.open(f"{self.location.rstrip('/')}/{name}", "rb")
        except (ImportError, ValueError) as error:
            raise UserError(f"{self.location} cannot be opened: {str(error).splitlines()[0]}") from None
        with source as stream, open(path, "wb") as file:
            shutil.copyfileobj(stream, file, 1 << 20)

    def _make_room(self, size: int) -> None:
        """Removes shards until `size` bytes more stay within the limit. Who has one open can go on reading it."""
        if size > self.limit:
            raise UserError(f"a shard of {size} bytes does not fit into a cache of {self.limit}")
        found = []
        for path in (self.cache / OWN).glob("*/*.tar"):
            with contextlib.suppress(FileNotFoundError):  # another process makes room too
                state = path.stat()
                found.append((state.st_mtime_ns, state.st_size, path))
        total = sum(bytes_ for _, bytes_, _ in found)
        for _, bytes_, path in sorted(found):
            if total + size <= self.limit:
                break
            path.unlink(missing_ok=True)
            total -= bytes_
