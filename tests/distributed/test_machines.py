"""The commands that the documents give for GPUs start on the machines they are for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cosa_dist.config.errors import ConfigError
from cosa_dist.config.loading import load_config, parse_overrides, recipe_names
from cosa_dist.config.schema import RunConfig
from cosa_dist.distributed.plan import described_nodes, loader_processes, most_workers, plan_workers, total
from cosa_dist.distributed.prepare import plan_stages, trained_stages

PROJECT = Path(__file__).resolve().parents[2]
MACHINES = ("1x1x12", "1x2x24", "1x4x48", "1x8x96", "4x8x96")
PAGES = [PROJECT / "README.md", *sorted(PROJECT.glob("docs/*.md")), *sorted(PROJECT.glob("slurm/*.sh"))]
TRAINING = re.compile(r"(?:jobs/train\.py|slurm/cosa\.sh)[^\n`]*?--recipe (\w+)([^\n`#]*)")


def documented() -> list[tuple[str, str]]:
    """Recipe and options on workers of every training that a document or a script's head shows."""
    found = {
        (recipe, " ".join(re.findall(r'--distributed\.\w+ (?:"[^"]*"|\S+)', rest)))
        for page in PAGES
        for recipe, rest in TRAINING.findall(page.read_text(encoding="utf-8"))
    }
    return sorted(pair for pair in found if pair[0] in recipe_names() and not pair[1])


def plans(config: RunConfig, machine: str):
    nodes = described_nodes(machine)
    return plan_stages(config, total(nodes), nodes, complete=True)


@pytest.mark.parametrize("machine", MACHINES)
def test_every_documented_training_starts_on_every_machine(machine):
    gpus = int(total(described_nodes(machine))["GPU"])
    recipes = {recipe for recipe, _ in documented()} | set(recipe_names())
    assert {"voc_gpu", "coco_gpu", "voc_released", "voc_ms"} <= {recipe for recipe, _ in documented()}
    for recipe in recipes:
        config = load_config(recipe, None, {})
        for stage, trained in trained_stages(config).items():
            batch, plan = trained.training.global_batch_size, plans(config, machine)[stage]
            if trained.distributed.device == "cpu":
                continue  # the demo, whose results are those of CPUs
            divisors = [number for number in range(1, gpus + 1) if batch % number == 0]
            assert plan.use_gpu
            assert plan.workers == divisors[-1], (recipe, stage)
            assert batch // plan.workers % plan.micro_batch_size == 0
            assert plan.cpus_per_worker == 12


@pytest.mark.parametrize("recipe", ["voc_gpu", "coco_gpu"])
@pytest.mark.parametrize("machine", MACHINES)
def test_the_recipes_for_gpus_give_each_8_to_16_pictures_at_a_time(recipe, machine):
    plan = plans(load_config(recipe, None, {}), machine)[""]
    assert plan.workers == plan.gpus
    if (recipe, machine) == ("voc_gpu", "4x8x96"):
        assert plan.micro_batch_size == 2  # a data set for one node
    else:
        assert 8 <= plan.micro_batch_size <= 16
    assert plan.loaders == 10


@pytest.mark.parametrize(("recipe", "released"), [("voc_gpu", "voc_released"), ("coco_gpu", "coco_released")])
def test_the_recipes_for_gpus_follow_the_stated_rules(recipe, released):
    """Square root for the learning rate of Adam, a power for the EMA, equal pictures in all."""
    new, old = load_config(recipe, None, {}), load_config(released, None, {})
    times = new.training.global_batch_size / old.training.global_batch_size
    assert new.optimizer.learning_rate == pytest.approx(old.optimizer.learning_rate * times**0.5, rel=0.01)
    assert new.assignment.momentum == pytest.approx(old.assignment.momentum**times, abs=1e-5)
    assert new.training.steps * times == old.training.steps
    assert new.optimizer.warmup_steps == round(old.optimizer.warmup_steps / times)
    assert new.losses.warmup_steps == round(old.losses.warmup_steps / times)
    assert new.training.precision == "bf16"
    same = {"model", "data", "losses.warmup_steps", "assignment.threshold", "segmenter", "optimizer.betas"}
    for name in same - {"losses.warmup_steps"}:
        section, _, option = name.partition(".")
        ours, theirs = getattr(new, section), getattr(old, section)
        assert (getattr(ours, option) if option else ours) == (getattr(theirs, option) if option else theirs)


def config(*words: str) -> RunConfig:
    return load_config("voc_released", None, parse_overrides(words))


def test_what_is_left_over_is_said():
    plan = plans(config(), "1x8x96")[""]
    assert plan.workers == 4
    assert plan.describe() == (
        "4 GPU(s) of 8: 1 of 4 picture(s) a step each, 12 CPU(s) with 10 loader process(es) each; "
        "more cannot share training.global_batch_size 4 evenly (docs/gpu.md)"
    )
    one = plans(config("--training.micro_batch_size", "2"), "1x1x4")[""]
    assert one.describe() == (
        "1 GPU(s): 4 of 4 picture(s) a step each, 2 at a time, 4 CPU(s) with 2 loader process(es) each"
    )


