"""The device under test, and two sizes: those of a GPU, and small ones that show typing errors on the CPU."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState

from cosa_dist.config.loading import build_config, merge, read_recipe
from cosa_dist.config.schema import RunConfig
from cosa_dist.training.state import set_arithmetic
from tests.benchmark.tiny_run import tiny_config

CHOSEN = os.environ.get("COSA_TEST_DEVICE", "cuda")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Every test of this folder is one of a GPU; without one, a single test is left to say so."""
    own = [item for item in items if item.path.is_relative_to(Path(__file__).parent)]
    for item in own:
        item.add_marker(pytest.mark.gpu)
    if own and CHOSEN == "cuda" and not torch.cuda.is_available():
        reason = "no CUDA device: no test of tests/gpu runs (COSA_TEST_DEVICE=cpu runs their bodies, small)"
        own[0].add_marker(pytest.mark.skip(reason=reason))
        config.hook.pytest_deselected(items=own[1:])
        items[:] = [item for item in items if item not in own[1:]]


@pytest.fixture(scope="session", autouse=True)
def device() -> torch.device:
    """The GPU, or what COSA_TEST_DEVICE names."""
    return torch.device(CHOSEN)


@pytest.fixture(autouse=True)
def clean(device: torch.device) -> Iterator[None]:
    """Nothing of another test: neither its precision nor its memory."""
    matmul = torch.get_float32_matmul_precision()
    AcceleratorState._reset_state(reset_partial_state=True)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    yield
    set_arithmetic(matmul)
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def cuda(device: torch.device) -> torch.device:
    """The GPU, for tests that a CPU has nothing to say to."""
    if device.type != "cuda":
        pytest.skip("only CUDA can tell")
    return device


@pytest.fixture
def full_config(device: torch.device) -> Callable[..., RunConfig]:
    """Maker of a run of ViT-B at 448 pixels (on the CPU: of the tiny network), with changes by section."""
    base: dict[str, Any] = {
        "recipe": "voc_released",
        "data": {"shards": "nowhere/voc"},
        "model": {"weights": "none"},
        "training": {"precision": "fp32"},
        "tracking": {"enabled": False},
    }

    def make(**sections: Any) -> RunConfig:
        if device.type == "cpu":
            return tiny_config(**sections)
        return build_config(merge(merge(read_recipe("voc_released"), base), sections))

    return make
