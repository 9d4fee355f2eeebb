"""What an ingest says of masks: which id is which class, how masks and tags fit, and what it refuses."""

import io
import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from cosa_dist.data.catalog import DatasetInfo
from cosa_dist.data.decode import ORIENTATION, encode_jpeg, encode_mask
from cosa_dist.data.errors import DataError
from cosa_dist.data.ingest.ingest import IngestOptions, ingest
from cosa_dist.data.ingest.report import MaskSurvey, class_lines, mask_lines
from cosa_dist.data.shards.writer import Trace
from cosa_dist.data.sources.record import SourceRecord

JOB = Path(__file__).resolve().parents[2] / "jobs" / "ingest.py"
ANIMALS = ("cat", "dog", "owl")
Drawn = tuple[tuple[int, ...] | None, tuple[int, ...]]
"""Tags of a picture (None: from the mask), and the values of its mask, a stripe of two columns for each."""


def records(drawn: list[Drawn]) -> list[SourceRecord]:
    made = []
    for number, (tags, values) in enumerate(drawn):
        ids = np.repeat(np.array(values, np.uint8), 2)[None].repeat(4, 0)
        photo = encode_jpeg(np.full((*ids.shape, 3), number, np.uint8))
        made.append(SourceRecord(f"{number:02d}", photo, encode_mask(ids), tags))
    return made


def said(tmp_path: Path, drawn: list[Drawn], names: tuple[str, ...] = ANIMALS, given: bool = False) -> str:
    """The ingest's output and, where it is refused, the error."""
    shown = io.StringIO()
    try:
        options = IngestOptions(classes_given=given)
        ingest(
            {"val": records(drawn)}, DatasetInfo("own", names), tmp_path / "out", options, Console(file=shown)
        )
    except DataError as error:
        return f"{shown.getvalue()}REFUSED {error}"
    return shown.getvalue()


def by_class(ids: tuple[tuple[int, ...], ...], repeat: int = 3) -> list[Drawn]:
    """For each class so many pictures with its tag alone, and a mask of the given values."""
    return [((tag,), values) for tag, values in enumerate(ids) for _ in range(repeat)]


EXCHANGED = by_class(((0, 2), (0, 1), (0, 3)))
"""Cats drawn as dogs and dogs as cats."""


