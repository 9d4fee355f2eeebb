"""A frozen encoder: one module for both networks, left as it is, stored once, evaluated once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest
import torch
from safetensors import safe_open

from cosa_dist.benchmark.plan import memory_gb
from cosa_dist.config.loading import build_config, merge
from cosa_dist.config.schema import EvaluationConfig
from cosa_dist.evaluation.evaluator import Evaluator
from cosa_dist.inference.trained import choose
from cosa_dist.model.weights import read_network
from cosa_dist.training.checkpoint import load_networks, restore, save_checkpoint
from cosa_dist.training.flops import footprint
from cosa_dist.training.loop import TrainingContext, _log_window
from cosa_dist.training.state import TrainState, build_state, make_accelerator
from cosa_dist.training.step import training_step
from jobs.convert_weights import main
from tests.evaluation.colour_network import colour_sample
from tests.model.test_training_of_encoders import SIDE, batch
from tests.model.tiny_encoders import tiny_model_config

CPU = torch.device("cpu")


def settings(kind: str = "vit", **changes):
    values = {
        "model": {**tiny_model_config(kind).model_dump(mode="json"), "freeze": "encoder"},
        "assignment": {"momentum": 0.5, "scales": [1.0, 0.5]},
        "losses": {"warmup_steps": 0},
        "optimizer": {"learning_rate": 1e-3, "warmup_steps": 0},
        "training": {"steps": 4, "global_batch_size": 2, "precision": "fp32"},
        "data": {"crop_size": SIDE},
    }
    return build_config(merge(values, changes))


def trained(config) -> TrainState:
    """The state after one step of co-training."""
    state = build_state(config, 3, CPU)
    state.online.train()
    training_step(state, state.online, [batch()], make_accelerator("fp32", 1, cpu=True))
    return state


@pytest.mark.parametrize("kind", ["vit", "swin", "resnet"])
def test_heads_learn_and_average_while_the_encoder_stays(kind):
    config = settings(kind)
    fresh = build_state(config, 3, CPU)
    state = trained(config)
    assert state.assignment.backbone is state.online.backbone
    before, after = fresh.online.state_dict(), state.online.state_dict()
    averaged = state.assignment.state_dict()
    for name, value in after.items():
        if name.startswith("backbone."):
            assert torch.equal(value, before[name]), name  # batch norms' statistics too
        else:
            assert not torch.equal(value, before[name]), name
            torch.testing.assert_close(averaged[name], (before[name] + value) / 2)
    assert {group["name"] for group in state.optimizer.param_groups} == {"classifiers", "decoder"}
    assert not any(module.training for module in state.online.backbone.modules())
    assert state.online.decoder.training


def test_the_encoder_is_stored_once_and_comes_back_for_both(tmp_path):
    config = settings()
    state = trained(config)
    path = save_checkpoint(state, tmp_path / "run" / "checkpoints", keep=1)
    names = {}
    for network in ("online", "assignment"):
        with safe_open(path / f"{network}.safetensors", framework="pt") as file:
            names[network] = set(file.keys())
    assert names["assignment"] == {n for n in names["online"] if not n.startswith("backbone.")}
    assert names["online"] == set(state.online.state_dict())
    resumed = build_state(config, 3, CPU, load_weights=False)
    with torch.no_grad():
        for parameter in resumed.online.parameters():
            parameter.add_(1)
    restore(resumed, path)
    assert resumed.assignment.backbone is resumed.online.backbone
    _, loaded = load_networks(tmp_path / "run", "newest", CPU)
    for name, network in state.networks.items():
        for key, value in network.state_dict().items():
            assert torch.equal(resumed.networks[name].state_dict()[key], value)
            assert torch.equal(loaded[name].state_dict()[key], value)
    assert choose(tmp_path / "run", network="assignment").encoder == path / "online.safetensors"


def test_either_network_is_converted_to_a_whole_one(tmp_path):
    state = trained(settings())
    save_checkpoint(state, tmp_path / "run" / "checkpoints", keep=1)
    for name, network in state.networks.items():
        target = tmp_path / f"{name}.safetensors"
        assert main([str(tmp_path / "run"), str(target), "--network", name]) == 0
        saved, wanted = read_network(target), network.state_dict()
        assert saved.network == name
        assert saved.state.keys() == wanted.keys()
        assert all(torch.equal(saved.state[key], value) for key, value in wanted.items())


@pytest.mark.parametrize("freeze", ["encoder", "none"])
def test_the_logged_learning_rate_is_the_base_rate_of_the_step_whatever_is_frozen(freeze):
    config = settings(model={"freeze": freeze}, training={"steps": 8})
    state = build_state(config, 3, CPU)
    state.online.train()
    for _ in range(3):
        training_step(state, state.online, [batch()], make_accelerator("fp32", 1, cpu=True))
    logged: dict[str, float] = {}
    tracker = SimpleNamespace(log_metrics=lambda values, step: logged.update(values))
    context = SimpleNamespace(tracker=tracker, accelerator=SimpleNamespace(device=CPU))
    _log_window(state, {}, 1.0, cast(TrainingContext, context))
    # The third step is number 2 of 8; the decay counts from step 0.
    assert logged["train/learning_rate"] == pytest.approx(1e-3 * (1 - 2 / 8) ** 0.9)


def test_without_freezing_each_network_has_its_encoder_and_its_file(tmp_path):
    state = trained(settings(model={"freeze": "none"}))
    assert state.assignment.backbone is not state.online.backbone
    path = save_checkpoint(state, tmp_path / "run" / "checkpoints", keep=1)
    assert choose(tmp_path / "run", network="assignment").encoder == path / "assignment.safetensors"


@pytest.mark.parametrize(
    ("freeze", "geometry", "runs"), [("encoder", "square", 2), ("none", "square", 4), ("encoder", "own", 8)]
)
def test_an_evaluation_runs_a_shared_encoder_once_for_both_networks(freeze, geometry, runs):
    """But for images of their own sizes: two of one size go through one by one, and must not be confused."""
    state = trained(settings(model={"freeze": freeze}))
    shapes = []

    def count(module, inputs):
        shapes.append(tuple(inputs[0].shape))

    patches = {id(n.backbone): n.backbone.model.patch_embed.proj for n in state.networks.values()}
    handles = [patch.register_forward_pre_hook(count) for patch in patches.values()]
    truth = torch.arange(48 * 64).reshape(48, 64).remainder(4).byte()
    images = torch.randint(0, 256, (2, 3, 48, 64), dtype=torch.uint8)
    samples = [colour_sample(name, image, truth, [1, 2]) for name, image in zip("ab", images, strict=True)]
    evaluator = Evaluator(("a", "b", "c"), EvaluationConfig(geometry=geometry, size=64, scales=(1.0, 0.5)))
    together = evaluator.evaluate(state.networks, samples)
    assert len(shapes) == runs
    for handle in handles:
        handle.remove()
    for name, network in state.networks.items():
        alone = evaluator.evaluate({name: network}, samples)[name]
        assert alone.scores == together[name].scores


def test_the_plan_counts_a_frozen_encoder_once_and_no_backward_pass_of_it():
    frozen, free = (settings(model={"freeze": freeze}) for freeze in ("encoder", "none"))
    costs = [footprint(config, 3) for config in (frozen, free)]
    assert costs[0].parameters == costs[1].parameters
    assert costs[0].trained_parameters < costs[1].trained_parameters == costs[1].parameters
    assert costs[0].training_pass < costs[1].training_pass
    saved = memory_gb(free, costs[1], 1) - memory_gb(frozen, costs[0], 1)
    encoder = 4 * (costs[0].parameters - costs[0].trained_parameters)
    kept = costs[1].kept_once + costs[1].activations - costs[0].kept_once - costs[0].activations
    assert saved == pytest.approx((4 * encoder + kept) / 1e9)
