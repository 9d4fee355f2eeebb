"""Every parser on bytes and words that nobody chose: it gives a result, or the error that it promises."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import zeros

from cosa_dist.config.errors import ConfigError
from cosa_dist.config.loading import load_config, parse_overrides, read_yaml
from cosa_dist.config.options import known_keys
from cosa_dist.data.catalog import COCO_CLASSES
from cosa_dist.data.decode import decode_image, decode_mask
from cosa_dist.data.errors import DataError, RecordError
from cosa_dist.data.shards.split import read_description
from cosa_dist.data.sources.classes import read_class_names
from cosa_dist.data.sources.coco_outline import CocoMask
from cosa_dist.data.sources.record import SourceOptions, SourceRecord, id_of, unsafe_id, unsafe_name
from cosa_dist.data.sources.table import table_source
from cosa_dist.model.weight_file import read_file
from cosa_dist.tracking.mirror import parse_line
from cosa_dist.training.checkpoint_files import CheckpointError, read_checkpoint
from tests.bad_input.picture_cases import FORMATS, encoded, pixels
from tests.data.coco_files import CATEGORY_IDS, annotation, coco_annotated, write_coco

ONE_FOLDER = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60
)
SMALL = {kind: encoded(kind, pixels(9, 7)) for kind in FORMATS}


@contextmanager
def refusing(*kinds: type[Exception]) -> Iterator[None]:
    """Let errors of these kinds pass, if they say what is wrong in one line."""
    try:
        yield
    except kinds as error:
        lines = str(error).splitlines()
        assert len(lines) == 1 or kinds == (ConfigError,), lines


@st.composite
def spoilt(draw: st.DrawFn, data: bytes) -> bytes:
    """The data with some bytes changed, and perhaps cut or lengthened."""
    content = bytearray(data)
    for place, value in draw(
        st.lists(st.tuples(st.integers(0, len(data) - 1), st.integers(0, 255)), max_size=6)
    ):
        content[place] = value
    return bytes(content[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else content)


@pytest.mark.parametrize("kind", FORMATS)
@ONE_FOLDER
@given(data=st.data())
def test_a_spoilt_picture_is_a_picture_or_a_record_error(kind, data):
    content = data.draw(spoilt(SMALL[kind]) | st.binary(max_size=99))
    with refusing(RecordError):
        assert decode_image(content).mode == "RGB"
    with refusing(RecordError):
        assert decode_mask(content).ndim == 2


TABLES = {
    ".csv": b"image,tags\na.jpg,cat\nb.jpg,dog;cat\n",
    ".json": b'[{"image": "a.jpg", "tags": ["cat"]}]',
    ".jsonl": b'{"image": "a.jpg", "tags": "cat"}\n{"image": "b.jpg"}\n',
}


@pytest.mark.parametrize("ending", TABLES)
@ONE_FOLDER
@given(data=st.data())
def test_a_spoilt_table_is_a_table_or_a_data_error(ending, data, tmp_path):
    path = tmp_path / f"t{ending}"
    path.write_bytes(data.draw(spoilt(TABLES[ending]) | st.binary(max_size=99)))
    with refusing(DataError):
        info, entries = table_source(tmp_path, path, SourceOptions())
        assert info.class_names
        assert sum(map(len, entries.values())) > 0


@ONE_FOLDER
@given(content=st.binary(max_size=99) | st.text(max_size=50).map(str.encode))
def test_class_lists_descriptions_configurations_and_weights(content, tmp_path):
    for name in ("names.txt", "dataset.json", "c.yaml", "w.safetensors", "w.pth", "state.json"):
        (tmp_path / name).write_bytes(content)
    with refusing(DataError):
        assert read_class_names(tmp_path / "names.txt")
    with refusing(DataError):
        assert read_description(str(tmp_path))
    with refusing(ConfigError):
        assert isinstance(read_yaml(tmp_path / "c.yaml"), dict)
    for name in ("w.safetensors", "w.pth"):
        with refusing(ValueError):
            read_file(tmp_path / name)
    with refusing(CheckpointError):
        read_checkpoint(tmp_path)


@ONE_FOLDER
@given(data=st.data())
def test_a_spoilt_weight_file_is_tensors_or_a_value_error(data, tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(data.draw(spoilt(save({"a": zeros(2, 3)}))))
    with refusing(ValueError):
        assert all(tensor.numel() >= 0 for tensor in read_file(path).values())


ANNOTATIONS = {
    "images": [{"id": 1, "file_name": "a.jpg", "width": 9, "height": 7}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "area": 4.0, "bbox": [1, 1, 3, 3]}
        | {"segmentation": [[1, 1, 4, 1, 4, 4]]}
    ],
    "categories": [{"id": 1, "name": "person"}],
}


@ONE_FOLDER
@given(data=st.data())
def test_spoilt_coco_annotations_are_records_or_a_data_error(data, tmp_path):
    (tmp_path / "a").mkdir(exist_ok=True)
    (tmp_path / "train2014").mkdir(exist_ok=True)
    path = tmp_path / "a" / "instances_train2014.json"
    path.write_bytes(data.draw(spoilt(json.dumps(ANNOTATIONS).encode())))
    with refusing(DataError):
        list(coco_annotated(tmp_path, "train", tmp_path / "a"))


WHOLE: dict[str, Any] = {
    "images": [{"id": n, "file_name": f"{n}.jpg", "width": 12, "height": 10} for n in (1, 2, 3)],
    "annotations": [
        annotation(1, 1, 1, [[1, 1, 5, 1, 5, 5, 1, 5]]),
        annotation(2, 1, 18, {"size": [10, 12], "counts": [20, 10, 90]}, crowd=1),
        annotation(3, 2, 90, {"size": [10, 12], "counts": "d0:j2"}),
        annotation(4, 2, 2, [[1, 1, 5, 1, 5, 5, 1, 5], [6, 6, 8, 6, 8, 8]]),
    ],
    "categories": [
        {"id": number, "name": name} for number, name in zip(CATEGORY_IDS, COCO_CLASSES, strict=True)
    ],
}
ODD = """null true "" "1" "2.0" "x" "\\ud800\\n" 0 -1 1 2 77 2.0 0.5 NaN Infinity 1e300 [] {} [1] [[1,2]] [[]]
[null] {"id":1} [[[1,1],[4,1],[4,4]]] "[[1,1,4,1,4,4]]" "d0:j2" 10000000000000000000000000000000000000000"""


@st.composite
def mutated(draw: st.DrawFn) -> dict[str, Any]:
    """COCO's content with some values replaced, taken out, written as text or wrapped."""
    content = copy.deepcopy(WHOLE)
    for _ in range(draw(st.integers(1, 5))):
        parent: Any = content
        part = draw(st.sampled_from(["annotations"] * 5 + ["images"] * 3 + ["categories"]))
        place: Any = part
        while isinstance(parent[place], list | dict) and parent[place] and draw(st.integers(0, 9)) > 0:
            parent = parent[place]
            place = draw(st.sampled_from(list(parent) if isinstance(parent, dict) else range(len(parent))))
        how = draw(st.sampled_from(["odd", "odd", "out", "text", "list", "object"]))
        if how == "out":
            del parent[place]
        else:
            old = parent[place]
            ways = {
                "odd": json.loads(draw(st.sampled_from(ODD.split()))),
                "text": str(old),
                "list": [old],
                "object": {"value": old},
            }
            parent[place] = copy.deepcopy(ways[how])
        if not all(isinstance(content.get(key), list) for key in WHOLE):
            break
    return content