@pytest.mark.parametrize(
    ("drawn", "names", "words"),
    [
        (by_class(((0, 255),)), ("crack",), "0 and 255 only, and 255 is ignored; write each class's id"),
        (by_class(((0, 255),)), ("crack",), "(1 for 'crack'), 0 for background"),
        ([(None, (0, 255)), (None, (255, 0, 255))], ANIMALS, "0 and 255 only"),
        ([((), (0,)), ((0,), (0, 255))], ANIMALS, "0 and 255 only"),
        ([*by_class(((0,), (0, 255), (0, 255)))], ANIMALS, "0 and 255 only"),
        (by_class(((255,), (255,), (255,))), ANIMALS, "every pixel of every mask is 255, which is ignored"),
        ([(None, (255,))], ANIMALS, "every pixel of every mask is 255, which is ignored"),
        (by_class(((0,), (0,), (0,))), ANIMALS, "every mask is 0, which is background, though 9 of"),
        # One value for the objects of all classes, in equal and in unequal numbers.
        (by_class(((0, 1), (0, 1), (0, 1))), ANIMALS, "tell no classes apart: all hold the value 1 ('cat')"),
        (
            [*by_class(((0, 1),), 20), ((2,), (0, 1)), ((1,), (1,))],
            ANIMALS,
            "all hold the value 1 ('cat'), also 2 whose pictures have other tags only (first: val/20); write",
        ),
        (by_class(((0, 2, 255), (2, 255), (0, 2))), ANIMALS, "all hold the value 2 ('dog'), also 6"),
        # Other ids than the sorted names': two exchanged, all in a circle, and no background (ids from 0).
        (EXCHANGED, ANIMALS, "6 of 9 masks with a class hold none of their picture's tags (first: val/00)"),
        (EXCHANGED, ANIMALS, "value 2 stands on pictures tagged 'cat', which is id 1, value 1 stands"),
        (EXCHANGED, ANIMALS, "in the order of the masks' ids with --classes FILE"),
        (by_class(((3, 255), (1,), (2, 0))), ANIMALS, "value 3 stands on pictures tagged 'cat', which is"),
        (by_class(((0, 255), (1, 255), (2, 255))), ANIMALS, "ids are 1 too low, for 0 is background and"),
        (by_class(((0, 255), (1, 255), (2, 255))), ANIMALS, "; add 1 in the masks (not to 255), or"),
        # Ids of a list with a class that no picture is tagged with, the last of them on one picture.
        (
            [*by_class(((0, 3), (0, 4)), 5), ((2,), (0, 5))],
            (*ANIMALS, "ant", "bee"),
            "ids are 2 too high, for 0 is background and 1 the first class; subtract 2 in the masks",
        ),
        (by_class(((0, 2), (0, 3), (0, 1)), 1), ANIMALS, "contradict each other: 3 of 3"),
        # Two of ten exchanged: 20 per cent of the masks contradict their tags.
        (
            by_class(tuple((0, value) for value in (1, 2, 3, 4, 9, 6, 7, 8, 5, 10))),
            tuple("abcdefghij"),
            "6 of 30 masks with a class hold none of their picture's tags (first: val/12); value 9 stands on "
            "pictures tagged 'e', which is id 5, value 5 stands on pictures tagged 'i', which is id 9; give",
        ),
        # Grey levels of a picture for people instead of ids, among enough classes that they are allowed.
        (
            by_class(((0, 20), (0, 40), (0, 60))),
            tuple(f"c{number:02d}" for number in range(60)),
            "value 20 stands on pictures tagged 'c00', which is id 1, value 40",
        ),
        # Several tags a picture; every picture has a tag that is in its mask by another id's name.
        (
            [((0, 1), (0, 2, 3)), ((1,), (0, 3)), ((2,), (0, 1)), ((0,), (0, 2)), ((0, 2), (2, 1))],
            ANIMALS,
            "value 2 stands on pictures tagged 'cat', which is id 1, value 3 stands on pictures tagged 'dog'",
        ),
        # Two classes with 1 as background: every mask holds 1, half of them 2.
        (
            by_class(((1, 2), (1,)), 2),
            ("crack", "intact"),
            "2 of 4 masks with a class hold none of their picture's tags (first: val/02); value 2 stands on "
            "no picture tagged 'intact'; give the class names",
        ),
        # A name that means pixels without a class.
        (
            [(None, (0, 1, 2)), (None, (0, 3, 255))],
            ("cat", "Unlabeled", "dog"),
            "1 masks hold 2, which is 'Unlabeled'; pixels without a class are 255 (ignored) or 0",
        ),
        ([((0,), (0, 1)), ((0,), (1, 2))], ("cat", "__ignore__"), "which is '__ignore__'; pixels without"),
    ],
)  # fmt: skip
def test_masks_that_cannot_be_meant_are_refused(
    tmp_path: Path, drawn: list[Drawn], names: tuple[str, ...], words: str
) -> None:
    found = said(tmp_path, drawn, names)
    assert words in found.rpartition("REFUSED")[2], found
    assert "REFUSED" in found
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("drawn", "lines"),
    [
        (
            by_class(((0, 1), (2,), (0, 3))),
            ["masks: no pixel is 255 (ignored)", "masks and tags agree on all 9 pictures that have both"],
        ),
        ([(None, (0, 1, 255, 0))], ["masks: 25.0 % of their pixels are 255, which is ignored"]),
        ([((0,), (1, 1, 255))], ["none holds a 0, so there is no background", "agree on all 1 "]),
        # An untagged picture with a class in its mask, a tag whose object is not drawn, an empty mask.
        (
            [((), (0, 1)), ((0, 2), (0, 1)), ((1,), (0,)), ((0,), (1,)), ((1,), (0, 2)), ((1,), (0, 2, 3))],
            [
                "1 of 6 masks hold no class of their picture's tags (first: val/02)",
                "2 of 6 masks hold a class that is no tag of their picture (first: val/00): cat 1, owl 1",
                "2 of 6 pictures have a tag that is not in their mask (first: val/01): dog 1, owl 1",
            ],
        ),
        # Only cats were annotated: dogs' masks are empty, which is said and no contradiction.
        (
            by_class(((0, 1), (0,), (0,)), 4),
            ["8 of 12 masks hold no class of their", "not in their mask (first: val/04): dog 4, owl 4"],
        ),
        # Few mistakes among many: counted, and the first is named.
        (
            [*by_class(((0, 1), (0, 2), (0, 3)), 8), ((0,), (0, 2))],
            ["1 of 25 masks hold no class of their", "no tag of their picture (first: val/24): dog 1"],
        ),
        ([((), (0,)), ((), (0,))], ["WARNING: every pixel of every mask is 0, which is background; write"]),
    ],
)  # fmt: skip
def test_what_masks_and_tags_say_of_each_other(tmp_path: Path, drawn: list[Drawn], lines: list[str]) -> None:
    found = said(tmp_path, drawn)
    assert "REFUSED" not in found
    for line in lines:
        assert line in found
    assert "stands on" not in found


