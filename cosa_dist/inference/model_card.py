"""The README.md of an exported network: what it is, how good, how to use it, and what not to expect."""

from __future__ import annotations

from collections.abc import Sequence

from cosa_dist.evaluation.report import EvalReport
from cosa_dist.inference.trained import TrainedModel

USES = {
    "weights": """```bash
python jobs/predict.py FOLDER pictures/ --out masks                      # masks of pictures
python jobs/train.py --model.weights FOLDER/model.safetensors ...        # go on training, on the same classes
```""",
    "torch_export": """```python
graph = torch.export.load("model.pt2").module()
segmentation, logits = graph(images)   # images [B, 3, {size}, {size}] float32, RGB 0..255
```""",
    "onnx": """```python
session = onnxruntime.InferenceSession("model.onnx")
segmentation, logits = session.run(None, {{"images": images}})   # [B, 3, {size}, {size}] float32, RGB 0..255
```""",
    "mlflow": """```bash
source .venv/bin/activate && mlflow models serve -m mlflow --env-manager local --host 127.0.0.1 --port 5001
curl http://127.0.0.1:5001/invocations -H 'Content-Type: application/json' \\
  -d '{{"dataframe_split": {{"columns": ["image"], "data": [["'$(base64 -w0 photo.jpg)'"]]}}}}'
```""",
}


def model_card(model: TrainedModel, formats: Sequence[str], reports: Sequence[EvalReport]) -> str:
    """The card as Markdown with the Hugging Face hub's header."""
    config = model.config
    size = config.evaluation.size
    supervised = "masks" if config.kind == "segmenter" else "image tags"
    uses = "\n\n".join(
        USES[name].format(size=size) if "{size}" in USES[name] else _plain(name) for name in formats
    )
    names = ", ".join(model.class_names)
    scales = ", ".join(f"{scale:g}" for scale in config.evaluation.scales)
    mirrored = " and mirrored" if config.evaluation.flip else ""
    return f"""---
library_name: cosa_dist
pipeline_tag: image-segmentation
tags: [semantic-segmentation, weakly-supervised, cosa]
---

# {model.name}

Semantic segmentation of {len(model.class_names)} classes, learned from {supervised} with `cosa_dist`
(CoSA, "Weakly Supervised Co-training with Swapping Assignments for Semantic Segmentation", ECCV 2024).

| | |
|---|---|
| backbone | `{config.model.backbone}` |
| recipe, seed, steps | `{config.recipe}`, {config.seed}, {config.training.steps} |
| checkpoint | {model.source} |
| seen size | {size} x {size} pixels, aspect ratio not kept |
| classes | background, {names} |

## Scores

{_scores(reports, config.data.label)}

## Use

{uses}

The graphs see a picture once, resized (bilinear) to the square; `jobs/predict.py` sees it at
the scales {scales}{mirrored}.

## Limits

Learned from {supervised}: borders are soft, and what always occurs together with a class may be taken for it.
Only the classes above are known; everything else should come out as background. The weights' licence
follows from the images and the initial weights that they were trained with.
"""


def _plain(name: str) -> str:
    return USES[name].replace("{{", "{").replace("}}", "}")


def _scores(reports: Sequence[EvalReport], dataset: str) -> str:
    if not reports:
        return "None recorded."
    lines = ["| network | prediction | mIoU (%) | images |", "|---|---|---|---|"]
    for report in reports:
        for measurement, score in report.scores.items():
            if score.miou is not None:
                lines.append(f"| {report.network} | {measurement} | {score.miou:.2f} | {report.images} |")
    where = f"At the run's last step, on the validation images{f' of {dataset}' if dataset else ''}. "
    return (
        f"{where}`unfiltered` is the headline; `true_labels` may use the tags of the evaluated image.\n\n"
        + "\n".join(lines)
    )
