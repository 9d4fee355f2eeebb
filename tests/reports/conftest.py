from __future__ import annotations

import pytest

from cosa_dist.tracking.store import prepare_store


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Absolute URI of a prepared SQLite store; creating one takes seconds."""
    return prepare_store(None, tmp_path_factory.mktemp("tracking"))
