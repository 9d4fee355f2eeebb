"""The package on a pretended GPU: devices never mix, the host waits where listed, values are the CPU's.

The paths that are a GPU's alone (cut bags, float32 products, counts without waits) run here too, with real
numbers. What only a real one can show (backward passes, kernels, speed) is in `tests/gpu`.
"""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch

from cosa_dist.benchmark.workload import generated_batch
from cosa_dist.config.loading import build_config
from cosa_dist.config.method import PseudoMaskConfig
from cosa_dist.config.schema import EvaluationConfig, RunConfig
from cosa_dist.data.reading.samples import Batch, EvalSample
from cosa_dist.evaluation.evaluator import Evaluator, with_crf
from cosa_dist.evaluation.pictures import Labeller, label_image
from cosa_dist.evaluation.protocols import multi_scale_forward
from cosa_dist.evaluation.pseudo_mask import pseudo_mask
from cosa_dist.inference.segmentation import Segmenting
from cosa_dist.model.network import copy_network
from cosa_dist.training.optimizer import build_optimizer
from cosa_dist.training.state import TrainState, build_trained_network, set_arithmetic
from cosa_dist.training.step import training_step
from tests.model.tiny_encoders import KINDS, tiny_network
from tests.support.fake_gpu import GPU, FakeGpu, OneDevice, fake_gpu, onto_gpu

CLASSES, SIDE, CPU = 5, 64, torch.device("cpu")
# Where the host waits for the device, and how often.
LATTICE = "lattice/permutohedral.py: _runs"  # the number of its vertices
ONCE = "lattice/permutohedral.py: _basis"  # a small table, copied once in a process
CO_TRAINING = {LATTICE: 1}  # for each micro-batch
IMAGE = {"evaluation/protocols.py: chosen_planes": 1}  # the number of classes that the classifier finds
REFINE = "lattice/dense_crf.py: refine"  # the number of classes that are left out everywhere
IMAGE_WITH_CRF = {
    LATTICE: 2,
    REFINE: 2,
}  # its colours and, of a size not met before, its positions; two protocols
PREDICTION = {"inference/segmentation.py: _segment": 2}  # the classes, and how sure they are


def config_of(**changes: Any) -> RunConfig:
    """A tiny run of two steps of warm-up; `changes` are whole sections."""
    backbone, options = KINDS[changes.pop("encoder", "vit")]
    model = {"backbone": backbone, "backbone_options": options, "decoder_channels": 16, "aux_layer": -2}
    sections = {
        "model": {**model, "weights": "none", "freeze_position_embedding": False},
        "losses": {"warmup_steps": 1},
        "optimizer": {"warmup_steps": 1},
        "training": {"steps": 8, "global_batch_size": 4, "precision": "fp32"},
        "data": {"crop_size": SIDE},
        "evaluation": {"size": SIDE},
    }
    for name, section in changes.items():
        sections[name] = {**sections.get(name, {}), **section} if isinstance(section, dict) else section
    return build_config(sections)


def state_of(config: RunConfig, gpu: bool) -> TrainState:
    online = build_trained_network(config, CLASSES)
    online.backbone.recomputes = config.training.activation_checkpointing
    assignment = copy_network(online)
    if gpu:
        online, assignment = onto_gpu(online), onto_gpu(assignment)
    optimizer = build_optimizer(online, config.optimizer, spare_norms=config.kind == "segmenter")
    return TrainState(config, online, assignment, optimizer)


def batches_of(count: int, masks: bool = False, side: int = SIDE) -> list[Batch]:
    made = [generated_batch(2, side, CLASSES, seed) for seed in range(count)]
    if not masks:
        return made
    drawn = torch.Generator().manual_seed(4)
    shape = (2, SIDE, SIDE)
    more = {
        "masks": torch.randint(0, CLASSES + 1, shape, generator=drawn, dtype=torch.uint8),
        "reliability": torch.randint(0, 256, shape, generator=drawn, dtype=torch.uint8),
    }
    return [Batch(**{**vars(batch), **more}) for batch in made]


