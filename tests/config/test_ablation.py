"""An ablation's file: how combinations become options, and what is refused."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosa_dist.config.ablation import read_ablation
from cosa_dist.config.errors import ConfigError
from cosa_dist.config.loading import load_config

PROJECT = Path(__file__).resolve().parents[2]
GOOD = """
parts:
  guided: {without: {losses.seg_to_cam: 0}}
  separation: {with: {losses.separation: 0.1}, without: {losses.separation: 0}}
combinations: {neither: [], one: [separation], both: [guided, separation]}
defaults: {evaluation.crf.enabled: true}
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "ablation.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_part_is_on_where_it_is_named_and_off_elsewhere(tmp_path):
    ablation = read_ablation(written(tmp_path, GOOD))
    neither, one, both = ablation.chosen()
    assert neither.options == {"losses.seg_to_cam": 0, "losses.separation": 0}
    assert one.options == {"losses.seg_to_cam": 0, "losses.separation": 0.1}
    assert both.options == {"losses.separation": 0.1}
    assert ablation.defaults == {"evaluation.crf.enabled": True}
    assert both.parts == ("guided", "separation")


def test_combinations_are_chosen_by_name(tmp_path):
    ablation = read_ablation(written(tmp_path, GOOD))
    assert [c.name for c in ablation.chosen(["both", "neither"])] == ["neither", "both"]
    assert len(ablation.chosen([])) == 3
    with pytest.raises(ConfigError, match="no combination named 'bth'.*both"):
        ablation.chosen(["bth"])


@pytest.mark.parametrize("recipe", ["demo", "voc_mini", "voc_paper", "coco_released"])
def test_every_combination_that_comes_with_the_project_fits_the_recipes(recipe):
    ablation = read_ablation(PROJECT / "sweeps" / "ablation.yaml")
    configs = {c.name: load_config(recipe, None, c.options) for c in ablation.chosen()}
    assert {name for name, config in configs.items() if config.kind != "cosa"} == {"classification"}
    assert configs["classification"].kind == "control"
    assert configs["base"].losses.seg_to_cam == 0
    assert configs["base"].assignment.momentum == 0
    assert configs["whole"].assignment.reliability
    assert configs["whole"].assignment.threshold.kind == "two_components"
    assert configs["whole"].losses.separation == 0.1
    assert configs["whole_without_separation"].losses.separation == 0
    assert len({str(config) for config in configs.values()}) == len(configs)


@pytest.fixture(scope="module")
def sweep() -> dict:
    return runpy.run_path(str(PROJECT / "sweeps" / "run.py"))


def planned(sweep: dict, *words: str):
    """The plan of a command line."""
    arguments, rest = sweep["parser"]().parse_known_args(["--space", "ablation", "--recipe", "demo", *words])
    return sweep["requested_plan"](arguments, sweep["base_config"](arguments, rest))


def test_a_sweep_trains_every_combination_with_every_seed_to_the_end(sweep):
    ablation = read_ablation(PROJECT / "sweeps" / "ablation.yaml")
    plan = planned(sweep, "--seeds", "0", "1", "1")
    assert plan.points == [{**c.options, "seed": seed} for seed in (0, 1) for c in ablation.chosen()]
    assert (plan.search, plan.scheduler) == ("grid", "none")
    assert type(plan).model_validate_json(plan.model_dump_json()) == plan
    assert [c.name for c in planned(sweep, "--only", "base", "whole").ablation] == ["base", "whole"]


def test_the_command_line_changes_a_default_and_no_part(sweep):
    for words, crf in (([], True), (["--evaluation.crf.enabled", "false"], False)):
        (config,) = planned(sweep, "--only", "whole", *words, "--losses.separation", "0").configs
        assert config.evaluation.crf.enabled is crf
        assert config.losses.separation == 0.1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--space", "demo", "--only", "whole"), "--only chooses combinations of an ablation"),
        (("--space", "demo", "--search", "optuna", "--seeds", "0"), "optuna chooses trials of one seed"),
        (("--only", "whol"), "no combination named 'whol'"),
    ],
)
def test_options_that_do_not_fit_the_space_are_refused(sweep, words, message):
    with pytest.raises(ConfigError, match=message):
        planned(sweep, *words)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("losses.separation: 0.1", "losses.separaton: 0.1", "unknown option losses.separaton.*separation"),
        ("one: [separation]", "one: [separatoin]", "combination one: unknown part 'separatoin'"),
        ("one: [separation]", "one: separation", "combinations.one = .separation.: .*valid list"),
        (
            "without: {losses.seg_to_cam: 0}",
            "wihout: {losses.seg_to_cam: 0}",
            "unknown option parts.guided.wihout; did you mean without",
        ),
        ("defaults:", "ever:", "unknown option ever"),
        ("defaults: {evaluation.crf.enabled: true}", "defaults: [1]", "defaults = .*valid dictionary"),
        ("{without: {losses.seg_to_cam: 0}}", "[1]", "parts.guided = .1.: this is a section"),
    ],
)
def test_mistakes_are_named(tmp_path, old, new, message):
    assert old in GOOD
    with pytest.raises(ConfigError, match=message):
        read_ablation(written(tmp_path, GOOD.replace(old, new)))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(parts=JSON, combinations=JSON, defaults=JSON)
def test_any_content_is_read_or_refused_in_one_line(tmp_path_factory, parts, combinations, defaults):
    import yaml

    path = tmp_path_factory.mktemp("ablation") / "a.yaml"
    values = {"parts": parts, "combinations": combinations, "defaults": defaults}
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    with pytest.raises(ConfigError) as refused:
        read_ablation(path)
    assert str(path) in str(refused.value)