@ONE_FOLDER
@given(content=mutated())
def test_every_annotation_is_used_or_told(content: dict[str, Any], tmp_path: Path) -> None:
    path = write_coco(tmp_path, [], images=3) / "instances_val2014.json"
    path.write_text(json.dumps(content))
    told: list[str] = []
    made = None
    with refusing(DataError):
        made = list(coco_annotated(tmp_path, "val", path, told.append))
    if made is None:
        return
    assert all(len(line.splitlines()) == 1 and line.isprintable() for line in told)
    lost = sum(
        int(match[1]) for line in told if (match := re.search(r": (\d+) of \d+ annot.*; left out", line))
    )
    total = len(content["annotations"])
    assert (f"instances_val2014.json: {total - lost} of {total} annotations are used" in told) == (lost > 0)
    records = [entry for entry in made if isinstance(entry, SourceRecord)]
    masks = [entry.mask for entry in records if isinstance(entry.mask, CocoMask)]
    instances = sum(len(mask.instances) for mask in masks)
    assert instances <= total - lost
    if len(masks) == len(records):
        assert instances == total - lost
    else:
        assert "no mask" in "".join(told) or "no width" in "".join(told)
    for mask in masks:
        assert decode_mask(mask.read()).shape == (mask.height, mask.width)
    assert all(isinstance(entry, SourceRecord) or "\n" not in entry.reason for entry in made)
    assert len(made) <= len(content["images"])


@ONE_FOLDER
@given(
    words=st.lists(st.sampled_from(sorted(known_keys())).map("--{}".format) | st.text(max_size=9), max_size=5)
)
def test_any_command_line_is_a_configuration_or_a_config_error(words):
    with refusing(ConfigError):
        assert load_config("tiny", None, words).recipe


@ONE_FOLDER
@given(value=st.text(max_size=20))
def test_any_value_is_yaml_or_a_config_error(value):
    with refusing(ConfigError):
        assert parse_overrides(["--name", value]).keys() == {"name"}
    assert yaml.safe_load("1") == 1


@given(name=st.text(max_size=40))
def test_a_name_that_passes_stays_inside_its_folder(name):
    root = Path("/data/root")
    if unsafe_name(name) is None:
        assert (root / name).resolve().is_relative_to(root)
    own = id_of(name)
    if unsafe_id(own) is None:
        assert (root / own).resolve().parent == root


@given(line=st.binary(max_size=60))
def test_any_line_of_the_mirror_is_numbers_or_nothing(line):
    found = parse_line(line)
    assert found is None or isinstance(found.step, int)