def take(state: TrainState, batches: list[Batch], step: int, accelerator: OneDevice) -> dict[str, float]:
    state.step = step
    network = accelerator.prepare(state.online)
    moved = [batch.to(accelerator.device) for batch in batches]
    terms = training_step(state, network, moved, accelerator)  # type: ignore[arg-type]
    return {name: float(value.detach().cpu()) for name, value in terms.items()}


def of(gpu: FakeGpu, *but: str) -> dict[str, int]:
    """The waits so far by place, but those of the test itself, and forget them."""
    found = {place: count for place, count in gpu.waits.items() if place not in ("?", *but)}
    gpu.waits.clear()
    return found


def times(count: int, *waits: dict[str, int]) -> dict[str, int]:
    """Some waits, each so many times."""
    total = sum((Counter(each) for each in waits), Counter())
    return {place: count * number for place, number in total.items()}


METHODS: dict[str, dict[str, Any]] = {
    "fixed pair": {},
    "fixed single": {"threshold": {"kind": "fixed_single"}},
    "two components": {"threshold": {"kind": "two_components", "queue": 10}},
    "split likelihood": {"threshold": {"kind": "two_components", "variant": "split_likelihood", "queue": 10}},
    "three components": {"threshold": {"kind": "three_components", "queue": 10}},
}


@pytest.mark.parametrize("method", METHODS)
def test_co_training_waits_once_a_micro_batch_and_has_the_losses_of_the_cpu(method):
    settings = {**METHODS[method], "scales": (1.0, 0.5), "reliability": method != "fixed pair"}
    config = config_of(assignment=settings, losses={"separation": 0.1 if settings["reliability"] else 0.0})
    batches = batches_of(2 if method == "two components" else 1)
    plain = state_of(config, gpu=False)
    expected = take(plain, batches, 1, OneDevice(CPU))
    with fake_gpu() as gpu:
        state = state_of(config, gpu=True)
        of(gpu)
        found = take(state, batches, 1, OneDevice(GPU))
        assert of(gpu, ONCE) == times(len(batches), CO_TRAINING)
        thresholds = state.thresholds.current().values()
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert thresholds == pytest.approx(plain.thresholds.current().values(), abs=1e-6)


SPARING_OF_MEMORY = {"training": {"activation_checkpointing": True}}


@pytest.mark.parametrize("sections", [SPARING_OF_MEMORY, {"optimizer": {"clip_norm": 0.01}}])
def test_sparing_memory_and_clipping_wait_no_more(sections, monkeypatch):
    monkeypatch.setattr("cosa_dist.training.optimizer.STEP_EVERY", 10_000)
    config = config_of(assignment={"scales": (1.0, 0.5)}, **sections)
    plain = state_of(config, gpu=False)
    expected = take(plain, batches_of(1), 1, OneDevice(CPU))
    with fake_gpu() as gpu:
        state = state_of(config, gpu=True)
        of(gpu)
        found = take(state, batches_of(1), 1, OneDevice(GPU))
        assert of(gpu, ONCE) == CO_TRAINING
        weights = [parameter.detach().cpu() for parameter in state.online.parameters()]
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)
    for one, other in zip(weights, plain.online.parameters(), strict=True):
        torch.testing.assert_close(one, other.detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("encoder", "bf16"), [("swin", False), ("vit", True)])
def test_other_encoders_and_bf16(encoder, bf16):
    config = config_of(encoder=encoder, assignment={"scales": (1.0, 0.5)})
    expected = take(state_of(config, gpu=False), batches_of(1), 1, OneDevice(CPU, bf16))
    with fake_gpu() as gpu:
        state = state_of(config, gpu=True)
        of(gpu)
        found = take(state, batches_of(1), 1, OneDevice(GPU, bf16))
        assert of(gpu, ONCE) == CO_TRAINING
    assert found == pytest.approx(expected, rel=0.05 if bf16 else 1e-4, abs=1e-6)


