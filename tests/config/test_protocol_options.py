"""Named protocols as options: they give the details that are not set, and a title tells protocols apart."""

from __future__ import annotations

import json

import pytest

from cosa_dist.config.errors import ConfigError
from cosa_dist.config.loading import evaluation_under, load_config, to_yaml
from cosa_dist.config.schema import NAMED_PROTOCOLS, EvaluationConfig
from cosa_dist.distributed.sweep.plan import trial_config

WORDS = {
    "cosa": "448 square, 5 scales + mirror",
    "one_view": "448 square, one view",
    "toco": "own size, scales 1 1.25 1.5 + mirror, maximum",
    "seco": "448 square from the original, scales 1 1.25 1.5 + mirror, maximum, merged at the image",
    "more": "448 square from the original, scales 1 1.25 1.5 + mirror, maximum, merged at the image",
    "excel": "320 square from the original, scales 0.7 1 1.2 1.5 + mirror but at 1, mean, "
    "merged at the image",
    "weclip": "longer side 512, scales 0.75 1 + mirror, mean, merged at the grid",
}


def test_each_name_in_words():
    assert {name: EvaluationConfig(protocol=name).words for name in NAMED_PROTOCOLS} == WORDS
    assert EvaluationConfig(protocol="toco").crf.words == "CRF 10 iterations 1/1 121/5/4"
    assert EvaluationConfig(protocol="more").crf.words == "CRF 10 iterations 1/3 67/3/4"
    assert EvaluationConfig().crf.words == "released CRF"


@pytest.mark.parametrize(
    "change",
    [
        {"geometry": "longer_side"},
        {"size": 320},
        {"views_from": "original"},
        {"scales": (1.0, 0.5)},
        {"flip": False},
        {"flip": "scaled"},
        {"merging": "mean"},
        {"merging": "maximum"},
        {"merge_at": "image"},
        {"merge_at": "grid"},
        {"merge_at": "grid", "scales": (0.5, 1.0, 1.5, 0.75, 1.25)},
    ],
)
def test_every_detail_that_moves_a_score_is_in_the_words(change):
    assert EvaluationConfig.model_validate(change).words != EvaluationConfig().words


def test_on_a_grid_the_first_scale_is_told_and_of_one_view_what_is_unusual():
    def words(**details) -> str:
        return EvaluationConfig.model_validate(details).words

    assert words(protocol="weclip", scales=(0.75, 1.0)) == f"{WORDS['weclip']} of scale 0.75"
    assert words(scales=(1.25, 0.5, 1.5, 0.75, 1.0)) == WORDS["cosa"]  # sums of enlarged maps
    one = {"scales": [1.0], "flip": False}
    assert words(**one, merge_at="grid") == words(protocol="one_view") == "448 square, one view"
    assert words(**one) == "448 square, one view, merged at the resized image"
    assert words(**one, merge_at="image") == "448 square, one view, merged at the image"
    assert words(**one, geometry="own", merge_at="grid") == "own size, one view"
    at_image = [words(**one, geometry="own", merge_at=place) for place in ("resized", "image")]
    assert at_image == 2 * ["own size, one view, merged at the image"]


def test_what_moves_no_score_is_not():
    own = {"geometry": "own", "views_from": "original", "size": 96, "merge_at": "image", "every": 7}
    assert EvaluationConfig.model_validate(own).words == EvaluationConfig(geometry="own").words


def test_a_detail_that_is_set_comes_before_the_name_whatever_layer_it_is_in():
    words = [
        "--evaluation.protocol",
        "more",
        "--evaluation.crf.enabled",
        "true",
        "--evaluation.flip",
        "false",
    ]
    evaluation = load_config("voc_mini", overrides=words).evaluation
    assert (evaluation.size, evaluation.flip, evaluation.merging) == (192, False, "maximum")
    assert evaluation.crf == EvaluationConfig(protocol="more").crf.model_copy(update={"enabled": True})
    scaled = load_config(overrides=["--evaluation.flip", "scaled"]).evaluation
    assert scaled.flip == "scaled"


def test_a_resolved_configuration_reads_back_the_same():
    for name in NAMED_PROTOCOLS:
        config = EvaluationConfig(protocol=name)
        assert EvaluationConfig.model_validate(config.model_dump(mode="json")) == config


def test_a_trained_run_under_another_protocol_keeps_what_it_sets_itself():
    run = EvaluationConfig.model_validate({"size": 192, "batch_size": 2, "crf": {"iterations": 3}})
    there = evaluation_under(run, ["--evaluation.protocol", "excel"])
    assert (there.size, there.batch_size, there.crf.iterations) == (192, 2, 3)
    assert there.crf.bilateral_sigma_xy == 67
    assert there.scales == (1.0, 0.7, 1.2, 1.5)
    assert evaluation_under(there, ["--evaluation.protocol", "cosa"]) == run
    assert evaluation_under(run, ["--evaluation.protocol", "weclip", "--evaluation.size", "304"]).size == 304
    assert evaluation_under(there, ["--evaluation.flip", "true"]) == there.model_copy(update={"flip": True})
    assert evaluation_under(run, []) == run


def test_a_name_on_top_of_a_resolved_configuration_brings_its_details(tmp_path):
    """Only what differs from the former protocol's own was set by hand."""
    changes = [
        "--evaluation.protocol",
        "toco",
        "--evaluation.size",
        "304",
        "--evaluation.crf.iterations",
        "3",
    ]
    resolved = load_config("voc_mini", overrides=changes)
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(resolved))
    wanted = EvaluationConfig.model_validate(
        {"protocol": "excel", "size": 304, "every": 0, "crf": {"iterations": 3}}
    )
    name = ["--evaluation.protocol", "excel"]
    assert load_config(None, str(file), name).evaluation == wanted
    assert (
        trial_config(resolved.model_dump(mode="json"), {"evaluation.protocol": "excel"}).evaluation == wanted
    )
    assert load_config(None, str(file), ["--evaluation.protocol", "toco"]) == resolved
    both = load_config(None, str(file), [*name, "--evaluation.merging", "maximum"]).evaluation
    assert both == wanted.model_copy(update={"merging": "maximum"})
    # A file of a version without names is that of `cosa`; a layer's own details stay, in either order.
    old = {"size": 448, "scales": [1.0, 0.5, 1.5, 0.75, 1.25], "flip": True, "batch_size": 2}
    file.write_text(json.dumps({"evaluation": old}))
    assert load_config(None, str(file), name).evaluation == EvaluationConfig(protocol="excel", batch_size=2)
    size = ["--evaluation.size", "448"]
    for words in (size + name, name + size):
        assert load_config(None, None, words).evaluation == EvaluationConfig(protocol="excel", size=448)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--training.steps", "5"], "--training.steps: a trained network takes options of evaluation"),
        (["--evaluation.protocol", "tocco"], "command line: evaluation.protocol"),
        (["--evaluation.merging", "median"], "command line: evaluation.merging"),
        (["--evaluation.geometri", "own"], "evaluation.geometry"),
    ],
)
def test_wrong_options_of_an_evaluation_are_named(words, message):
    with pytest.raises(ConfigError, match=message):
        evaluation_under(EvaluationConfig(), words)
