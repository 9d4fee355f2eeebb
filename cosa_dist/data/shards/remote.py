"""Reading from servers and object stores: small files whole, shards into a local file.

Any URL that fsspec knows works (`http://`, `s3://`, `gs://`, `hf://`, `memory://`, ...); a file is always
fetched in one request, so a server needs no range requests. What may pass by itself (a refused
connection, a broken transfer, an overloaded server) is tried again with growing pauses; whatever
remains is one line.
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

# Seconds before another attempt: few at the start, where an address is often just wrong, more in a run.
OPENING_PAUSES: tuple[float, ...] = (0.5, 1.0)
RUNNING_PAUSES: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0, 16.0)

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
_WORTH_ANOTHER_TRY = {408, 425, 429}


class _TruncatedError(OSError):
    """A transfer that ended too early."""


def is_remote(location: str) -> bool:
    """Whether a location is a URL of something that is not on this machine's file systems."""
    return "://" in location and not location.startswith("file://")


def local_path(location: str) -> Path:
    """Return the path of a location that is not remote; `file://` is taken off."""
    if location.startswith("file://"):
        return Path(unquote(urlsplit(location).path))
    return Path(location)


def read_remote(url: str) -> bytes:
    """Return the whole content of a small remote file.

    Raises:
        FileNotFoundError: the server says that there is no such file.
        DataError: it cannot be read, for another reason.
    """

    def read() -> bytes:
        system, path = _file_system(url)
        content: bytes = system.cat_file(path)
        return content

    return _persistently(read, url, OPENING_PAUSES)


def fetch(url: str, target: Path, size: int | None = None) -> None:
    """Copy a remote file into the local file `target`, which is replaced if it is there.

    Args:
        url: what to fetch.
        target: where to; holds a part of the file if this fails.
        size: bytes that the file must have, where they are known.

    Raises:
        FileNotFoundError: the server says that there is no such file.
        DataError: the file cannot be fetched whole, after several attempts.
    """

    def get() -> None:
        system, path = _file_system(url)
        progress = Callback()
        system.get_file(path, str(target), callback=progress)
        found, expected = target.stat().st_size, size or progress.size
        if expected is not None and found != expected:
            raise _TruncatedError(f"it ended after {found} of {expected} bytes")

    _persistently(get, url, RUNNING_PAUSES)


def _file_system(url: str) -> tuple[Any, str]:
    """Return the file system of a URL and the path in it; made anew in each process by fsspec."""
    options: dict[str, Any] = {}
    if url.startswith(("http://", "https://")):
        import aiohttp

        # The default gives up after five minutes, however well the transfer goes.
        patience = aiohttp.ClientTimeout(total=None, sock_connect=20, sock_read=60)
        options = {"client_kwargs": {"timeout": patience}, "headers": {"Accept-Encoding": "identity"}}
    try:
        system, path = url_to_fs(url, **options)
    except (ImportError, ValueError) as error:
        raise DataError(f"cannot open {url}: {_line(error)}") from error
    return system, path


def _persistently(action: Callable[[], Result], url: str, pauses: tuple[float, ...]) -> Result:
    """Return what `action` returns, trying again after each pause if the trouble may pass."""
    for pause in (*pauses, None):
        try:
            return action()
        except (DataError, FileNotFoundError):
            raise
        except Exception as error:  # each kind of store has its own errors
            reason = _lasting_reason(error)
            if reason:
                raise DataError(f"cannot read {url}: {reason}") from error
            if pause is None:
                attempts = len(pauses) + 1
                raise DataError(
                    f"cannot read {url}: {_line(error)} ({attempts} attempts); is the server up and the "
                    "address right?"
                ) from error
            log.warning("%s: %s; trying again in %.1f s", url, _line(error), pause)
            time.sleep(pause)
    raise AssertionError("unreachable: the last pause is None")


def _lasting_reason(error: Exception) -> str:
    """Say why another attempt is useless; empty if it may help."""
    status = getattr(error, "status", None)
    if isinstance(error, PermissionError) or status in (401, 403):
        return "access is denied; check the credentials"
    if isinstance(status, int) and 400 <= status < 500 and status not in _WORTH_ANOTHER_TRY:
        return f"the server refuses it with status {status}"
    if isinstance(error, OSError) and error.errno in _FULL:
        return f"cannot write the local copy ({error.strerror}); free some space or set TMPDIR or data.cache"
    return ""


def _line(error: Exception) -> str:
    """Return an error's words in one line, with its kind where it has none."""
    words = " ".join(str(error).split())
    return words[:300] or type(error).__name__
