"""What a worker checks and decides before its first step: shared memory, number format, weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import timm
import torch

from cosa_dist.config.errors import ConfigError
from cosa_dist.config.schema import RunConfig
from cosa_dist.distributed import plan as plan_module
from cosa_dist.distributed import prepare, worker
from cosa_dist.distributed.plan import WorkerPlan, await_resources
from cosa_dist.distributed.run_folder import RunFolder, WorkerTask
from cosa_dist.distributed.worker import check_shared_memory, common_precision, prepare_state, run_worker
from cosa_dist.model import build
from cosa_dist.training.checkpoint import save_checkpoint
from cosa_dist.training.state import build_state, make_accelerator
from tests.integration.small_run import make_shards, small_config, task_of
from tests.support.ranks import run_ranks

CPU = torch.device("cpu")


@pytest.fixture
def shared_memory(monkeypatch):
    """Shared memory with so many MiB free."""

    def with_free(mebibytes: float) -> None:
        usage = shutil.disk_usage("/")._replace(free=int(mebibytes * 2**20))
        monkeypatch.setattr(worker.shutil, "disk_usage", lambda place: usage)

    return with_free


def test_batches_that_do_not_fit_into_shared_memory_are_refused(shared_memory, tmp_path):
    # 8 workers of 10 processes with 2 batches of 16 pictures of 448 x 448 pixels, 7 bytes each: 3430 MiB.
    shared_memory(3430)
    check_shared_memory(10, 16, 448, 8, str(tmp_path))
    shared_memory(64)
    with pytest.raises(ValueError, match=r"64 MiB free .* 3430 MiB there: .* --shm-size=7g.*loader_workers"):
        check_shared_memory(10, 16, 448, 8, str(tmp_path))
    # The default of a container holds one GPU's batches of the released recipe, decoded by two processes.
    check_shared_memory(2, 4, 448, 1, str(tmp_path))
    check_shared_memory(0, 10**6, 448, 8, str(tmp_path))
    check_shared_memory(10, 10**6, 448, 8, str(tmp_path / "not there"))


def test_a_run_that_shared_memory_cannot_hold_ends_in_one_line(shared_memory, tmp_path):
    config = small_config(make_shards(tmp_path / "shards"), tmp_path, "run", data={"loader_workers": 1})
    shared_memory(0)
    with pytest.raises(ValueError, match="--shm-size"):
        run_worker(task_of(config, tmp_path / "run", 1))


def _precision(index: int, folder: str, own: str) -> None:
    worker.resolve_precision = lambda setting, device: own.split()[index]  # type: ignore[assignment]
    found = common_precision(RunConfig(), WorkerTask({}, folder, "", "", True, 1, 1))
    (Path(folder) / f"{index}").write_text(found)


@pytest.mark.parametrize(("own", "common"), [("bf16 bf16", "auto"), ("bf16 no", "fp32"), ("no no", "fp32")])
def test_bf16_is_chosen_only_where_every_gpu_has_it(tmp_path, own, common):
    run_ranks(_precision, 2, str(tmp_path), own)
    assert [(tmp_path / name).read_text() for name in "01"] == [common, common]


@pytest.fixture
def hub(monkeypatch) -> list[str]:
    """Stands for the server of timm's weights; the list has what was asked for."""
    asked: list[str] = []
    whole = timm.create_model("deit_tiny_patch16_224").state_dict()

    def download(model_id: str, *words: object, **more: object) -> dict[str, torch.Tensor]:
        asked.append(model_id)
        return {key: value.clone() for key, value in whole.items()}

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", download)
    return asked


def tagged(tmp_path, **changes: object) -> RunConfig:
    model = {"backbone": "deit_tiny_patch16_224", "backbone_options": {}, "weights": "fb_in1k"}
    config = small_config(
        tmp_path / "shards", tmp_path, "run", model=model | changes, tracking={"enabled": False}
    )
    return prepare.resolve(config)


def test_weights_of_a_tag_are_fetched_once_by_the_driver(tmp_path, hub, monkeypatch):
    config = tagged(tmp_path)
    assert config.model.weights_folder == str(tmp_path / "weights")
    direct = build_state(config, 3, CPU).online.state_dict()
    prepare.fetch_weights(config)
    prepare.fetch_weights(config)
    assert len(hub) == 2
    assert [path.name for path in (tmp_path / "weights").iterdir()] == [
        "deit_tiny_patch16_224.fb_in1k.safetensors"
    ]

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *words, **more: 1 / 0)
    built = build_state(config, 3, CPU).online.state_dict()
    assert all(torch.equal(built[key], value) for key, value in direct.items())


def test_weights_that_cannot_be_fetched_are_said_before_anything_is_made(tmp_path, monkeypatch):
    def no_network(*words: object, **more: object) -> None:
        raise OSError("We couldn't connect to the hub")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", no_network)
    make_shards(tmp_path / "shards")
    config = tagged(tmp_path)
    with pytest.raises(ConfigError, match=r"fb_in1k: timm cannot fetch .*couldn't connect.* or give a file"):
        prepare.prepare_run(config)
    assert not RunFolder.of(config).path.exists()


def test_a_run_that_goes_on_needs_no_weights(tmp_path, monkeypatch):
    config, folder = tagged(tmp_path, weights="none"), RunFolder(tmp_path / "runs" / "run")
    state = build_state(config, 3, CPU)
    state.step = 2
    save_checkpoint(state, folder.checkpoints, keep=1)
    config = tagged(tmp_path)

    def no_network(*words: object, **more: object) -> None:
        raise AssertionError("asked for weights")

    monkeypatch.setattr(build.timm, "create_model", refuse_pretrained(no_network))
    accelerator = make_accelerator("fp32", 1, True)
    found, _ = prepare_state(config, 3, folder, accelerator)
    assert found.step == 2


def refuse_pretrained(instead):
    create = timm.create_model

    def checked(name: str, pretrained: bool = False, **more: object) -> torch.nn.Module:
        return instead() if pretrained else create(name, pretrained=pretrained, **more)

    return checked


def test_ray_is_asked_for_workers_that_find_no_place(monkeypatch):
    """An autoscaler starts nodes only for what somebody has asked for; the request ends with the waiting."""
    nodes, asked = [[{"CPU": 8.0}], [{"CPU": 8.0}], [{"CPU": 8.0}, {"CPU": 24.0, "GPU": 2.0}]], []
    monkeypatch.setattr(plan_module, "node_resources", lambda: nodes.pop(0))
    monkeypatch.setattr(plan_module.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(
        "ray.util.placement_group", lambda bundles, strategy: asked.append(bundles) or "group"
    )
    monkeypatch.setattr("ray.util.remove_placement_group", asked.append)
    await_resources(WorkerPlan(2, True, 12.0, 1), 60.0)
    assert asked == [[{"CPU": 12.0, "GPU": 1.0}] * 2, "group"]
    nodes[:] = [[{"CPU": 24.0, "GPU": 2.0}]]
    await_resources(WorkerPlan(2, True, 12.0, 1), 60.0)
    assert len(asked) == 2