def test_with_classes_given_a_contradiction_is_said_and_one_value_for_all_is_still_refused(
    tmp_path: Path,
) -> None:
    found = said(tmp_path, EXCHANGED, given=True)
    assert "REFUSED" not in found
    assert "WARNING: masks and tags contradict each other: 6 of 9" in found
    assert "value 2 stands on pictures tagged 'cat', which is id 1" in found
    assert "REFUSED the masks tell no classes" in said(
        tmp_path / "b", by_class(((1,), (1,), (1,))), given=True
    )


def test_a_single_contradiction_is_said_and_refuses_nothing(tmp_path: Path) -> None:
    found = said(tmp_path, [((0,), (2,)), ((0, 1), (2,))])
    assert "REFUSED" not in found
    assert "WARNING: masks and tags contradict each other: 1 of 2 masks with a class" in found
    assert "value 2 stands on pictures tagged 'cat', which is id 1" in found
    assert "1 of 2 masks hold no class" in said(tmp_path / "b", [((0,), (0, 1)), ((1,), (0, 1))])


def test_few_contradictions_of_exchanged_ids_are_a_warning(tmp_path: Path) -> None:
    drawn = [*by_class(((0, 1), (0, 2)), 30), ((2,), (0, 4)), ((2,), (0, 4)), ((3,), (0, 3)), ((3,), (0, 3))]
    found = said(tmp_path, drawn, ("cat", "dog", "owl", "ant"))
    assert "REFUSED" not in found
    assert "WARNING: masks and tags: value 4 stands on pictures tagged 'owl', which is id 3, value 3" in found


def test_names_of_pixels_without_a_class(tmp_path: Path) -> None:
    found = said(tmp_path, by_class(((0, 1), (0, 2))), ("crack", "void"))
    assert "WARNING: 3 masks hold 2, which is 'void'" in found
    assert "REFUSED" not in found
    # No mask holds it: nothing is wrong.
    assert "pixels without a class" not in said(tmp_path / "b", by_class(((0, 1),)), ("cat", "ignored"))


def test_a_split_without_a_class_is_said_beside_one_that_has_some(tmp_path: Path) -> None:
    shown = io.StringIO()
    sources = {"train": records(by_class(((0, 1), (0, 2), (0, 3)))), "val": records([((0,), (0, 255))])}
    ingest(sources, DatasetInfo("own", ANIMALS), tmp_path / "out", console=Console(file=shown))
    assert "WARNING: split 'val': the masks hold 0 and 255 only, and 255 is ignored" in shown.getvalue()
    assert "split 'train'" not in shown.getvalue()


def test_left_out_for_want_of_a_tag_names_what_the_masks_hold(tmp_path: Path) -> None:
    options = IngestOptions(untagged="leave-out")
    with pytest.raises(
        DataError, match=r"all 2 records were left out \(mask holds no class \(only 0 and 255\)"
    ):
        ingest(
            {"val": records([(None, (0, 255))] * 2)}, DatasetInfo("own", ANIMALS), tmp_path / "out", options
        )


@pytest.mark.parametrize(
    ("name", "names", "refused"),
    [("voc", ANIMALS, True), ("COCO", ANIMALS, True), ("voc_like", ANIMALS, False)],
)
def test_a_known_name_needs_its_classes(
    tmp_path: Path, name: str, names: tuple[str, ...], refused: bool
) -> None:
    info, source = DatasetInfo(name, names), {"val": records([((0,), (0, 1))])}
    if refused:
        with pytest.raises(DataError, match=f"the name '{name}' is that of a known data set .*--name"):
            ingest(source, info, tmp_path / "out")
    else:
        assert ingest(source, info, tmp_path / "out")[0].count == 1