@pytest.mark.parametrize(
    ("batch", "gpus", "wanted", "workers"),
    [
        (4, 8, 0, 4),
        (12, 8, 0, 6),
        (7, 8, 0, 7),
        (7, 6, 0, 1),
        (12, 8, 2, 6),
        # Parts of 3 are no whole number of micro-batches of 2; a part below the micro-batch is one pass.
        (12, 4, 2, 3),
        (12, 12, 2, 12),
        (64, 32, 16, 32),
        (12, 0, 0, 1),
    ],
)
def test_the_most_gpus_that_share_a_batch(batch, gpus, wanted, workers):
    assert most_workers(batch, gpus, wanted) == workers


def test_a_batch_that_no_number_of_gpus_shares_is_refused():
    with pytest.raises(ConfigError, match="3 does not divide a worker's part of 4"):
        most_workers(4, 8, 3)


def test_every_stage_is_checked_and_named():
    staged = load_config("voc_ms", None, parse_overrides(["--distributed.workers", "8"]))
    with pytest.raises(
        ConfigError, match="^stage-one: training.global_batch_size 4 cannot be shared .* by 8"
    ):
        plans(staged, "1x8x96")
    options = {"stage_one.options": {"training.global_batch_size": 16}}
    assert [plan.workers for plan in plans(load_config("voc_ms", None, options), "1x8x96").values()] == [8, 8]


@pytest.mark.parametrize(
    ("words", "machine", "said"),
    [
        (
            ["--training.global_batch_size", "8", "--distributed.workers", "8"],
            "1x2x24",
            r"the run needs 96 CPU, 8 GPU \(8 workers of 12 CPU, 1 GPU each\), this machine has 24 CPU, "
            r"2 GPU on 1 node\(s\), which hold 2 such workers; lower distributed.workers",
        ),
        (["--distributed.cpus_per_worker", "100"], "4x8x96", "4 workers of 100 CPU, .* hold 0 such workers"),
        (
            ["--distributed.device", "cpu", "--distributed.workers", "4"],
            "3x0x4",
            "of 3 CPU each.* hold 3 such",
        ),
        ([], "1x4x3", "of 1 CPU, 1 GPU each.* hold 3 such"),
        (["--distributed.workers", "[3, 4]", "--distributed.cpus_per_worker", "4"], "1x4x12", "4 workers"),
    ],
)
def test_what_a_machine_cannot_hold_is_refused_with_the_numbers(words, machine, said):
    with pytest.raises(ConfigError, match=said):
        plans(config(*words), machine)


def test_an_elastic_run_needs_room_for_its_fewest_workers_and_a_stage_is_named(run_job):
    words = ("--distributed.workers", "[2, 4]", "--distributed.cpus_per_worker", "6")
    assert plans(config(*words), "1x4x12")[""].fewest == 2
    staged = ["--recipe", "voc_ms", "--distributed.cpus_per_worker", "13", "--plan", "1x1x12"]
    refused = run_job("jobs/train.py", *staged)
    assert (refused.code, refused.out) == (2, "")
    assert "stage-one: the run needs 13 CPU, 1 GPU" in refused.err


def test_loader_processes_follow_the_cpus_beside_a_gpu():
    def number(cpus: float, gpu: bool = True, *words: str) -> int:
        return loader_processes(config(*words).data, cpus, gpu)

    assert [number(cpus) for cpus in (1, 2, 4, 4.5, 6, 12, 18, 28)] == [2, 2, 2, 2, 4, 10, 16, 16]
    assert [number(cpus, False) for cpus in (1, 4, 64)] == [2, 2, 2]
    assert number(12, True, "--data.loader_workers", "0") == 0
    assert number(1, False, "--data.loader_workers", "7") == 7


@pytest.mark.parametrize("text", ["8", "1x8", "1x8x", "0x8x96", "1x8x0", "1x8x-1", "axbxc", "1x8x96x2"])
def test_a_machine_of_another_form_is_refused(text):
    with pytest.raises(ConfigError, match="--plan"):
        described_nodes(text)


def test_workers_of_a_given_size_may_wait_for_nodes_that_are_not_there_yet():
    words = ("--distributed.device", "gpu", "--distributed.workers", "4")
    with pytest.raises(
        ConfigError, match="no GPU .* give distributed.workers and distributed.cpus_per_worker"
    ):
        plan_workers(config(*words), {"CPU": 8})
    plan = plan_workers(config(*words, "--distributed.cpus_per_worker", "6"), {"CPU": 8})
    assert (plan.workers, plan.use_gpu, plan.resources_per_worker) == (4, True, {"CPU": 6.0, "GPU": 1.0})
