"""How a run was evaluated, in words: scores of other sizes, scales or CRFs do not stand in one ranking."""

from __future__ import annotations

import json
from collections.abc import Mapping

UNKNOWN = "settings not recorded"
ONE_VIEW = "one view"
RELEASED_SCALES = [0.5, 0.75, 1.0, 1.25, 1.5]
CRF_NUMBERS = (
    "iterations",
    "position_sigma",
    "position_weight",
    "bilateral_sigma_xy",
    "bilateral_sigma_rgb",
    "bilateral_weight",
)
RELEASED_CRF = [1.0, 1.0, 1.0, 121.0, 5.0, 4.0]


def evaluation_text(params: Mapping[str, str]) -> str:
    """Size, scales and mirroring of a run's evaluation, e.g. `448 square, 5 scales + mirror`.

    Args:
        params: the recorded options by dotted key.
    """
    try:
        size = int(params["evaluation.size"])
        scales = sorted(float(scale) for scale in json.loads(params["evaluation.scales"]))
        mirror = {"true": True, "false": False}[params["evaluation.flip"].lower()]
    except (KeyError, ValueError, TypeError):
        return UNKNOWN
    if scales == [1.0] and not mirror:
        return f"{size} square, {ONE_VIEW}"
    listed = "1 scale" if scales == [1.0] else "scales " + " ".join(f"{scale:g}" for scale in scales)
    seen = "5 scales" if scales == RELEASED_SCALES else listed
    return f"{size} square, {seen}{' + mirror' if mirror else ', no mirror'}"


def crf_text(params: Mapping[str, str]) -> str:
    """The dense CRF of a run's evaluation: `released CRF`, or its numbers (position, then colour kernel)."""
    try:
        numbers = [float(params[f"evaluation.crf.{name}"]) for name in CRF_NUMBERS]
    except (KeyError, ValueError):
        return f"CRF: {UNKNOWN}"
    if numbers == RELEASED_CRF:
        return "released CRF"
    count, sigma, weight, *colour = (f"{number:g}" for number in numbers)
    return f"CRF {count} iterations {sigma}/{weight} {'/'.join(colour)}"