def test_the_table_of_classes() -> None:
    survey = MaskSurvey()
    counts = {"train": {"cat": 12, "ネコ": 0}, "val": {"cat": 3, "ネコ": 100}}
    assert class_lines(("cat", "ネコ"), counts, survey) == [
        "id  class  train  val",
        " 1  cat       12    3",
        " 2  ネコ       0  100",
    ]
    survey.counts.update({"compared": 9, "held 2": 7})
    assert class_lines(("cat", "ネコ"), counts, survey)[1:] == [
        " 1  cat       12    3              0",
        " 2  ネコ       0  100              7",
    ]


def test_the_table_of_many_classes_shows_both_ends() -> None:
    names = tuple(f"class {number}" for number in range(1, 81))
    lines = class_lines(names, {"train": dict.fromkeys(names, 5)}, MaskSurvey())
    assert len(lines) == 1 + 10 + 1 + 5
    assert lines[10] == "10  class 10      5"
    assert lines[11] == "... 65 more, all in dataset.json"
    assert lines[12].startswith("76  class 76")
    assert len(class_lines(names[:40], {"train": dict.fromkeys(names, 5)}, MaskSurvey())) == 41
    (_, long) = class_lines(("x" * 60,), {"train": {"x" * 60: 1}}, MaskSurvey())
    assert long == f" 1  {'x' * 37}...      1"


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.frozensets(st.integers(0, 2), max_size=3),
            st.frozensets(st.sampled_from([0, 1, 2, 3, 255]), min_size=1),
        ),
        max_size=12,
    ),
    st.booleans(),
)
def test_the_order_does_not_count_and_any_masks_are_judged(
    drawn: list[tuple[frozenset[int], frozenset[int]]], classes_given: bool
) -> None:
    records = [
        Trace(f"{number:02d}", "", "", sorted(tags), sorted(values), pixels=4, own_tags=True)
        for number, (tags, values) in enumerate(drawn)
    ]
    whole, backwards = MaskSurvey(), MaskSurvey()
    for record in records:
        whole.add(record, record.id)
    for record in reversed(records):
        backwards.add(Trace(*json.loads(json.dumps(record))), record.id)
    assert backwards == whole
    try:
        lines = mask_lines(whole, {"val": whole}, ANIMALS, classes_given)
    except DataError as error:
        lines = [str(error)]
    assert bool(lines) == bool(drawn)
    agree = all({value - 1 for value in values - {0, 255}} == tags for tags, values in drawn)
    if any(tags for tags, _ in drawn):
        assert any("masks and tags agree" in line for line in lines) == agree


def write(path: Path, orientation: int = 1, shade: int = 0) -> None:
    """A picture of 6 x 4 pixels with an EXIF orientation."""
    path.parent.mkdir(parents=True, exist_ok=True)
    note = Image.Exif()
    note[ORIENTATION] = orientation
    Image.new("RGB", (6, 4), (shade, 9, 90)).save(path, exif=note)


def job(*arguments: str | Path) -> int:
    code: int = runpy.run_path(str(JOB))["main"]([str(argument) for argument in arguments])
    return code


@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
def test_rotations_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str], ending: str) -> None:
    for number, orientation in enumerate((1, 3, 2, 9, 8)):
        write(tmp_path / "p" / "cat" / f"{number}.{ending}", orientation, number)
    assert job("folder", tmp_path / "p", "--val-fraction", "0", "--out", tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert (
        "train: 3 pictures carry an EXIF rotation (first: cat__1); pixels are taken as they are stored"
        in printed
    )
    assert printed.count("EXIF") == 1


def test_the_job_refuses_visualised_masks_and_takes_ids(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(4):
        write(tmp_path / "p" / "crack" / f"{number}.jpg", shade=number)
        ids = np.array([[0, 0, 0, 1, 1, 1]] * 4, np.uint8)
        for name, values in (("white", ids * 255), ("ids", ids), ("bits", ids.astype(bool))):
            path = tmp_path / name / "crack" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(path)
    out = tmp_path / "out"
    for name, code in (("white", 2), ("ids", 0), ("bits", 0)):
        source = ("folder", tmp_path / "p", "--masks", tmp_path / name)
        assert job(*source, "--val-fraction", "0.25", "--out", out, "--overwrite") == code
        printed = capsys.readouterr()
        if code:
            assert printed.err == (
                "ingest: the masks hold 0 and 255 only, and 255 is ignored; write each class's id into them "
                "(1 for 'crack'), 0 for background\n"
            )
            assert not out.exists()
        else:
            assert (
                "id  class  train  val  masks with id\n 1  crack      3    1              4\n" in printed.out
            )
            assert "masks and tags agree on all 4 pictures that have both" in printed.out
