"""Configuration: precedence, errors that help, and the round trip through YAML."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cosa_dist.config.errors import ConfigError
from cosa_dist.config.loading import (
    build_config,
    load_config,
    merge,
    nested,
    parse_overrides,
    recipe_names,
    to_yaml,
)
from cosa_dist.config.options import flatten, known_keys, options


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_valid_and_survives_its_own_yaml(name):
    config = load_config(name)
    assert config.recipe == name
    assert build_config(yaml.safe_load(to_yaml(config))) == config


def test_precedence_is_defaults_recipe_file_command_line(tmp_path):
    file = tmp_path / "more.yaml"
    file.write_text("losses: {energy: 0.2, cam_to_seg: 0.3}\n")
    config = load_config("voc_mini", str(file), ["--losses.energy", "0.4", "--seed=7"])
    assert config.losses.energy == 0.4
    assert config.losses.cam_to_seg == 0.3
    assert config.losses.warmup_steps == 200
    assert config.losses.seg_to_cam == 0.05
    assert config.seed == 7


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--losses.enrgy", "1"], ["--losses.enrgy", "did you mean losses.energy?"]),
        (["--losses.energy", "-1"], ["losses.energy = -1", "greater than or equal to 0"]),
        (["--training.precision", "fp8"], ["training.precision = 'fp8'", "'bf16'"]),
        (["--losses.energy"], ["--losses.energy needs a value"]),
        (["energy", "1"], ["unexpected 'energy'"]),
        (["--losses.warmup_steps", "600"], ["leaves no co-training step"]),
        (["--optimizer.warmup_steps", "601"], ["longer than the run"]),
        (["--assignment.threshold.low", "0.9"], ["low 0.9 is above high 0.7"]),
        (["--assignment.threshold.variant", "split_likelihood"], ["needs kind two_components"]),
        (["--assignment.threshold.kind", "one_component"], ["assignment.threshold.kind", "'two_components'"]),
        (["--assignment.perplexity_scale", "1"], ["perplexity_scale = 1", "less than 1"]),
        (["--data.scale_range", "[2, 1]"], ["not (low, high)"]),
        (["--data.scale_range", "[2"], ["is not a YAML value"]),
    ],
)
def test_a_wrong_option_is_named_with_what_is_allowed(words, parts):
    with pytest.raises(ConfigError) as caught:
        load_config("voc_mini", None, words)
    for part in parts:
        assert part in str(caught.value)


def test_an_unknown_key_in_a_file_is_named_with_its_nearest_name(tmp_path):
    file = tmp_path / "f.yaml"
    file.write_text("losses: {seg_to_cams: 1}\n")
    with pytest.raises(ConfigError, match=r"losses\.seg_to_cams; did you mean losses\.seg_to_cam\?"):
        load_config("voc_mini", str(file))


@pytest.mark.parametrize("text", ["- a\n", "a: [1\n"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path, text):
    file = tmp_path / "f.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"f\.yaml"):
        load_config(None, str(file))


def test_an_unknown_recipe_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"voc_released.*did you mean voc_mini\?"):
        load_config("voc_mni")


def test_a_control_run_may_warm_up_to_its_end():
    assert load_config("voc_mini", None, ["--kind", "control", "--losses.warmup_steps", "600"])


def test_the_papers_parts_are_on_in_its_recipes_alone():
    for name in recipe_names():
        config = load_config(name)
        parts = (
            config.assignment.threshold.kind == "two_components",
            config.assignment.reliability,
            config.losses.separation > 0,
        )
        assert parts == (name.endswith("_paper"),) * 3, name


def test_every_option_has_a_meaning_and_flattening_names_them_all():
    listed = list(options())
    assert all(option.meaning for option in listed)
    assert set(flatten(load_config("voc_mini"))) == set(known_keys())


@given(st.dictionaries(st.sampled_from(known_keys()), st.integers(0, 9), min_size=1))
def test_dotted_keys_nest_and_the_words_parse_back(dotted):
    words = [word for key, value in dotted.items() for word in (f"--{key}", str(value))]
    assert parse_overrides(words) == dotted
    tree = nested(dotted)
    for key, value in dotted.items():
        place = tree
        for part in key.split("."):
            place = place[part]
        assert place == value


def test_merging_keeps_what_the_upper_layer_does_not_name():
    assert merge({"a": {"x": 1, "y": 2}, "b": 3}, {"a": {"y": 5}}) == {"a": {"x": 1, "y": 5}, "b": 3}