def test_the_warm_up_and_the_segmenter_never_wait():
    with fake_gpu() as gpu:
        state = state_of(config_of(), gpu=True)
        of(gpu)
        take(state, batches_of(2), 0, OneDevice(GPU))
        assert of(gpu) == {}
    config = config_of(encoder="swin", kind="segmenter", segmenter={"decoder_channels": 16, "weigh": True})
    batches = batches_of(1, masks=True)
    expected = take(state_of(config, gpu=False), batches, 1, OneDevice(CPU))
    with fake_gpu() as gpu:
        state = state_of(config, gpu=True)
        of(gpu)
        assert take(state, batches, 1, OneDevice(GPU)) == pytest.approx(expected, rel=1e-4)
        assert of(gpu) == {}


@pytest.mark.parametrize("kind", ["cosa", "segmenter"])
@pytest.mark.parametrize("encoder", ["vit", "swin"])
def test_a_deterministic_run_has_no_operation_that_does_not_repeat(encoder, kind):
    # A crop that is not the position embedding's, which learns.
    config = config_of(
        encoder=encoder,
        kind=kind,
        data={"crop_size": 96},
        assignment={"scales": (1.0,), "flip": False, "threshold": {"kind": "three_components", "queue": 10}},
        segmenter={"decoder_channels": 16},
    )
    batches = [replace(batch, masks=batch.weak[:, 0] % 3) for batch in batches_of(1, side=96)]
    results = []
    for deterministic in (False, True):
        set_arithmetic("highest", deterministic)
        try:
            with fake_gpu() as gpu:
                results.append(take(state_of(config, gpu=True), batches, 1, OneDevice(GPU)))
        finally:
            set_arithmetic("highest")
        assert bool(gpu.unrepeatable) == (not deterministic), gpu.unrepeatable
    assert results[0] == pytest.approx(results[1], rel=1e-4, abs=1e-6)


def samples_of(count: int) -> list[EvalSample]:
    drawn = torch.Generator().manual_seed(1)

    def plane(most: int, *shape: int) -> torch.Tensor:
        return torch.randint(0, most, shape, generator=drawn, dtype=torch.uint8)

    sizes = [(40 + 8 * index, 56 - 8 * index) for index in range(count)]
    labels = [torch.tensor([1.0, 0, index % 2]) for index in range(count)]
    return [
        EvalSample(f"image {index}", plane(256, 3, *size), plane(5, *size), labels[index], plane(2, *size))
        for index, size in enumerate(sizes)
    ]


SETTINGS = EvaluationConfig(size=SIDE, scales=(1.0, 0.5))


@pytest.mark.parametrize("grid", [(), (0.3, 0.5)])
def test_an_evaluation_waits_as_listed_and_has_the_scores_of_the_cpu(grid):
    config = with_crf(SETTINGS, None if grid else "released")

    def reports(device: torch.device, network: torch.nn.Module, count: int) -> Any:
        evaluator = Evaluator(["a", "b", "c"], config, cam_background_grid=grid, device=device)
        return evaluator.evaluate({"x": network}, samples_of(count))["x"]

    network = tiny_network("vit").eval()
    with fake_gpu() as gpu:
        moved = onto_gpu(copy.deepcopy(network))
        reports(GPU, moved, 1)
        of(gpu)
        reports(GPU, moved, 1)
        first = of(gpu)
        found = reports(GPU, moved, 3)
        more = Counter(of(gpu))
    more.subtract(first)
    # Two images more; what is left is asked once, for the report.
    grid_waits = {"evaluation/protocols.py: chosen_planes": 1, "assignment/activation.py: present_classes": 0}
    assert {k: n for k, n in more.items() if n} == times(2, IMAGE, grid_waits if grid else IMAGE_WITH_CRF)
    expected = reports(CPU, network, 3)
    # Random networks leave pixels undecided, which rounding then decides.
    for name, score in expected.scores.items():
        assert found.scores[name].miou == pytest.approx(score.miou, abs=0.5)
        assert found.scores[name].context_as_class == pytest.approx(score.context_as_class, abs=0.5)
    assert found.cam_miou_by_background == pytest.approx(expected.cam_miou_by_background, abs=0.5)


