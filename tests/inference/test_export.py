"""Exports: the weights come back, the graphs give the network's numbers, MLflow answers."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from cosa_dist.config.schema import EvaluationConfig
from cosa_dist.data.errors import DataError
from cosa_dist.evaluation.report import EvalReport
from cosa_dist.inference import export_graph
from cosa_dist.inference.export import FORMATS, _model_card, export
from cosa_dist.inference.export_graph import ExportError, checked, example, graph_of
from cosa_dist.inference.trained import TrainedModel, load_trained
from cosa_dist.model.build import build_network

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(trained_run) -> TrainedModel:
    return load_trained(trained_run, "", "", CPU)


@pytest.fixture(scope="module")
def weights(model, trained_run, tmp_path_factory) -> Path:
    """A folder with the weights."""
    report = EvalReport.from_json((trained_run / "report_online.json").read_text())
    out = tmp_path_factory.mktemp("export") / "out"
    export(model, out, ["weights"], [report])
    return out


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_exported_weights_are_the_same_network(model, weights):
    back = load_trained(weights, "", "", CPU)
    assert same(back.network, model.network)
    assert back.class_names == model.class_names
    assert not back.network.training
    assert back.config.evaluation == model.config.evaluation


def test_training_starts_from_exported_weights(model, weights):
    config = model.config.model.model_copy(update={"weights": str(weights / "model.safetensors")})
    assert same(build_network(config, len(model.class_names), 7), model.network)


def test_the_folder_tells_classes_scores_and_no_path_of_this_machine(model, weights, trained_run):
    hub = json.loads((weights / "config.json").read_text())
    assert hub["id2label"]["0"] == "background"
    assert hub["id2label"]["1"] == model.class_names[0]
    card = (weights / "README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert header["pipeline_tag"] == "image-segmentation"
    score = EvalReport.from_json((trained_run / "report_online.json").read_text()).miou()
    assert f"| online | unfiltered | {score:.2f} | 11 |" in card
    for path in weights.iterdir():
        assert str(trained_run.parent).encode() not in path.read_bytes(), path.name
        assert path.stat().st_mode & 0o044 == 0o044


@pytest.mark.parametrize(
    ("protocol", "size", "seen"),
    [
        (
            "cosa",
            "448 x 448 pixels, aspect ratio not kept",
            "sees it\nresized to that square, at the scales 1, 0.5",
        ),
        (
            "weclip",
            "longer side 512 pixels, aspect ratio kept; the graphs: 512 x 512",
            "with its longer side of that",
        ),
        (
            "toco",
            "each picture's own; the graphs: 448 x 448",
            "at its own size, at the scales 1, 1.5, 1.25 and mirr",
        ),
        ("excel", "320 x 320 pixels", "the scales 1, 0.7, 1.2, 1.5 and mirrored (but at 1)."),
    ],
)
def test_the_card_says_what_the_geometry_sees(model, protocol, size, seen):
    config = model.config.model_copy(update={"evaluation": EvaluationConfig(protocol=protocol)})
    card = _model_card(replace(model, config=config), ["weights"], ())
    assert f"| seen size | {size}" in card
    assert seen in card


def test_a_damaged_export_is_one_line(weights, tmp_path):
    def copy(name: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for path in weights.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        return folder

    cut = copy("cut")
    (cut / "model.safetensors").write_bytes((weights / "model.safetensors").read_bytes()[:500])
    with pytest.raises(ValueError, match="is no whole export"):
        load_trained(cut, "", "", CPU)
    named = copy("named")
    (named / "class_names.txt").write_text("only\n")
    with pytest.raises(ValueError, match="names 1 classes, not 7"):
        load_trained(named, "", "", CPU)


def test_a_folder_that_is_there_is_kept_unless_told_otherwise(model, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x")
    with pytest.raises(DataError, match="is there already"):
        export(model, tmp_path / "out", ["weights"])
    assert (tmp_path / "out" / "mine.txt").is_file()
    export(model, tmp_path / "out", ["weights"], overwrite=True)
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_format_that_fails_leaves_nothing(model, tmp_path, monkeypatch):
    def fail(model, folder):
        (folder / "half").write_text("x")
        raise ExportError("torch_export: no")

    monkeypatch.setitem(FORMATS, "torch_export", fail)
    with pytest.raises(ExportError):
        export(model, tmp_path / "out", ["weights", "torch_export"])
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_gives_other_numbers_is_refused(model):
    graph = graph_of(model)

    def nearly(images):
        segmentation, logits = graph(images)
        return segmentation * 1.01, logits

    assert checked(graph, graph, "same") == 0
    with pytest.raises(ExportError, match="other: segmentation differs from the network by 0.01"):
        checked(graph, nearly, "other")


def test_the_graph_is_what_prediction_sees_at_one_scale(model):
    from cosa_dist.config.schema import EvaluationConfig
    from cosa_dist.evaluation.protocols import multi_scale_forward

    size = model.config.evaluation.size
    pixels = example(size, 1)
    settings = EvaluationConfig(size=size, scales=(1.0,), flip=False)
    with torch.no_grad():
        ((seen, _),) = multi_scale_forward(model.network, [pixels[0].byte()], settings)
        segmentation, logits = graph_of(model)(pixels)
    torch.testing.assert_close(segmentation, seen.segmentation, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits, seen.logits, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_torch_export_runs_alone_for_any_batch(model, tmp_path):
    export(model, tmp_path / "out", ["torch_export"])
    loaded = torch.export.load(tmp_path / "out" / "model.pt2").module()
    images = example(model.config.evaluation.size, 5)
    torch.testing.assert_close(tuple(loaded(images)), graph_of(model)(images))


@pytest.mark.slow
def test_onnx_runs_in_onnxruntime_with_the_networks_numbers(model, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    export(model, tmp_path / "out", ["onnx"])
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"))
    images = example(model.config.evaluation.size, 5)
    segmentation, logits = session.run(None, {"images": images.numpy()})
    wanted = graph_of(model)(images)
    torch.testing.assert_close(torch.from_numpy(segmentation), wanted[0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(torch.from_numpy(logits), wanted[1], rtol=1e-3, atol=1e-3)


def test_onnx_without_its_packages_says_what_to_install(model, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(ExportError, match=r"pip install -e '\.\[export\]'"):
        export_graph.write_onnx(model, tmp_path)


@pytest.mark.slow
@pytest.mark.integration
def test_mlflow_loads_the_model_and_answers_row_by_row(model, tmp_path):
    import mlflow.pyfunc
    import pandas

    from cosa_dist.data.decode import decode_mask

    export(model, tmp_path / "out", ["mlflow"])
    (tmp_path / "out").rename(tmp_path / "moved")
    served = mlflow.pyfunc.load_model(str(tmp_path / "moved" / "mlflow"))
    buffer = io.BytesIO()
    Image.fromarray(np.full((20, 30, 3), 99, np.uint8)).save(buffer, format="PNG")
    rows = [base64.b64encode(buffer.getvalue()).decode(), base64.b64encode(b"none").decode(), "%"]
    answer = served.predict(pandas.DataFrame({"image": rows}))
    assert decode_mask(base64.b64decode(answer["mask"][0])).shape == (20, 30)
    assert sum(json.loads(answer["classes"][0]).values()) == pytest.approx(1)
    assert answer["error"].tolist() == [
        "",
        "image cannot be decoded: not a known picture format",
        "Only base64 data is allowed",
    ]
    text = (tmp_path / "moved" / "mlflow" / "MLmodel").read_text()
    assert str(tmp_path) not in text
