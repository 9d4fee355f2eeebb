"""Names, colours and sizes of the known data sets."""

import pytest

from cosa_dist.data.catalog import COCO, VOC, DatasetInfo, renamed, voc_colour_map
from cosa_dist.data.errors import DataError


def test_counts_and_some_ids() -> None:
    assert (VOC.num_foreground, COCO.num_foreground) == (20, 80)
    assert VOC.class_names[14] == "person"
    assert [COCO.class_names[i - 1] for i in (1, 17, 63, 80)] == ["person", "dog", "tv", "toothbrush"]
    assert VOC.split_sizes["train_aug"] == 10582
    assert COCO.split_sizes["train"] == 82081


def test_colour_rule_gives_the_devkit_colours() -> None:
    colours = voc_colour_map()
    assert len(set(colours)) == 256
    assert colours[:4] == ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0))
    assert colours[8] == (64, 0, 0)
    assert colours[15] == (192, 128, 128)
    assert colours[20] == (0, 64, 128)
    assert colours[255] == (224, 224, 192)


def test_entries_are_checked() -> None:
    with pytest.raises(DataError, match="names a class twice"):
        DatasetInfo("x", ("a", "a"))
    with pytest.raises(DataError, match="255 foreground classes"):
        DatasetInfo("x", tuple(str(i) for i in range(255)))


@pytest.mark.parametrize(
    "name", ["background", "Background", "_background_", "__background__", " BACKGROUND "]
)
def test_background_is_no_class(name: str) -> None:
    with pytest.raises(DataError, match="but background is no class: it is id 0"):
        DatasetInfo("x", ("cat", name))
    assert DatasetInfo("x", ("cat", "background noise", "back", "ground")).num_foreground == 4


def test_a_subset_under_its_own_name_has_no_known_sizes() -> None:
    assert renamed(VOC, None) is VOC
    assert dict(renamed(VOC, "voc_small").split_sizes) == {}
    assert renamed(VOC, "voc_small").class_names == VOC.class_names
