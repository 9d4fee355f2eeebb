"""The Arrow files of a split, wherever they are: opened in place, from a node's cache, or from a copy.

A local shard is memory-mapped where it lies. A remote one is fetched whole, either into the cache folder,
which the processes of a node share and which later epochs and runs read again, or into a temporary file that
vanishes as soon as it is open.
"""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset
from filelock import FileLock

from cosa_dist.data.errors import DataError
from cosa_dist.data.shards.description import ShardEntry, SplitDescription
from cosa_dist.data.shards.remote import fetch, is_remote, local_path


@dataclass(frozen=True)
class ShardFiles:
    """Opens the shards of a split by number; plain values, so it travels to other processes.

    `cache` is the folder for copies of remote shards; empty: none are kept.
    """

    description: SplitDescription
    cache: str = ""

    @property
    def remote(self) -> bool:
        """Whether the shards are on another machine."""
        return is_remote(self.description.root)

    def open(self, number: int) -> Dataset:
        """Memory-map shard `number`; raises `DataError` if it is missing, damaged or cannot be fetched."""
        entry = self.description.shards[number]
        where = f"{self.description.root}/{self.description.name}/{entry.file}"
        if not self.remote:
            path = local_path(where)
            if not path.is_file():
                raise DataError(f"shard {where} is missing; copy it again or ingest again")
            return _open_arrow(path, entry, where)
        if self.cache:
            return self._from_cache(entry, where)
        with tempfile.TemporaryDirectory(prefix="cosa_dist-shard-", ignore_cleanup_errors=True) as folder:
            # The mapping outlives the file's name: nothing stays behind when the reader ends.
            return _fetched(Path(folder) / entry.file, entry, where)

    def _from_cache(self, entry: ShardEntry, where: str) -> Dataset:
        """Open a shard's copy in the cache; a missing or damaged one is fetched under a lock."""
        # Named by content: the same data at another address, or changed data here, go by themselves.
        content = hashlib.sha256(self.description.fingerprint.encode()).hexdigest()[:16]
        path = Path(self.cache) / content / self.description.name / entry.file
        partial = path.with_name(f".{path.name}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{path}.lock"):
                if path.is_file():
                    try:
                        return _open_arrow(path, entry, str(path))
                    except DataError:
                        path.unlink()
                try:
                    _fetched(partial, entry, where)
                    partial.replace(path)
                finally:
                    partial.unlink(missing_ok=True)
                return _open_arrow(path, entry, str(path))
        except OSError as error:
            raise DataError(f"cannot write to data.cache {self.cache}: {error.strerror or error}") from error


def _open_arrow(path: Path, entry: ShardEntry, where: str) -> Dataset:
    """Memory-map one local Arrow file and check it against its entry; `where` is its name in messages."""
    found = path.stat().st_size
    if entry.size is not None and found != entry.size:
        raise DataError(
            f"shard {where} has {found} bytes instead of {entry.size}; copy it again or ingest again"
        )
    try:
        shard = Dataset.from_file(str(path))
    except Exception as error:  # Arrow and datasets raise many kinds on damaged files
        raise DataError(f"shard {where} is damaged; copy it again or ingest again") from error
    if len(shard) != entry.count:
        raise DataError(
            f"shard {where} holds {len(shard)} records instead of {entry.count}; copy it again or "
            "ingest again"
        )
    return shard


def _fetched(path: Path, entry: ShardEntry, where: str) -> Dataset:
    try:
        fetch(where, path, entry.size)
    except FileNotFoundError as error:
        raise DataError(f"shard {where} is missing on the server; copy it again or ingest again") from error
    return _open_arrow(path, entry, where)
