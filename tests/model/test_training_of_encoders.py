"""The whole training step with each kind of encoder: assignments, all losses, both networks move."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from cosa_dist.config.loading import build_config, load_config
from cosa_dist.data.reading.loader import Batch
from cosa_dist.model import backbone
from cosa_dist.training import optimizer
from cosa_dist.training.state import build_state, check_network, make_accelerator
from cosa_dist.training.step import assign, training_step
from tests.model.tiny_encoders import tiny_model_config
from tests.support.ranks import run_ranks

SIDE = 64


def batch() -> Batch:
    drawn = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (2, 3, SIDE, SIDE), generator=drawn, dtype=torch.uint8)
    return Batch(
        ids=["a", "b"],
        positions=torch.tensor([0, 1]),
        weak=images,
        strong=images,
        labels=torch.tensor([[1.0, 0, 0], [0, 1.0, 1.0]]),
        boxes=torch.tensor([[0, SIDE, 0, SIDE], [8, SIDE, 0, 48]]),
    )


def steps_of(kind, precision, sparing, parts=1, ranks=1):
    """Loss terms of two steps of the loss warm-up and two of co-training, and all tensors after them."""
    model = tiny_model_config(kind).model_dump(mode="json")
    if kind == "swin":
        model["backbone_options"]["drop_path_rate"] = 0.5
    config = build_config(
        {
            "model": model,
            # Mirror images that have a pass of their own may be rounded differently.
            "assignment": {"momentum": 0.5, "scales": [1.0, 0.5, 1.5], "flip": False},
            "losses": {"warmup_steps": 2},
            "optimizer": {"learning_rate": 1e-3, "warmup_steps": 0},
            "training": {
                "steps": 4,
                "global_batch_size": 2 * parts * ranks,
                "precision": precision,
                "activation_checkpointing": sparing,
            },
            "data": {"crop_size": SIDE},
        }
    )
    state = build_state(config, classes=3, device=torch.device("cpu"))
    accelerator = make_accelerator(precision, ranks, cpu=True)
    network, state.optimizer = accelerator.prepare(state.online, state.optimizer)
    network.train()
    terms = [training_step(state, network, [batch()] * parts, accelerator) for _ in range(4)]
    tensors = {f"online {name}": value for name, value in state.online.state_dict().items()}
    tensors |= {f"assignment {name}": value for name, value in state.assignment.state_dict().items()}
    for index, moments in state.optimizer.state_dict()["state"].items():
        tensors |= {f"moments {index} {name}": value for name, value in moments.items()}
    return terms, tensors


@pytest.mark.parametrize(
    ("kind", "precision", "parts"),
    [("vit", "fp32", 1), ("vit", "bf16", 1), ("vit", "fp32", 2), ("swin", "fp32", 1), ("swin", "bf16", 2)],
)
@pytest.mark.parametrize("gathered", [1, 20_000, 2**25])
def test_blocks_computed_again_change_no_bit(kind, precision, parts, gathered, monkeypatch):
    monkeypatch.setattr(optimizer, "STEP_EVERY", gathered)
    terms, tensors = steps_of(kind, precision, False, parts)
    again = count_calls(monkeypatch)
    sparing_terms, sparing_tensors = steps_of(kind, precision, True, parts)
    assert again() > 0
    # The norm of all gradients is put together from those of the parts: in another order.
    norms = [[float(step.pop("gradient_norm")) for step in found] for found in (sparing_terms, terms)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    assert sparing_terms == terms
    assert sparing_tensors.keys() == tensors.keys()
    assert all(torch.equal(sparing_tensors[name], tensors[name]) for name in tensors)


def count_calls(monkeypatch):
    """A function that says how many checkpoints were taken since."""
    taken = []

    def counting(*words, **options):
        taken.append(words)
        return checkpoint(*words, **options)

    monkeypatch.setattr(backbone, "checkpoint", counting)
    return lambda: len(taken)


def _ranks_recompute(index: int, folder: str) -> None:
    """On each of two ranks, take the steps of both ways in micro-batches; note whether they differ."""
    (terms, tensors), (sparing_terms, sparing) = (
        steps_of("vit", "fp32", again, parts=2, ranks=2) for again in (False, True)
    )
    same = terms == sparing_terms and all(torch.equal(sparing[name], tensors[name]) for name in tensors)
    torch.save((same, tensors["online decoder.conv6.weight"]), Path(folder) / f"{index}.pt")


def test_ranks_that_compute_blocks_again_change_no_bit(tmp_path):
    run_ranks(_ranks_recompute, 2, str(tmp_path))
    (one, weight), (two, other) = (torch.load(tmp_path / f"{index}.pt") for index in range(2))
    assert one
    assert two
    assert torch.equal(weight, other)


def test_a_segmenter_computes_blocks_again(monkeypatch):
    config = load_config("tiny_ms", None, {"training.activation_checkpointing": True})
    images = torch.rand(2, 3, config.data.crop_size, config.data.crop_size)
    state = build_state(config, 3, torch.device("cpu"))
    again = count_calls(monkeypatch)
    gradients = []
    for state.online.backbone.recomputes in (True, False):
        state.online.zero_grad()
        state.online(images).segmentation.square().sum().backward()
        gradients.append([parameter.grad for parameter in state.online.parameters()])
        assert again() > 0
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


def test_gradients_go_with_the_backward_pass():
    weights = [torch.nn.Parameter(torch.ones(4)) for _ in range(3)]
    adam = torch.optim.AdamW(weights, lr=0.1)
    stepped: set[torch.Tensor] = set()
    norms: list[torch.Tensor] = []
    with optimizer.stepping_in_backward(adam, stepped, norms):
        (weights[0] * weights[1]).sum().backward()
        assert stepped == set()  # 32 bytes are not worth a step
    assert [weight.grad is None for weight in weights] == [False, False, True]
    adam.zero_grad()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optimizer, "STEP_EVERY", 32)
        before = torch.cat([weight.detach() for weight in weights[:2]])
        with optimizer.stepping_in_backward(adam, stepped, norms):
            (weights[0] * weights[1]).sum().backward()
    torch.testing.assert_close(optimizer.limit_gradients(adam, 0.0, norms), before.norm())
    assert stepped == set(weights[:2])
    assert all(weight.grad is None for weight in weights)
    assert [bool((weight < 1).all()) for weight in weights] == [True, True, False]
    optimizer.fill_missing_gradients(adam, stepped)
    assert [weight.grad is None for weight in weights] == [True, True, False]
    (weights[0] * 2).sum().backward()  # no hook is left
    assert weights[0].grad is not None


def test_a_network_with_batch_norm_is_not_computed_again():
    config = build_config(
        {
            "model": tiny_model_config("resnet").model_dump(mode="json"),
            "training": {"activation_checkpointing": True},
            "data": {"crop_size": SIDE},
        }
    )
    with pytest.raises(ValueError, match=r"training\.activation_checkpointing: resnet10t is no transformer"):
        check_network(config, 3)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["vit", "swin", "resnet", "convnext"])
def test_a_step_of_the_co_training_moves_every_parameter(kind, precision):
    config = build_config(
        {
            "model": tiny_model_config(kind).model_dump(mode="json"),
            "assignment": {"momentum": 0.5, "scales": [1.0, 0.5, 1.5]},
            "losses": {"warmup_steps": 0},
            "optimizer": {"learning_rate": 1e-3, "warmup_steps": 0, "weight_decay": 0},
            "training": {"steps": 4, "global_batch_size": 2, "precision": precision},
            "data": {"crop_size": SIDE},
        }
    )
    state = build_state(config, classes=3, device=torch.device("cpu"))
    before = {name: value.clone() for name, value in state.online.named_parameters()}
    accelerator = make_accelerator(precision, 1, cpu=True)
    assert assign(state, batch(), accelerator).cam_pseudo_label.shape == (2, SIDE, SIDE)
    terms = training_step(state, state.online, [batch()], accelerator)
    assert all(torch.isfinite(value) for value in terms.values())
    assert float(terms["cam_to_seg"]) > 0
    assert float(terms["seg_to_cam"]) > 0
    moved = dict(state.online.named_parameters())
    assert [n for n, p in moved.items() if p.grad is None or torch.equal(p, before[n])] == []
    for name, own in state.assignment.named_parameters():
        torch.testing.assert_close(own, (before[name] + moved[name]) / 2)
