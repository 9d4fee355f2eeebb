"""Operations by hand, and against PyTorch's counter on a real step."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as functional

from cosa_dist.benchmark.measure import matrix_rate, peak_memory, reset_peak_memory
from cosa_dist.benchmark.workload import generated_batch, prepare
from cosa_dist.config.loading import build_config, merge, read_recipe
from cosa_dist.training.flops import counted, footprint, image_operations, peak_rate
from cosa_dist.training.state import build_state, classes_of, make_accelerator, wrap_online
from cosa_dist.training.step import training_step
from tests.benchmark.tiny_run import tiny_config

CPU = torch.device("cpu")


def test_products_by_hand():
    assert counted(lambda: torch.ones(3, 4) @ torch.ones(4, 5)) == 2 * 3 * 4 * 5
    with torch.inference_mode():
        assert counted(lambda: functional.linear(torch.ones(3, 4), torch.ones(5, 4))) == 2 * 3 * 4 * 5
    image, kernel = torch.ones(2, 3, 8, 8), torch.ones(7, 3, 3, 3)
    assert counted(lambda: functional.conv2d(image, kernel, padding=1)) == 2 * 2 * 64 * 7 * 27


def test_fused_attention_counts_as_its_two_products():
    query = torch.ones(1, 2, 10, 8, requires_grad=True)
    found = counted(lambda: functional.scaled_dot_product_attention(query, query, query))
    assert found == 2 * 2 * (2 * 10 * 10 * 8)


@pytest.mark.parametrize(("phase", "flip"), [("warmup", True), ("co_training", True), ("co_training", False)])
def test_a_step_counts_what_the_real_one_does(phase, flip):
    config = tiny_config(losses={"warmup_steps": 2 if phase == "warmup" else 0}, assignment={"flip": flip})
    work = prepare(config, CPU)
    batch = generated_batch(4, 32, 20)
    real = counted(lambda: training_step(work.state, work.network, [batch], work.accelerator))
    expected = 4 * getattr(footprint(config, 20), phase)
    assert real == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("kind", ["cosa", "control", "segmenter"])
def test_a_runs_own_step_counts_what_it_does(kind):
    config = tiny_config(losses={"warmup_steps": 0}, kind=kind)
    if kind == "segmenter":
        settings = {"supervision": "truth", "losses": {"warmup_steps": 0}}
        config = build_config(merge(read_recipe("tiny_ms"), settings))
    co_training = kind == "cosa"
    accelerator = make_accelerator("fp32", 1, cpu=True)
    state = build_state(config, 20, accelerator.device)
    network = wrap_online(state, accelerator).train()
    side = config.data.crop_size
    batch = replace(generated_batch(4, side, 20), masks=torch.ones(4, side, side, dtype=torch.uint8))
    real = counted(lambda: training_step(state, network, [batch], accelerator))
    found = image_operations(config, classes_of(state.online.state_dict()), co_training=co_training)
    assert real == pytest.approx(4 * found, rel=0.02)


def test_an_encoder_that_cannot_be_counted_costs_a_line_and_no_run(monkeypatch, caplog):
    def refuse(*_: object, **__: object) -> int:
        raise RuntimeError("data-dependent")

    monkeypatch.setattr("cosa_dist.training.flops._FakeNetwork.train_operations", refuse)
    assert image_operations(tiny_config(), 7, co_training=False) == 0
    assert "cannot be counted: data-dependent" in caplog.text


@pytest.mark.parametrize(
    ("name", "precision", "tflops"),
    [
        ("NVIDIA H200", "bf16", 989.0),
        ("NVIDIA H100 80GB HBM3", "bf16", 989.0),
        ("NVIDIA GH200 480GB", "bf16", None),
        ("NVIDIA H100 PCIe", "bf16", None),
        ("NVIDIA H100 NVL", "bf16", None),
        ("NVIDIA A100-SXM4-80GB", "fp32", 19.5),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "fp32", None),
        ("NVIDIA GeForce RTX 3090", "bf16", 71.0),
        ("NVIDIA GeForce RTX 3090 Ti", "bf16", None),
    ],
)
def test_the_data_sheet_is_that_of_this_very_gpu(monkeypatch, name, precision, tflops):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    found = peak_rate(tiny_config(training={"precision": precision}), torch.device("cuda"))
    assert found == (None if tflops is None else tflops * 1e12)
    assert peak_rate(tiny_config(), CPU) is None
    high = tiny_config(training={"precision": "fp32", "matmul_precision": "high"})
    if name == "NVIDIA A100-SXM4-80GB":
        assert peak_rate(high, torch.device("cuda")) == 156e12


def test_the_assignment_pass_is_the_sum_over_its_scales():
    both, one, half = (
        footprint(tiny_config(assignment={"scales": scales}), 20).assignment_pass
        for scales in ([1.0, 0.5], [1.0], [0.5])
    )
    assert both == one + half


def real_bytes(network, images):
    """Bytes that a real forward pass keeps, by their addresses."""
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = network(torch.rand(images, 3, 32, 32))
    assert output.logits.requires_grad
    own = {p.untyped_storage().data_ptr() for p in network.parameters()}
    return sum(t.untyped_storage().nbytes() for pointer, t in kept.items() if pointer not in own)


def test_parameters_and_activations():
    config = tiny_config()
    network = prepare(config, CPU).state.online
    size = footprint(config, 20)
    assert size.parameters == sum(p.numel() for p in network.parameters()) == size.trained_parameters
    expected = real_bytes(network, 5)
    assert size.kept_once + 5 * size.activations == pytest.approx(expected, rel=0.1)
    frozen = footprint(tiny_config(model={"freeze_position_embedding": True}), 20)
    assert frozen.trained_parameters < frozen.parameters
    half = footprint(config, 20, bf16=True)
    assert 0.4 < half.activations / size.activations < 0.95
    assert half.kept_once > size.kept_once


def test_blocks_that_are_computed_again_keep_their_inputs_only():
    config = tiny_config(training={"activation_checkpointing": True})
    network = prepare(config, CPU).state.online
    size, whole = footprint(config, 20), footprint(tiny_config(), 20)
    assert size.kept_once + 5 * size.activations == pytest.approx(real_bytes(network, 5), rel=0.1)
    # The insides of the three alike blocks have gone; their inputs, 17 tokens of 24 numbers, are there.
    inputs = 17 * 24 * 4
    assert whole.activations - size.activations == pytest.approx(3 * (size.recomputed - inputs), rel=0.1)
    assert whole.recomputed == 0
    assert size.assignment_pass == whole.assignment_pass
    forward = (whole.training_pass - whole.warmup) / 2  # of the decoder, which is not computed again
    assert 0 < size.training_pass - whole.training_pass < whole.training_pass / 3
    assert size.training_pass - whole.training_pass == size.warmup - whole.warmup > forward / 100


def test_the_rate_of_a_product_is_operations_over_seconds(monkeypatch):
    given = {}

    def two_seconds(ways, rounds, synchronise, *, warm_up=1):
        given.update(ways)
        return {"product": [4.0, 2.0, 3.0] if rounds > 1 else [30.0]}

    monkeypatch.setattr("cosa_dist.benchmark.measure.in_turn", two_seconds)
    assert matrix_rate(CPU, side=16) == 2 * 16**3 / 2
    assert given["product"]().shape == (16, 16)
    # Over ten seconds there is room for six products of two seconds; they took thirty.
    assert matrix_rate(CPU, side=16, seconds=10.0) == 2 * 16**3 * 6 / 30


def test_peak_memory_is_that_of_a_phase():
    def peak(megabytes):
        reset_peak_memory(CPU)
        torch.ones(megabytes * 250_000)
        return peak_memory(CPU)

    large = peak(600)
    if peak(1) == large:
        pytest.skip("the system does not let a process reset its high-water mark")
    assert large - peak(1) == pytest.approx(0.6, rel=0.2)