def test_predictions_wait_as_listed_and_are_those_of_the_cpu():
    network, images = tiny_network("vit").eval(), [sample.image for sample in samples_of(2)]
    for only in (False, True):
        choice = {"labels_from_classifier": only}
        with fake_gpu() as gpu:
            moved = onto_gpu(copy.deepcopy(network))
            found = Segmenting(moved, SETTINGS, GPU, **choice)(images)
            assert of(gpu) == times(2, PREDICTION, IMAGE if only else {})
        for one, other in zip(found, Segmenting(network, SETTINGS, CPU, **choice)(images), strict=True):
            assert (one.classes == other.classes).mean() > 0.99
            assert one.confidence == pytest.approx(other.confidence, rel=1e-2)


@pytest.mark.parametrize(("source", "refined"), [("segmentation", 1), ("cam", 2), ("agreement", 3)])
def test_pseudo_masks_wait_for_their_lattices_only_and_are_those_of_the_cpu(source, refined):
    network, (sample,) = tiny_network("vit").eval(), samples_of(1)

    def made(device: torch.device, network: torch.nn.Module, refinement: str) -> Any:
        image = sample.image.to(device, non_blocking=True)
        tags = sample.labels[None].to(device, non_blocking=True)
        with torch.inference_mode():
            ((output, _),) = multi_scale_forward(network, [image], SETTINGS, tags, most_labels=2)
            config = PseudoMaskConfig(source=source, refinement=refinement)
            return pseudo_mask(output, 0, image, sample.labels, config, 4)

    crf = {LATTICE: 2, REFINE: refined}
    for refinement, waits in {"none": {}, "pixel_adaptive": {}, "crf": crf}.items():
        expected = made(CPU, network, refinement)
        with fake_gpu() as gpu:
            moved = onto_gpu(copy.deepcopy(network))
            found = made(GPU, moved, refinement)
            assert of(gpu, ONCE) == waits
            same = found.classes.cpu() == expected.classes
            assert same.float().mean() > 0.99
            torch.testing.assert_close(
                found.reliability.cpu()[same], expected.reliability[same], rtol=1e-3, atol=1e-4
            )


def test_drawing_a_runs_labels_mixes_no_devices():
    config = config_of(assignment={"scales": (1.0,)})
    with fake_gpu():
        state = state_of(config, gpu=True)
        stride, thresholds = state.online.backbone.stride, state.thresholds.current()
        labeller = Labeller(state.assignment, stride, thresholds, config.assignment)
        sample = samples_of(1)[0]
        sample = replace(sample, labels=torch.tensor([1.0, 0, 0, 0, 1]))
        with torch.inference_mode():
            labels = label_image(labeller, sample, SIDE, GPU)
        assert labels.cam_label.device == GPU


def test_the_record_sees_a_planted_wait_and_a_planted_mixture():
    with fake_gpu() as gpu:
        there = torch.arange(3.0, device=GPU)
        assert there.sum().item() == 3
        for wait in (
            lambda: there.nonzero(),
            lambda: there[there > 1],
            lambda: there.cpu(),
            lambda: bool(there[0]),
        ):
            before = gpu.waits.total()
            wait()
            assert gpu.waits.total() == before + 1
        torch.arange(3).to(GPU, non_blocking=True)
        assert gpu.waits.total() == before + 1
        with pytest.raises(RuntimeError, match="mixes cuda:0 and cpu"):
            there + torch.arange(3.0)
        assert (there + torch.tensor(1.0)).device == GPU  # a single number may come from anywhere
