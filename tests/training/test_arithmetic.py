"""How a process computes float32, repeatable or not, and what takes the place of what does not repeat."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cosa_dist.assignment.mixture import _running_product
from cosa_dist.benchmark.workload import generated_batch, prepare
from cosa_dist.evaluation.evaluator import evaluation_mode
from cosa_dist.evaluation.protocols import multi_scale_forward
from cosa_dist.model.backbone import AveragePool, _by_products
from cosa_dist.segmenter.network import build_segmenter
from cosa_dist.training.state import (
    MOST_GRAPHS,
    autocast,
    build_state,
    compile_networks,
    load_network,
    make_accelerator,
    set_arithmetic,
    wrap_online,
)
from tests.benchmark.tiny_run import tiny_config
from tests.model.tiny_encoders import tiny_model_config
from tests.oracles.plain_step import plain_step

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def arithmetic_as_before(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    yield
    set_arithmetic("highest")


def settings() -> tuple[object, ...]:
    cudnn = torch.backends.cudnn
    return (
        torch.get_float32_matmul_precision(),
        torch.backends.cuda.matmul.allow_tf32,
        cudnn.allow_tf32,
        cudnn.conv.fp32_precision == "tf32",
        cudnn.deterministic,
        torch.are_deterministic_algorithms_enabled(),
    )


def test_products_and_convolutions_have_one_precision():
    set_arithmetic("high")
    assert settings() == ("high", True, True, True, False, False)
    set_arithmetic("highest", deterministic=True)
    assert settings() == ("highest", False, False, False, True, True)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"  # one of the user's own stays
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG")
    set_arithmetic("highest", deterministic=True)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    set_arithmetic("highest")
    assert settings() == ("highest", False, False, False, False, False)


@pytest.mark.parametrize(("precision", "fused"), [("fp32", True), ("bf16", False)])
def test_a_network_that_is_trained_in_bf16_on_the_cpu_has_explicit_attention(precision, fused):
    state = build_state(tiny_config(), 3, CPU)
    wrap_online(state, make_accelerator(precision, 1, True))

    def of(network: nn.Module) -> set[bool]:
        return {module.fused_attn for module in network.modules() if hasattr(module, "fused_attn")}

    assert of(state.online) == {fused}
    assert of(state.assignment) == {True}


def test_a_run_scores_its_network_as_one_that_is_loaded_does():
    config = tiny_config(training={"precision": "bf16"}, evaluation={"size": 48, "scales": [1.0]})
    state = build_state(config, 3, CPU)
    wrap_online(state, make_accelerator("bf16", 1, True))
    loaded = load_network(config, state.online.state_dict(), CPU)
    image = torch.randint(0, 256, (3, 40, 52), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    def logits(network: nn.Module) -> torch.Tensor:
        with torch.inference_mode(), autocast("bf16", CPU):
            return multi_scale_forward(network, [image], config.evaluation)[0][0].segmentation

    before = {name: vars(module).get("fused_attn") for name, module in state.online.named_modules()}
    explicit = logits(state.online)
    with evaluation_mode([state.online, state.online]):
        assert torch.equal(logits(state.online), logits(loaded))
    assert not torch.equal(explicit, logits(loaded))  # what it was without
    after = {name: vars(module).get("fused_attn") for name, module in state.online.named_modules()}
    assert after == before
    assert False in before.values()


@pytest.mark.parametrize("matmul", ["high", "highest"])
def test_a_trained_network_computes_as_its_run_did(matmul):
    config = tiny_config(training={"matmul_precision": matmul, "deterministic": matmul == "high"})
    state = build_state(config, 3, CPU).online.state_dict()
    set_arithmetic("high" if matmul == "highest" else "highest")
    load_network(config, state, CPU)
    high = matmul == "high"
    assert settings() == (matmul, high, high, high, high, high)


def test_nothing_else_sets_the_precision():
    found = [
        str(path)
        for folder in ("cosa_dist", "jobs", "sweeps", "slurm")
        for path in Path(folder).rglob("*.py")
        if "set_float32_matmul_precision" in path.read_text() or "allow_tf32 =" in path.read_text()
    ]
    assert sorted(found) == ["cosa_dist/model/network.py", "cosa_dist/training/state.py"]


@pytest.mark.parametrize(("old", "new"), [((6, 9), (3, 3)), ((7, 5), (3, 6)), ((4, 4), (1, 1))])
def test_pooling_by_products_is_adaptive_pooling(old, new):
    maps = torch.rand(2, 3, *old, requires_grad=True)
    found = _by_products(maps, new, lambda rows, side: F.adaptive_avg_pool2d(rows, (rows.shape[-2], side)))
    expected = F.adaptive_avg_pool2d(maps, new)
    torch.testing.assert_close(found, expected)
    weight = torch.rand_like(found)
    gradients = [torch.autograd.grad((each * weight).sum(), maps)[0] for each in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_bicubic_resizing_by_products_is_bicubic_resizing():
    def along_rows(rows: torch.Tensor, side: int) -> torch.Tensor:
        return F.interpolate(rows, (rows.shape[-2], side), mode="bicubic", align_corners=False)

    maps = torch.rand(2, 3, 5, 7)
    for size in ((8, 4), (5, 7), (13, 20)):
        expected = F.interpolate(maps, size, mode="bicubic", align_corners=False)
        torch.testing.assert_close(_by_products(maps, size, along_rows), expected)


def test_running_sums_by_a_product_are_cumulative_sums():
    values = torch.rand(2, 3, 380, dtype=torch.float64)
    torch.testing.assert_close(_running_product(values), values.cumsum(-1), rtol=1e-13, atol=0)


def test_a_segmenter_pools_with_the_module_that_repeats():
    config = tiny_config(kind="segmenter", segmenter={"decoder_channels": 8}).segmenter
    network = build_segmenter(tiny_model_config("swin"), config, 2, 0)
    pools = [each for each in network.modules() if isinstance(each, nn.AdaptiveAvgPool2d)]
    assert [type(each) for each in pools] == [AveragePool] * 4
    assert [each.output_size for each in pools] == [1, 2, 3, 6]


def test_compiled_networks_may_have_more_graphs_than_pytorch_allows(monkeypatch):
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 8)
    state = build_state(tiny_config(), 3, CPU)
    compile_networks(state)
    assert torch._dynamo.config.recompile_limit == MOST_GRAPHS > 8
    assert all(network._compiled_call_impl for network in (state.online, state.assignment))


def test_the_plain_step_in_bf16_runs_both_networks_in_it():
    config = tiny_config(training={"precision": "bf16"})
    work, seen = prepare(config, CPU), []
    for network in (work.state.online, work.state.assignment):
        block = network.backbone.model.blocks[0].mlp.fc1
        block.register_forward_hook(lambda module, given, output: seen.append(output.dtype))
    plain_step(work.state, generated_batch(4, 32, 20), precision=work.accelerator.autocast)
    assert set(seen) == {torch.bfloat16}
    assert len(seen) > 2
