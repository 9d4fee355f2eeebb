"""The folder an ingest writes to: hidden and kept until all is there, then given its name at once.

Nothing half-written is ever seen under the name of the output. What an interrupted ingest finished
stays in `.NAME.partial` beside it, for the next attempt to take over; one ingest at a time works
there.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cosa_dist.data.errors import DataError
from cosa_dist.data.shards.split import DESCRIPTION

_LOCK = "ingest.lock"


def partial_path(out: Path) -> Path:
    """Return where the shards of `out` lie until all of them are there."""
    return out.parent / f".{out.name}.partial"


@contextmanager
def partial_folder(out: Path, overwrite: bool) -> Iterator[Path]:
    """Give the partial folder of `out`; it stays unless it was published or holds no finished shard.

    Raises:
        DataError: `out` exists and may not be replaced (`overwrite` is off, or it holds no shards),
            its parent cannot be written to, or another ingest works on the same output.
    """
    _check_output(out, overwrite)
    partial = partial_path(out)
    try:
        partial.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot make a folder in {out.parent}: {error.strerror}") from error
    lock = FileLock(partial / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise DataError(f"another ingest is writing {out}; wait for it or choose another output") from error
    try:
        yield partial
    finally:
        lock.release()
        if not any(partial.glob("*/*.json")):
            shutil.rmtree(partial, ignore_errors=True)


def remove_strangers(folder: Path, known: set[str]) -> None:
    """Remove from a split's folder all but the files named in `known`."""
    for path in folder.iterdir():
        if path.name not in known:
            path.unlink()


def publish(partial: Path, out: Path, overwrite: bool, documents: Mapping[str, object]) -> None:
    """Give the finished shards their final names and the partial folder the name `out`.

    Args:
        partial: the folder; `documents["dataset.json"]` lists its shards, with the name of each one
            while partial as `part`, which is taken out.
        out: the output's name.
        overwrite: whether a shard folder of that name is replaced.
        documents: content by file name, written as JSON.

    Raises:
        DataError: `out` has come into being meanwhile and may not be replaced.
    """
    _check_output(out, overwrite)
    description: Any = documents[DESCRIPTION]
    splits: Mapping[str, Mapping[str, Sequence[dict[str, Any]]]] = description["splits"]
    for path in partial.iterdir():
        if path.is_dir() and path.name not in splits:
            shutil.rmtree(path)
    for split, described in splits.items():
        for shard in described["shards"]:
            (partial / split / shard.pop("part")).rename(partial / split / shard["file"])
        remove_strangers(partial / split, {shard["file"] for shard in described["shards"]})
    for name, content in documents.items():
        _write_json(partial / name, content)
    (partial / _LOCK).unlink(missing_ok=True)
    replaced = out.parent / f".{out.name}.replaced"
    shutil.rmtree(replaced, ignore_errors=True)
    if out.exists():
        out.rename(replaced)
    partial.rename(out)
    shutil.rmtree(replaced, ignore_errors=True)


def _check_output(out: Path, overwrite: bool) -> None:
    """Raise `DataError` if `out` holds something that must not be replaced."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / DESCRIPTION).is_file():
        raise DataError(f"{out} exists and is not a shard folder; choose another output")
    if not overwrite:
        raise DataError(f"{out} exists already; choose another output or pass --overwrite")


def _write_json(path: Path, content: object) -> None:
    """Write `content` as readable JSON; half characters, which UTF-8 has not, stay JSON's escapes."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8", errors="backslashreplace")
