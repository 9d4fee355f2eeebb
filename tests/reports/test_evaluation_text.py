from __future__ import annotations

import pytest

from cosa_dist.config.options import flatten
from cosa_dist.config.schema import NAMED_PROTOCOLS, EvaluationConfig, RunConfig
from cosa_dist.reports.tracked_runs import crf_text, evaluation_text


@pytest.mark.parametrize(
    ("size", "scales", "flip", "text"),
    [
        ("448", "[1.0, 0.5, 1.5, 0.75, 1.25]", "True", "448 square, 5 scales + mirror"),
        ("448", "[0.5, 0.75, 1.0, 1.25, 1.5]", "True", "448 square, 5 scales + mirror"),
        ("192", "[1.0, 0.5, 1.5]", "True", "192 square, scales 0.5 1 1.5 + mirror"),
        ("448", "[1.0, 0.5, 1.5, 0.75, 1.25]", "False", "448 square, 5 scales, no mirror"),
        ("448", "[1.0]", "True", "448 square, 1 scale + mirror"),
        ("448", "[0.5]", "False", "448 square, scales 0.5, no mirror"),
        ("448", "[1.0]", "False", "448 square, one view, merged at the resized image"),
        ("448", "1.0", "False", "settings not recorded"),
        ("", "[1.0]", "False", "settings not recorded"),
    ],
)
def test_the_evaluation_in_words(size, scales, flip, text):
    params = {"evaluation.size": size, "evaluation.scales": scales, "evaluation.flip": flip}
    assert evaluation_text(params) == text
    assert evaluation_text({}) == "settings not recorded"


def test_words_and_options_of_a_real_configuration_agree():
    params = flatten(RunConfig())
    assert evaluation_text(params) == "448 square, 5 scales + mirror"
    assert crf_text(params) == "released CRF"
    assert crf_text({**params, "evaluation.crf.iterations": "10"}) == "CRF 10 iterations 1/1 121/5/4"


def test_every_detail_that_a_run_records_is_read():
    for name in NAMED_PROTOCOLS:
        config = EvaluationConfig(protocol=name)
        params = flatten(RunConfig(evaluation=config))
        assert (evaluation_text(params), crf_text(params)) == (config.words, config.crf.words)
