"""Fixtures that several packages' tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

PROJECT = Path(__file__).resolve().parents[1]
SHARED = PROJECT.parent / "shared"

# A busy machine is no failure: no test has a limit of time of its own.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@pytest.fixture
def golden() -> Callable[[str], dict[str, np.ndarray]]:
    """Loader of the reference numbers beside the project; skips where they are not."""
    folder = SHARED / "golden"
    if not folder.is_dir():
        pytest.skip("reference numbers (../shared/golden) are not beside the project")

    def load(name: str) -> dict[str, np.ndarray]:
        with np.load(folder / f"{name}.npz") as archive:
            return {key: archive[key] for key in archive.files}

    return load


@pytest.fixture
def shared_data() -> Path:
    """Folder of real photographs and weights beside the project; skips where it is not."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip("real data (../shared/data) are not beside the project")
    return folder
