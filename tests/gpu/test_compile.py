"""Compiled networks: the same losses from few graphs, in both phases and in an evaluation."""

from __future__ import annotations

import functools

import pytest
import torch
import torch._dynamo

from cosa_dist.benchmark.gpu import fresh
from cosa_dist.benchmark.loading import generated_samples
from cosa_dist.evaluation.evaluator import Evaluator
from tests.benchmark.tiny_run import tiny_config

MOST_GRAPHS = 8


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_losses_and_graphs(device, precision, monkeypatch):
    if device.type == "cpu":  # the graphs are those of a GPU; its compiler would take minutes here
        compiled = functools.partialmethod(torch.nn.Module.compile, backend="aot_eager")
        monkeypatch.setattr(torch.nn.Module, "compile", compiled)
    changes = {"precision": precision}
    plain = steps(tiny_config(training=changes), device)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = steps(tiny_config(training={**changes, "compile": True}), device)
    tolerance = 1e-3 if precision == "fp32" else 2e-2
    for mine, theirs in zip(compiled, plain, strict=True):
        for name, value in theirs.items():
            assert float(mine[name]) == pytest.approx(float(value), rel=tolerance, abs=1e-6), name
    assert 0 < torch._dynamo.utils.counters["stats"]["unique_graphs"] <= MOST_GRAPHS
    assert not torch._dynamo.utils.counters["graph_break"]


def steps(config, device):
    """Two steps of each phase and an evaluation, the last batch of which is shorter."""
    with fresh(config, device) as work:
        terms = [work.take(step, device) for step in (0, 1, 2, 3)]
        evaluator = Evaluator.of_run(config, [str(n) for n in range(20)], device=device)
        evaluator.evaluate(work.state.networks, generated_samples(5, 20, (24, 32)))
    return terms
