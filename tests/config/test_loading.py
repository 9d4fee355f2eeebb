"""Configuration: precedence, errors that help, and the round trip through YAML."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cosa_dist.config.errors import RENAMED, ConfigError
from cosa_dist.config.loading import (
    build_config,
    load_config,
    merge,
    nested,
    parse_overrides,
    parse_yaml,
    recipe_names,
    to_yaml,
)
from cosa_dist.config.options import flatten, known_keys, options, text_keys


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_valid_and_survives_its_own_yaml(name):
    config = load_config(name)
    assert config.recipe == name
    assert build_config(parse_yaml(to_yaml(config))) == config
    assert build_config(yaml.safe_load(to_yaml(config))) == config


SINGLE = ["--assignment.threshold.kind", "fixed_single"]


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
        (["--losses.aux_share", "1"], ["command line: --losses.aux_share is now called --losses.aux_weight"]),
        (["--losses.energy", "-1"], ["losses.energy = -1", "greater than or equal to 0"]),
        (["--training.precision", "fp8"], ["training.precision = 'fp8'", "'bf16'"]),
        (["--losses.energy"], ["--losses.energy needs a value"]),
        (["energy", "1"], ["unexpected 'energy'"]),
        (["--losses.warmup_steps", "600"], ["leaves no co-training step"]),
        (["--optimizer.warmup_steps", "601"], ["longer than the run"]),
        (["--assignment.threshold.low", "0.9"], ["low 0.9 is above high 0.7"]),
        (["--assignment.threshold.variant", "split_likelihood"], ["needs kind two_components"]),
        (["--assignment.threshold.margin", "0.3"], ["margin 0.3 needs one threshold", "not fixed_pair"]),
        (
            ["--assignment.threshold.margin", "0.3", "--assignment.threshold.kind", "three_components"],
            ["margin 0.3 needs one threshold", "not three_components"],
        ),
        (
            [*SINGLE, "--assignment.threshold.single", "0.3", "--assignment.threshold.margin", "0.3"],
            ["margin 0.3 around single 0.3 leaves no background"],
        ),
        (
            [*SINGLE, "--assignment.threshold.aux_single", "0.75", "--assignment.threshold.margin", "0.25"],
            ["margin 0.25 around aux_single 0.75 leaves no foreground"],
        ),
        (["--assignment.threshold.kind", "one_component"], ["assignment.threshold.kind", "'two_components'"]),
        (["--assignment.perplexity_scale", "1"], ["perplexity_scale = 1", "less than 1"]),
        (["--data.scale_range", "[2, 1]"], ["not (low, high)"]),
        (["--data.scale_range", "[2"], ["is not a YAML value"]),
        (["--assignment.scales", "[]"], ["assignment.scales = []", "at least 1 item"]),
        (["--pseudo_masks.cam_low", "0.6"], ["command line: pseudo_masks.cam_low 0.6 is above cam_high 0.5"]),
    ],
)
def test_a_wrong_option_is_named_with_what_is_allowed(words, parts):
    with pytest.raises(ConfigError) as caught:
        load_config("voc_mini", None, words)
    for part in parts:
        assert part in str(caught.value)


def test_a_margin_that_leaves_both_classes_is_taken():
    threshold = {"single": 0.3, "margin": 0.29}
    single = load_config(
        None,
        None,
        {f"assignment.threshold.{k}": v for k, v in threshold.items()}
        | {"assignment.threshold.kind": "fixed_single"},
    )
    assert single.assignment.threshold.margin == 0.29
    # A searched threshold moves away from where it starts.
    load_config(
        None,
        None,
        {
            "assignment.threshold.kind": "two_components",
            "assignment.threshold.single": 0.1,
            "assignment.threshold.margin": 0.2,
        },
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1E5", 1e5),
        ("+1e3", 1e3),
        (".5e-3", 5e-4),
        ("[1e-5, 1.e3]", [1e-5, 1e3]),
        ("010", 10),
        ("0x1F", 31),
        ("-3", -3),
        ("1_000", "1_000"),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        ("[yes, no, on, off, y]", ["yes", "no", "on", "off", "y"]),
        ("[true, FALSE, ~]", [True, False, None]),
        ("e5", "e5"),
        ("{b: &x {a: 1}, c: {<<: *x}}", {"b": {"a": 1}, "c": {"a": 1}}),
    ],
)
def test_yaml_is_that_of_version_1_2(text, value):
    assert parse_yaml(text) == value
    assert type(parse_yaml(text)) is type(value)


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        (["--optimizer.learning_rate", "1e-5"], "optimizer.learning_rate", "1e-05"),
        (["--training.steps", "1_000"], "training.steps", "1000"),
        (["--training.compile", "yes"], "training.compile", "True"),
        (["--model.backbone_options", "{drop: 1e-1}"], "model.backbone_options", "{'drop': 0.1}"),
        (["--name", "007"], "name", "007"),
        (["--name=1e5"], "name", "1e5"),
        (["--name", "no"], "name", "no"),
        (["--name", "01seed"], "name", "01seed"),
        (["--data.label", "'2012'"], "data.label", "2012"),
        (["--output", "out #1: [a"], "output", "out #1: [a"),
        (["--tracking.uri", "null"], "tracking.uri", ""),
        (["--seed", "3", "--seed", "3"], "seed", "3"),
    ],
)  # fmt: skip
def test_a_value_of_the_command_line_means_what_it_looks_like_and_comes_back(words, key, value, tmp_path):
    config = load_config("voc_mini", None, words)
    assert flatten(config)[key] == value
    (tmp_path / "again.yaml").write_text(to_yaml(config))
    assert load_config(None, str(tmp_path / "again.yaml")) == config


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8))
def test_any_name_comes_back(name):
    config = build_config({"name": name})
    assert build_config(parse_yaml(to_yaml(config))) == config


def test_the_later_of_two_values_counts_and_that_is_said(caplog):
    assert parse_overrides(["--seed", "1", "--seed=2", "--output", "a", "--output", "a"]) == {
        "seed": 2,
        "output": "a",
    }
    assert [record.getMessage() for record in caplog.records] == [
        "--seed is given twice, 1 and 2: the later one counts"
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--name", "--seed", "2"], "command line: --name needs a value"),
        (["--optimizer.learning_rate", ".inf"], "command line: optimizer.learning_rate = inf: .*finite"),
        (["--losses.energy", "-1"], "command line: losses.energy = -1"),
        (["--losses.warmup_steps", "900"], "command line: losses.warmup_steps 900 leaves"),
        ([], r"F\.yaml: losses.energy = -2"),
        (["--training.steps", "700"], r"F\.yaml: losses.energy = -2"),
    ],
)
def test_a_problem_is_said_of_the_layer_that_brings_it(words, message, tmp_path):
    file = tmp_path / "F.yaml"
    file.write_text("losses.energy: -2" if "warmup" not in str(words) else "seed: 1")
    with pytest.raises(ConfigError, match=message) as caught:
        load_config("voc_mini", str(file), words)
    assert "recipe voc_mini:" not in str(caught.value)


def test_a_recipe_and_a_file_are_blamed_for_their_own(tmp_path):
    recipe, file = tmp_path / "own.yaml", tmp_path / "F.yaml"
    recipe.write_text("losses: {energi: 1}\ntraining: {steps: 0}\n")
    file.write_text("model: {aux_layer: 3}\ntraining: {steps: 900}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(str(recipe), str(file), ["--seed", "-1"])
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("command line: seed = -1")
    assert lines[1].startswith(f"{file}: model.aux_layer = 3")
    assert lines[2].startswith(f"recipe {recipe}: unknown option losses.energi; did you mean losses.energy?")
    assert len(lines) == 3


@pytest.mark.parametrize(
    "text", ["seed: 1\nseed: 2\n", "losses: {energy: 1, energy: 1}\n", "seed: !!int x\n"]
)
def test_a_key_twice_or_a_value_of_another_kind_is_refused(text, tmp_path):
    file = tmp_path / "f.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"f\.yaml is not YAML: .*(twice|invalid literal)"):
        load_config(None, str(file))


@pytest.mark.parametrize("text", ["training: {steps: 5}\ntraining.steps: 6\n", "seed: 1\nseed.x: 1\n"])
def test_an_option_in_both_forms_is_refused(text, tmp_path):
    file = tmp_path / "f.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"f\.yaml: (training\.steps|seed) occurs twice"):
        load_config(None, str(file))
    file.write_text("training: {steps: 50}\ntraining.compile: true\n")
    assert load_config("tiny", str(file)).training.compile


def test_a_section_without_options_is_said(tmp_path):
    file = tmp_path / "f.yaml"
    file.write_text("training:\n# steps: 5\n")
    with pytest.raises(ConfigError, match="training = None: this is a section"):
        load_config(None, str(file))


def test_relative_files_start_from_the_named_root(tmp_path, monkeypatch):
    (tmp_path / "own.yaml").write_text("seed: 5\n")
    (tmp_path / "more.yaml").write_text("losses.energy: 0.25\n")
    monkeypatch.setenv("COSA_ROOT", str(tmp_path))
    config = load_config("./own.yaml", "more.yaml")
    assert (config.recipe, config.seed, config.losses.energy) == ("own", 5, 0.25)


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


@pytest.mark.parametrize("text", ["losses: {aux_share: 1}\n", "losses.aux_share: 1\n"])
def test_an_old_name_in_a_file_is_refused_with_the_new_one(tmp_path, text):
    file = tmp_path / "f.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"f\.yaml: losses\.aux_share is now called losses\.aux_weight$"):
        load_config("voc_mini", str(file))


def test_renamed_options_exist_under_their_new_names_alone():
    known = known_keys()
    for old, new in RENAMED.items():
        assert any(key == new or key.startswith(f"{new}.") for key in known), new
        assert not any(key == old or key.startswith(f"{old}.") for key in known), old


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
        expected = (False, True, True) if name == "voc_mini_quick" else (name.endswith("_paper"),) * 3
        assert parts == expected, name


def test_every_option_has_a_meaning_and_flattening_names_them_all():
    listed = list(options())
    assert all(option.meaning for option in listed)
    assert set(flatten(load_config("voc_mini"))) == set(known_keys())


@given(st.dictionaries(st.sampled_from(known_keys()), st.integers(0, 9), min_size=1))
def test_dotted_keys_nest_and_the_words_parse_back(dotted):
    words = [word for key, value in dotted.items() for word in (f"--{key}", str(value))]
    texts = text_keys()
    assert parse_overrides(words) == {k: str(v) if k in texts else v for k, v in dotted.items()}
    tree = nested(dotted)
    for key, value in dotted.items():
        place = tree
        for part in key.split("."):
            place = place[part]
        assert place == value


def test_merging_keeps_what_the_upper_layer_does_not_name():
    assert merge({"a": {"x": 1, "y": 2}, "b": 3}, {"a": {"y": 5}}) == {"a": {"x": 1, "y": 5}, "b": 3}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            "many",
            r"data.loader_workers = 'many': Input should be 'auto', or: Input should be a valid integer",
        ),
        ("-1", r"data.loader_workers = '?-1'?: Input should be 'auto', or: .* greater than or equal to 0"),
        (
            "1.5",
            r"data.loader_workers = '?1.5'?: Input should be 'auto', or: Input should be a valid integer",
        ),
    ],
)
def test_an_option_that_is_a_word_or_a_number_is_refused_in_one_line(value, message):
    with pytest.raises(ConfigError, match=f"^command line: {message}[^\n]*$"):
        load_config("tiny", None, parse_overrides(["--data.loader_workers", value]))


def test_an_option_that_is_a_word_or_a_number_takes_both():
    assert load_config("voc_gpu", None, {}).data.loader_workers == "auto"
    assert (
        load_config("tiny", None, parse_overrides(["--data.loader_workers", "auto"])).data.loader_workers
        == "auto"
    )
    assert load_config("tiny", None, parse_overrides(["--data.loader_workers", "3"])).data.loader_workers == 3
