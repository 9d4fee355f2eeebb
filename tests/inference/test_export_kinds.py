"""Exports of every kind of network: other encoders than a plain ViT, and the second stage's segmenter."""

from __future__ import annotations

import base64
import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from cosa_dist.config.loading import build_config
from cosa_dist.inference.export import export
from cosa_dist.inference.export_graph import example, graph_of
from cosa_dist.inference.segmentation import Segmenting
from cosa_dist.inference.trained import TrainedModel, load_trained
from cosa_dist.training.state import build_trained_network
from tests.model.tiny_encoders import KINDS, tiny_model_config

CPU = torch.device("cpu")
NAMES = ("cat", "dog", "train")
SIZE = 64
FIRST_STAGE = [f"cosa {kind}" for kind in KINDS]
SECOND_STAGE = ["segmenter vit", "segmenter swin", "segmenter resnet", "segmenter convnext"]


def random_model(what: str) -> TrainedModel:
    """A tiny random network of three classes, as if it had been trained."""
    stage, _, kind = what.partition(" ")
    section = tiny_model_config(kind).model_dump()
    config = build_config({
        "kind": stage,
        "model": section,
        "data": {"crop_size": SIZE},
        "evaluation": {"size": SIZE, "scales": [1.0], "flip": False},
        "segmenter": {"decoder_channels": 16, "decoder_norm": "group"},
    })  # fmt: skip
    network = build_trained_network(config, len(NAMES)).eval()
    return TrainedModel(network, config, NAMES, "random", "step-00000003", "online", "")


@pytest.fixture(params=[*FIRST_STAGE, *SECOND_STAGE])
def model(request) -> TrainedModel:
    return random_model(request.param)


def test_the_weights_come_back(model, tmp_path):
    export(model, tmp_path / "out", ["weights"])
    back = load_trained(tmp_path / "out", "", "", CPU)
    assert type(back.network) is type(model.network)
    images = example(SIZE, 2)
    with torch.no_grad():
        mine, theirs = model.network(images), back.network(images)
    assert torch.equal(mine.segmentation, theirs.segmentation)
    assert torch.equal(mine.logits, theirs.logits)
    learned = "masks" if model.config.kind == "segmenter" else "image tags"
    assert f"learned from {learned}" in (tmp_path / "out" / "README.md").read_text()


def one_now(first: str, *others: str) -> pytest.MarkDecorator:
    """An export takes a while: one network with every submission, and the others in the nightly tests."""
    nightly = [pytest.param(other, marks=pytest.mark.nightly) for other in others]
    return pytest.mark.parametrize("what", [first, *nightly])


# ONNX goes through torch.export, too: each way has encoders of its own here.
@pytest.mark.slow
@one_now(
    "segmenter swin", "cosa vit", "cosa vit with registers", "cosa swin", "segmenter convnext", "cosa swinv2"
)
def test_torch_export_gives_the_networks_numbers(what, tmp_path):
    model = random_model(what)
    export(model, tmp_path / "out", ["torch_export"])
    loaded = torch.export.load(tmp_path / "out" / "model.pt2").module()
    images = example(SIZE, 5)
    with torch.no_grad():
        wanted = graph_of(model)(images)
    assert wanted[0].std() > 0
    torch.testing.assert_close(tuple(loaded(images)), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@one_now("segmenter resnet", "cosa convnext", "cosa resnet", "segmenter vit", "cosa vit of dinov3")
def test_onnx_gives_the_networks_numbers(what, tmp_path):
    model = random_model(what)
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    export(model, tmp_path / "out", ["onnx"])
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"))
    images = example(SIZE, 5)
    given = session.run(None, {"images": images.numpy()})
    with torch.no_grad():
        wanted = graph_of(model)(images)
    for own, other in zip(wanted, given, strict=True):
        torch.testing.assert_close(own, torch.from_numpy(other), rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.integration
@one_now("segmenter swin", "cosa swin", "cosa resnet")
def test_mlflow_answers_with_the_predictors_mask(what, tmp_path):
    import mlflow.pyfunc
    import pandas

    from cosa_dist.data.decode import decode_mask

    model = random_model(what)
    export(model, tmp_path / "out", ["mlflow"])
    served = mlflow.pyfunc.load_model(str(tmp_path / "out" / "mlflow"))
    pixels = np.random.default_rng(1).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    answer = served.predict(pandas.DataFrame({"image": [base64.b64encode(buffer.getvalue()).decode()]}))
    mask = decode_mask(base64.b64decode(answer["mask"][0]))
    segmenting = Segmenting(model.network, model.config.evaluation, CPU)
    wanted = segmenting([torch.from_numpy(pixels).permute(2, 0, 1)])[0].classes
    assert answer["error"][0] == ""
    assert (mask == wanted).mean() > 0.99


@pytest.mark.parametrize("format_name", ["torch_export", "onnx"])
def test_a_square_that_the_network_cannot_take_is_one_line_and_no_export(format_name, tmp_path):
    model = random_model("cosa vit")
    evaluation = model.config.evaluation.model_copy(update={"geometry": "longer_side", "size": 70})
    model = replace(model, config=model.config.model_copy(update={"evaluation": evaluation}))
    with pytest.raises(ValueError, match="evaluation.size 70: ") as caught:
        export(model, tmp_path / "out", [format_name])
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
