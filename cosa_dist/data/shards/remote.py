"""Reads from servers and object stores: small files whole, shards into a local file.

Any URL that fsspec knows works (`http://`, `s3://`, `gs://`, `hf://`, `memory://`, ...); a file is always
fetched in one request, so a server needs no range requests. Transient errors (a refused connection, a broken
transfer, an overloaded server) are retried with exponential backoff; whatever remains is one line.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from fsspec.callbacks import Callback
from fsspec.core import url_to_fs

from cosa_dist.data.errors import DataError

log = logging.getLogger(__name__)
Result = TypeVar("Result")

# Seconds before each retry: few at the start, where an address is often just wrong, more in a run.
CONNECT_BACKOFF: tuple[float, ...] = (0.5, 1.0)
TRANSFER_BACKOFF: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0, 16.0)

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
_RETRYABLE_STATUS = {408, 425, 429}


def is_remote(location: str) -> bool:
    """Whether a location is a URL of something that is not on this machine's file systems."""
    return "://" in location and not location.startswith("file://")


def local_path(location: str) -> Path:
    """The path of a location that is not remote; `file://` is taken off."""
    return Path(unquote(urlsplit(location).path) if location.startswith("file://") else location)


def read_remote(url: str) -> bytes:
    """The whole content of a small remote file; raises as `fetch` does."""

    def read() -> bytes:
        system, path = _file_system(url)
        content: bytes = system.cat_file(path)
        return content

    return retry(read, url, CONNECT_BACKOFF)


def fetch(url: str, target: Path, size: int | None = None) -> None:
    """Copy a remote file of `size` bytes (None: unknown) into `target`; a failure may leave a part of it.

    Raises `FileNotFoundError` if the server says that there is no such file, `DataError` if it cannot be
    fetched whole after several attempts.
    """

    def get() -> None:
        system, path = _file_system(url)
        progress = Callback()
        system.get_file(path, str(target), callback=progress)
        found, expected = target.stat().st_size, size or progress.size
        if expected is not None and found != expected:
            raise OSError(f"it ended after {found} of {expected} bytes")

    retry(get, url, TRANSFER_BACKOFF)


def _file_system(url: str) -> tuple[Any, str]:
    """The file system of a URL and the path in it; made anew in each process by fsspec."""
    options: dict[str, Any] = {}
    if url.startswith(("http://", "https://")):
        import aiohttp

        # The default gives up after five minutes, however well the transfer goes.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=20, sock_read=60)
        options = {"client_kwargs": {"timeout": timeout}, "headers": {"Accept-Encoding": "identity"}}
    try:
        system, path = url_to_fs(url, **options)
    except (ImportError, ValueError) as error:
        raise DataError(f"cannot open {url}: {_one_line(error)}") from error
    return system, path


def retry(action: Callable[[], Result], url: str, backoff: tuple[float, ...]) -> Result:
    """Return what `action` returns; a transient error is retried after each pause of `backoff`."""
    for attempt, pause in enumerate((*backoff, None), start=1):
        try:
            return action()
        except (DataError, FileNotFoundError):
            raise
        except Exception as error:  # each kind of store has its own errors
            if reason := _permanent(error):
                raise DataError(f"cannot read {url}: {reason}") from error
            if pause is None:
                raise DataError(
                    f"cannot read {url}: {_one_line(error)} ({attempt} attempts); is the server up and the "
                    "address right?"
                ) from error
            log.warning("%s: %s; retrying in %.1f s", url, _one_line(error), pause)
            time.sleep(pause)
    raise AssertionError("unreachable: the last pause is None")


def _permanent(error: Exception) -> str:
    """Why a retry is useless; empty if it may help."""
    status = getattr(error, "status", None)
    if isinstance(error, PermissionError) or status in (401, 403):
        return "access is denied; check the credentials"
    if isinstance(status, int) and 400 <= status < 500 and status not in _RETRYABLE_STATUS:
        return f"the server refuses it with status {status}"
    if isinstance(error, OSError) and error.errno in _DISK_FULL:
        return f"cannot write the local copy ({error.strerror}); free some space or set TMPDIR or data.cache"
    return ""


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
