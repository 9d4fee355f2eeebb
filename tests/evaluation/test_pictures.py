"""Pictures: files, their number and names, their pixels, and what they need."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from colour_network import CLASSES, PALETTE, ColourNetwork
from PIL import Image
from test_evaluator import PLAIN, one_image

from cosa_dist.assignment.threshold import Threshold, Thresholds
from cosa_dist.config.method import AssignmentConfig
from cosa_dist.evaluation.pictures import Labeller, save_pictures

COLOURS = ((17, 34, 51), (250, 10, 20), (30, 240, 40), (50, 60, 230))


def colours_of(path):
    return {tuple(colour) for _, colour in Image.open(path).convert("RGB").getcolors(1 << 24)}


def test_one_picture_per_sample_with_the_classes_colours(tmp_path):
    sample = one_image()
    mask = sample.mask.clone()
    mask[7, 7] = 255
    samples = [replace(sample, id=f"s{i}", mask=mask if i else None) for i in range(3)]
    network = ColourNetwork()
    files = save_pictures(
        network,
        samples,
        tmp_path / "new" / "folder",
        class_names=CLASSES,
        palette=COLOURS,
        config=PLAIN,
        limit=2,
    )
    assert [file.name for file in files] == ["000_s0.png", "001_s1.png"]
    # The prediction holds all four classes, whether or not there is a mask.
    assert all(set(COLOURS) <= colours_of(file) for file in files)
    ignore = (224, 224, 192)
    assert ignore in colours_of(files[1])
    assert ignore not in colours_of(files[0])
    assert network.training


def test_an_id_cannot_lead_out_of_the_folder(tmp_path):
    sample = replace(one_image(), id="../../evil/näme")
    folder = tmp_path / "pictures"
    (file,) = save_pictures(
        ColourNetwork(), [sample], folder, class_names=CLASSES, palette=PALETTE, config=PLAIN
    )
    assert file.parent == folder
    assert [path.name for path in tmp_path.rglob("*.png")] == [file.name]


def test_a_palette_that_is_too_short_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"at least \[4, 3\]"):
        save_pictures(
            ColourNetwork(),
            [one_image()],
            tmp_path,
            class_names=CLASSES,
            palette=np.zeros((3, 3), dtype=np.uint8),
            config=PLAIN,
        )


def test_tall_and_wide_images_are_drawn(tmp_path):
    for size in ((40, 6), (6, 40)):
        image = torch.randint(0, 255, (3, *size), dtype=torch.uint8)
        sample = replace(one_image(), id=str(size), image=image, mask=None, context=None)
        (file,) = save_pictures(
            ColourNetwork(),
            [sample],
            tmp_path,
            class_names=CLASSES,
            palette=PALETTE,
            config=PLAIN,
        )
        with Image.open(file) as picture:
            assert np.ptp(np.asarray(picture)) > 0


def labeller_of(network: ColourNetwork) -> Labeller:
    border = Threshold(0.5, 0.5, single=True)
    config = AssignmentConfig(scales=(1.0,), flip=False)
    return Labeller(network, 1, Thresholds(border, border), config)


def test_both_networks_run_in_the_runs_precision(tmp_path):
    network, assignment, seen = ColourNetwork(), ColourNetwork(), []
    for each in (network, assignment):
        each.register_forward_pre_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    save_pictures(
        network,
        [one_image()],
        tmp_path,
        class_names=CLASSES,
        palette=PALETTE,
        labeller=labeller_of(assignment),
        config=PLAIN,
        precision=lambda: torch.autocast("cpu", torch.bfloat16),
    )
    assert seen == [True, True]


def test_pseudo_labels_are_drawn_where_an_assignment_network_is_there(tmp_path):
    network, assignment = ColourNetwork(), ColourNetwork()
    plain, labelled = (
        save_pictures(
            network,
            [one_image()],
            tmp_path / name,
            class_names=CLASSES,
            palette=COLOURS,
            labeller=labeller,
            config=PLAIN,
        )[0]
        for name, labeller in (("plain", None), ("labelled", labeller_of(assignment)))
    )
    with Image.open(plain) as one, Image.open(labelled) as two:
        # One row of five against two rows of four.
        assert one.size[0] > two.size[0]
        assert one.size[1] < two.size[1]
    assert assignment.training
    assert {COLOURS[0], COLOURS[1]} <= colours_of(labelled)
