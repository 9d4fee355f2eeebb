"""One rule for relative paths: they start from `COSA_ROOT` if that is set, else from the current folder.

Jobs and Ray workers run in temporary working directories, so every path of a command line or a configuration
goes through here, in the driver, before anything starts. A relative path inside such a temporary copy would
be lost with it and is refused, unless `COSA_ROOT` is set.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from cosa_dist.config.errors import ConfigError

ROOT = "COSA_ROOT"


def absolute(text: str, option: str = "", must_last: bool = False) -> str:
    """Make a local path absolute; URLs (`s3://`, `http://`) stay.

    Raises: ConfigError: what is written there `must_last` longer than the job, but the path, given by
    `option`, is relative inside the temporary copy that a Ray job runs in.
    """
    if "://" in text or not text:
        return text
    path = Path(text).expanduser()
    if path.is_absolute():
        return str(path)
    root = os.environ.get(ROOT)
    base = Path(root).expanduser().resolve() if root else Path.cwd()
    if not root and must_last and "_ray_pkg_" in str(base):
        raise ConfigError(
            f"{f'--{option} ' if option else ''}{text!r} is relative, but this job runs in a temporary copy "
            f"of the checkout: give an absolute path, or set {ROOT} to the folder that relative paths "
            "start from"
        )
    return str(base / path)


def place_or_url(text: str) -> str:
    """Type of a job's option for a folder, a pattern or a URL; unchanged where `COSA_ROOT` is not set."""
    return absolute(text) if os.environ.get(ROOT) else text


def place(text: str) -> Path:
    """Type of a job's option for a file or folder that is read."""
    return Path(place_or_url(text))


def lasting_place(text: str) -> Path:
    """Type of a job's option for a file or folder that is written, see `absolute`."""
    try:
        absolute(text, must_last=True)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return place(text)
