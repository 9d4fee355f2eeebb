"""Takes a trained network elsewhere: a folder for the Hugging Face hub, PyTorch, onnxruntime or MLflow.

    OUT/model.safetensors  config.yaml     weights, for jobs/predict.py and --model.weights
    OUT/model.pt2                          torch.export
    OUT/model.onnx                         ONNX
    OUT/mlflow/                            an MLflow model, for `mlflow models serve`
    OUT/config.json  class_names.txt  README.md      always: classes, sizes, model card

The folder appears whole or not at all. Paths of the machine are left out of the configuration.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

import yaml
from jinja2 import Environment, PackageLoader

from cosa_dist.atomic import atomic_folder
from cosa_dist.config.loading import to_yaml
from cosa_dist.config.method import names_a_file
from cosa_dist.config.schema import RunConfig
from cosa_dist.data.errors import DataError
from cosa_dist.evaluation.report import EvalReport
from cosa_dist.inference.export_graph import write_onnx, write_torch_export
from cosa_dist.inference.trained import CLASSES, CONFIG, WEIGHTS, TrainedModel
from cosa_dist.model.backbone import backbone_of
from cosa_dist.model.build import facts_of_weights
from cosa_dist.model.weight_file import save_tensors
from cosa_dist.model.weights import metadata_of

SERVED = Path(__file__).with_name("served_model.py")
MLFLOW_FOLDER, NETWORK = "mlflow", "network"
PACKAGE = Path(__file__).parents[1]


def export(
    model: TrainedModel,
    out: Path,
    formats: Sequence[str],
    reports: Sequence[EvalReport] = (),
    overwrite: bool = False,
) -> list[str]:
    """Write an export with some of `FORMATS` to the new folder `out` and return one line on each.

    The reports are the run's evaluations, for the model card. Raises DataError if `out` is there already
    (and not `overwrite`), ExportError if a format does not work for this network; nothing is left behind.
    """
    if out.exists() and not overwrite:
        raise DataError(f"{out} is there already; give another --out, or --overwrite")
    with atomic_folder(out, replace=True) as working:
        _describe(model, working, formats, reports)
        return [f"{name}: {FORMATS[name](model, working)}" for name in formats]


def portable_config(config: RunConfig) -> RunConfig:
    """The configuration without the folders and addresses of the machine that trained."""
    data = config.data.model_copy(update={"shards": Path(config.data.shards).name, "cache": ""})
    weights = config.model.weights
    if names_a_file(weights) and not names_a_file(weights := Path(weights).name):
        weights = f"./{weights}"  # else it would be a tag
    network = config.model.model_copy(update={"weights": weights})
    tracking = config.tracking.model_copy(update={"uri": ""})
    changes = {"data": data, "model": network, "tracking": tracking, "output": "outputs"}
    return config.model_copy(update=changes)


def _describe(
    model: TrainedModel, folder: Path, formats: Sequence[str], reports: Sequence[EvalReport]
) -> None:
    """Write what every export has."""
    labels = dict(enumerate(("background", *model.class_names)))
    content = {
        "model_type": "cosa_dist",
        "architectures": [type(model.network).__name__],
        "cosa_dist_version": metadata.version("cosa_dist"),
        "backbone": model.config.model.backbone,
        "image_size": model.config.evaluation.size,
        "run": model.name,
        "checkpoint": model.checkpoint,
        "network": model.which,
        "id2label": {str(index): name for index, name in labels.items()},
        "label2id": {name: index for index, name in labels.items()},
    }
    (folder / "config.json").write_text(json.dumps(content, indent=2), encoding="utf-8")
    (folder / CLASSES).write_text("".join(f"{name}\n" for name in model.class_names), encoding="utf-8")
    (folder / "README.md").write_text(_model_card(model, formats, reports), encoding="utf-8")


def _model_card(model: TrainedModel, formats: Sequence[str], reports: Sequence[EvalReport]) -> str:
    """What the network is, how good, how to use it and what not to expect: Markdown with the hub's header."""
    network = model.config.model
    facts = None if names_a_file(network.weights) else facts_of_weights(network)
    pages = Environment(
        loader=PackageLoader("cosa_dist.inference"), trim_blocks=True, keep_trailing_newline=True
    )
    return pages.get_template("model_card.md.j2").render(
        model=model,
        config=model.config,
        licence=facts.license if facts else None,
        size=model.config.evaluation.size,
        supervision="masks" if model.config.kind == "segmenter" else "image tags",
        reports=reports,
        formats=formats,
    )


def _write_weights(model: TrainedModel, folder: Path) -> str:
    state = model.network.state_dict()
    metadata = {"format": "pt"} | metadata_of({"colours": backbone_of(model.network).colours})
    save_tensors(state, folder / WEIGHTS, metadata)
    (folder / CONFIG).write_text(to_yaml(portable_config(model.config)), encoding="utf-8")
    return f"{WEIGHTS}, {sum(value.numel() for value in state.values()) / 1e6:.1f} million numbers"


def _write_mlflow(model: TrainedModel, folder: Path) -> str:
    import mlflow.pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    network = folder / NETWORK
    network.mkdir()
    try:
        _describe(model, network, ["weights"], ())
        _write_weights(model, network)
        # The package itself lies in the model.
        needed = (line.partition(";") for line in metadata.requires("cosa_dist") or [])
        requirements = [name for name, _, extra in needed if not extra and not name.startswith("mlflow")]
        answer = Schema([ColSpec(DataType.string, name) for name in ("mask", "classes", "error")])
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        # It would rather see an example of a picture; the signature says it all.
        warnings.filterwarnings("ignore", module="mlflow.pyfunc")
        mlflow.pyfunc.save_model(
            str(folder / MLFLOW_FOLDER),
            python_model=str(SERVED),
            artifacts={NETWORK: str(network)},
            code_paths=[str(PACKAGE)],
            signature=ModelSignature(Schema([ColSpec(DataType.string, "image")]), answer),
            pip_requirements=[f"mlflow=={mlflow.__version__}", *requirements],
        )
        _remove_machine_paths(folder / MLFLOW_FOLDER / "MLmodel")
    finally:
        shutil.rmtree(network, ignore_errors=True)
    return f"{MLFLOW_FOLDER}/, serve with: mlflow models serve -m FOLDER/mlflow --env-manager local"


def _remove_machine_paths(path: Path) -> None:
    """Make the folders in MLflow's description relative; it looks for both beside itself."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    flavor = content["flavors"]["python_function"]
    flavor["model_code_path"] = SERVED.name
    flavor["artifacts"][NETWORK]["uri"] = flavor["artifacts"][NETWORK]["path"]
    path.write_text(yaml.safe_dump(content), encoding="utf-8")


# What an export can hold, and what writes it.
FORMATS: dict[str, Callable[[TrainedModel, Path], str]] = {
    "weights": _write_weights,
    "torch_export": write_torch_export,
    "onnx": write_onnx,
    "mlflow": _write_mlflow,
}
