"""Files of a prediction: exact ids, nothing outside the folder, nothing half-written."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageOps
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from cosa_dist.data.catalog import VOC_CLASSES, voc_colour_map
from cosa_dist.data.decode import ORIENTATION, decode_mask, orientation_of
from cosa_dist.data.errors import DataError
from cosa_dist.inference.segmentation import Segmentation
from cosa_dist.inference.writing import (
    WriteError,
    annotations_of,
    check_voc,
    coco_file,
    out_folder,
    overlay,
    palette_mask,
    write_archive,
    write_file,
    write_outputs,
)

CLASSES = np.array([[0, 0, 1], [2, 254, 1]], dtype=np.uint8)


def test_a_mask_holds_the_ids_in_vocs_colours(tmp_path):
    every = np.arange(256, dtype=np.uint8).reshape(16, 16)
    palette_mask(every).save(tmp_path / "mask.png")
    assert (decode_mask((tmp_path / "mask.png").read_bytes()) == every).all()
    with Image.open(tmp_path / "mask.png") as opened:
        assert opened.mode == "P"
        assert opened.convert("RGB").getpixel((1, 0)) == voc_colour_map()[1] == (128, 0, 0)


def test_an_overlay_leaves_the_background_as_it_was():
    image = np.full((2, 3, 3), 200, dtype=np.uint8)
    laid = np.asarray(overlay(image, CLASSES))
    assert laid[0, 0].tolist() == [200, 200, 200]
    assert laid[0, 2].tolist() == [160, 90, 90]


def test_all_outputs_of_one_picture(tmp_path):
    probabilities = np.zeros((3, 2, 3), dtype=np.float16)
    made = Segmentation(CLASSES, {0: 1.0}, probabilities)
    write_outputs(tmp_path, "a/b", np.zeros((2, 3, 3), np.uint8), made, ("cat", "dog"), ("masks", "overlays"))
    write_outputs(tmp_path, "a/b", np.zeros((2, 3, 3), np.uint8), made, ("cat", "dog"), ("probabilities",))
    found = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert found == ["masks/a/b.png", "overlays/a/b.jpg", "probabilities/a/b.npz"]
    with np.load(tmp_path / "probabilities/a/b.npz", allow_pickle=False) as archive:
        assert archive["class_names"].tolist() == ["background", "cat", "dog"]
        assert archive["probabilities"].shape == (3, 2, 3)


@pytest.mark.parametrize("orientation", [1, 3, 6, 2])
def test_masks_and_overlays_are_shown_as_the_picture_is(tmp_path, orientation):
    """Viewers turn them like the picture; the stored pixels stay those of the picture's."""
    made = Segmentation(CLASSES, {0: 1.0}, None)
    image = np.zeros((2, 3, 3), np.uint8)
    write_outputs(tmp_path, "a", image, made, ("cat", "dog"), ("masks", "overlays"), orientation)
    for name in ("masks/a.png", "overlays/a.jpg"):
        with Image.open(tmp_path / name) as opened:
            assert orientation_of(opened) == orientation
            assert opened.size == (3, 2)
            assert dict(opened.getexif()) == ({} if orientation == 1 else {ORIENTATION: orientation})
            shown = ImageOps.exif_transpose(opened)
            if name.endswith("png"):
                turned = {1: CLASSES, 3: CLASSES[::-1, ::-1], 6: np.rot90(CLASSES, -1), 2: CLASSES[:, ::-1]}
                assert np.asarray(shown).tolist() == turned[orientation].tolist()
    assert (decode_mask((tmp_path / "masks/a.png").read_bytes()) == CLASSES).all()


def test_what_fails_leaves_the_old_file_and_no_part(tmp_path):
    write_file(tmp_path, "a.txt", lambda file: file.write(b"old"))

    def full(file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(WriteError, match="No space left"):
        write_file(tmp_path, "a.txt", full)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_bytes() == b"old"


def test_a_link_inside_the_folder_leads_nowhere(tmp_path):
    outside, out = tmp_path / "outside", tmp_path / "out"
    outside.mkdir()
    out.mkdir()
    (out / "masks").symlink_to(outside)
    with pytest.raises(WriteError, match="leads out of"):
        write_file(out, "masks/a.png", lambda file: file.write(b"x"))
    with pytest.raises(WriteError, match="leads out of"):
        write_file(out, "../a.png", lambda file: file.write(b"x"))
    assert list(outside.iterdir()) == []


def test_an_output_folder_that_is_a_file_is_one_line(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="--out .*file: File exists"):
        out_folder(tmp_path / "file")


def test_pycocotools_opens_the_run_lengths_and_finds_the_pixels(tmp_path):
    made = Segmentation(CLASSES, {0: 0.9, 1: 0.5, 2: 0.25}, None)
    annotations = annotations_of(made)
    assert [a["category_id"] for a in annotations] == [1, 2]
    assert [a["area"] for a in annotations] == [2, 1]
    assert annotations[0]["bbox"] == [2, 0, 1, 2]
    assert (coco_mask.decode(annotations[0]["segmentation"]) == (CLASSES == 1)).all()
    content = coco_file([("a/b", 3, 2, annotations), ("c", 3, 2, annotations)], ["cat", "dog"])
    coco = COCO()
    coco.dataset = content
    coco.createIndex()
    assert len(coco.getAnnIds(imgIds=[2])) == 2
    assert (coco.annToMask(coco.anns[2]) == (CLASSES == 2)).all()
    assert coco.cats[1]["name"] == "cat"


def test_the_servers_archive_is_the_same_for_the_same_masks(tmp_path):
    import tarfile

    for name in ("2008_000006", "test/2008_000001"):
        write_file(tmp_path, f"masks/{name}.png", lambda file: palette_mask(CLASSES).save(file, format="PNG"))
    names = ["2008_000006", "test/2008_000001"]
    first = write_archive(tmp_path, names, "comp5").read_bytes()
    assert write_archive(tmp_path, names[::-1], "comp5").read_bytes() == first
    with tarfile.open(tmp_path / "voc_server.tgz") as archive:
        folder = "results/VOC2012/Segmentation/comp5_test_cls"
        assert archive.getnames() == [f"{folder}/2008_000001.png", f"{folder}/2008_000006.png"]
        inside = archive.extractfile(archive.getmembers()[0])
        assert (decode_mask(inside.read()) == CLASSES).all()


@pytest.mark.parametrize(
    ("classes", "names", "part"),
    [
        (("cat",), ["2008_000001"], "VOC's 20 classes"),
        (VOC_CLASSES[::-1], ["2008_000001"], "in VOC's order"),
        (VOC_CLASSES, ["photo"], "no VOC image id"),
        (VOC_CLASSES, ["a/2008_000001", "b/2008_000001"], "occurs twice"),
    ],
)
def test_what_the_server_could_not_judge_is_refused(classes, names, part):
    check_voc(VOC_CLASSES, ["2008_000001"])
    with pytest.raises(DataError, match=part):
        check_voc(classes, names)
