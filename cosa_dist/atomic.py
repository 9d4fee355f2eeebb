"""Atomic writes: a file or folder is complete under its own name, or as it was before.

Everything is written under a hidden temporary name `.NAME.RANDOM.tmp` in the same folder and renamed at the
end, so that neither an error nor a killed process leaves half of it where a reader looks.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4


def atomic_write(path: Path, text: str) -> None:
    """Write a text file atomically; its folder is made if it is missing."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to; it is renamed to `path` after the block and deleted on an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path, *, replace: bool = False, sync: bool = False) -> Iterator[Path]:
    """Give a temporary folder to fill; it is renamed to `path` after the block and deleted on an error.

    With `replace` it takes the place of whatever is there, without it that is an `OSError`; with `sync` its
    content is flushed to the disk before the rename, so that it survives a crash of the machine.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    temporary.mkdir()
    try:
        yield temporary
        if sync:
            for item in (*temporary.rglob("*"), temporary):
                fsync(item)
        if replace:
            replace_folder(temporary, path)
        else:
            temporary.rename(path)
        if sync:
            fsync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def replace_folder(source: Path, path: Path) -> None:
    """Rename the folder `source` to `path`; what was there is moved aside first and deleted last."""
    old = path.with_name(f".{path.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if path.exists() or path.is_symlink():
        path.rename(old)
    source.rename(path)
    if old.is_dir() and not old.is_symlink():
        shutil.rmtree(old, ignore_errors=True)
    else:
        old.unlink(missing_ok=True)


def temporary_path(path: Path) -> Path:
    """A hidden name in the same folder that no other process uses; long names are cut."""
    return path.with_name(f".{path.name[:50]}.{uuid4().hex}.tmp")


def fsync(path: Path) -> None:
    """Flush a file or a folder to the disk; a file system that cannot flush folders is left alone."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():
            raise
    finally:
        os.close(descriptor)
