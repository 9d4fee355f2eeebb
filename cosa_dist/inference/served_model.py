"""The model that MLflow loads and serves: pictures in, palette masks out.

MLflow runs this file itself (it keeps models as code, not as a pickle). A row's `image` is a picture file in
base64; the answer has its `mask` (a palette PNG in base64), the `classes` found with their fraction of the
pixels (JSON), and `error`, which says what is wrong with a picture that cannot be read; the other rows go on.
"""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pandas
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

from cosa_dist.data.decode import decode_image
from cosa_dist.data.errors import RecordError
from cosa_dist.data.reading.views import to_tensor
from cosa_dist.data.sources.record import MAX_FILE_BYTES
from cosa_dist.inference.segmentation import Segmenting
from cosa_dist.inference.trained import device_named, load_trained
from cosa_dist.inference.writing import palette_mask


class ServedModel(PythonModel):
    """Segments the pictures of a table."""

    def load_context(self, context: Any) -> None:
        """Load the exported folder among the model's artifacts."""
        device = device_named("auto")
        model = load_trained(Path(context.artifacts["network"]), "", "", device)
        self.names = ("background", *model.class_names)
        precision = model.config.training.precision
        self.segmenting = Segmenting(model.network, model.config.evaluation, device, precision=precision)

    def predict(self, context: Any, model_input: pandas.DataFrame, params: Any = None) -> pandas.DataFrame:
        """Answer a table with a column `image` by one with `mask`, `classes` and `error`."""
        return pandas.DataFrame([self._answer(text) for text in model_input["image"]])

    def _answer(self, text: str) -> dict[str, str]:
        try:
            if len(text) > MAX_FILE_BYTES * 4 // 3:
                raise RecordError(f"picture is larger than {MAX_FILE_BYTES} bytes; scale it down")
            image = to_tensor(decode_image(base64.b64decode(text, validate=True)))
        except (RecordError, ValueError) as error:
            return {"mask": "", "classes": "{}", "error": " ".join(str(error).split())}
        made = self.segmenting([image])[0]
        buffer = io.BytesIO()
        palette_mask(made.classes).save(buffer, format="PNG")
        found = {
            self.names[index]: float((made.classes == index).mean()) for index in sorted(made.confidence)
        }
        mask = base64.b64encode(buffer.getvalue()).decode("ascii")
        return {"mask": mask, "classes": json.dumps(found), "error": ""}


set_model(ServedModel())
