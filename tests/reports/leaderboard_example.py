"""A store with three runs on two data sets, with curves, reports and pictures."""

from __future__ import annotations

from pathlib import Path

from mlflow.entities import Metric
from PIL import Image

from cosa_dist.evaluation.report import EvalReport, SegmentationScore
from cosa_dist.tracking.mlflow_runs import connect, create_run, finish_run, send
from cosa_dist.tracking.store import prepare_store

RUNS = (
    ("first", "VOC-mini", "0", 30.5, (200, 30, 30)),
    ("second", "VOC-mini", "1", 9.25, (30, 200, 30)),
    ("other <b>data</b>", "synthetic", "0", 50.0, (30, 30, 200)),
)


def report(miou: float) -> EvalReport:
    score = SegmentationScore(miou, 80.0, 60.0, (90.0, miou - 1, None))
    return EvalReport(
        network="online",
        class_names=("cat", "dog"),
        images=3,
        images_without_mask=0,
        scores={"unfiltered": score},
        map_image=None,
        map_class=None,
        aux_map_class=None,
    )


def make_store(folder: Path) -> str:
    """Create the store and return its URI."""
    uri = prepare_store(None, folder)
    client = connect(uri)
    for name, dataset, seed, miou, colour in RUNS:
        tags = {"dataset": dataset, "split": "val", "recipe": "demo", "backbone": "vit_tiny", "seed": seed}
        tags |= {"steps": "100", "kind": "cosa", "git_commit": "0123456789abcdef", "cpu_count": "2"}
        tags |= {"image_set": f"{dataset}-images", "evaluated_images": "3", "classes": "2", "benchmark": ""}
        params = {"seed": seed, "losses.energy": "0.05", "data.shards": f"/somewhere/{seed}"}
        run_id = create_run(uri, "pages", name, tags=tags, params=params)
        points = [Metric("train/total", 2.0 / step, 1000 + step, step) for step in range(1, 6)]
        points += [Metric("val/miou_unfiltered", miou * step / 5, 1000 + step, step) for step in (2, 4)]
        points += [Metric("final/online/miou_unfiltered", miou, 2000, 100)]
        points += [Metric("final/online/miou_true_labels", miou + 1, 2000, 100)]
        send(client, run_id, "metrics", points)
        path = folder / "report_online.json"
        path.write_text(report(miou).to_json(), encoding="utf-8")
        client.log_artifact(run_id, str(path))
        for number in range(2):
            picture = folder / f"{number:03d}_image.png"
            Image.new("RGB", (60, 40), colour).save(picture)
            client.log_artifact(run_id, str(picture), "pictures")
        finish_run(uri, run_id, "FINISHED")
    return uri
