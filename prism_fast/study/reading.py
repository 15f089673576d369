"""What the figures say, in sentences that change with them: a result that misses its aim is told as such."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from prism_fast.study.arms import DemoConfig
from prism_fast.study.text import percent

_AIM_POINTS = 5.0
_AIM_GAP = 0.5
_AIM_JUDGE = 0.5


def conclusions(metrics: Mapping[str, Any], config: DemoConfig) -> list[str]:
    """Two paragraphs, as HTML: what this is, and what came out."""
    return [_setting(config), f"{_students(metrics, config)} {_guidance(metrics)} {_caution(config)}"]


def _setting(config: DemoConfig) -> str:
    if config.pipeline != "fashion":
        return f"The images were drawn by the text-to-image pipeline {escape(config.pipeline)}."
    return (
        "This is a simulation of distilling with a general text-to-image model: a small generator, trained on garments "
        "in four renderings and on things that share their names, stands in for one; a class name alone often gives it "
        "the wrong sense or style. The teacher knows photos of garments only. Synthesis and training read no real "
        "image; the test images are real."
    )


def _students(metrics: Mapping[str, Any], config: DemoConfig) -> str:
    students = metrics["student_accuracy"]
    gain = 100 * (students["prism"] - students["plain"])
    if gain >= _AIM_POINTS:
        said = f"The student of PRISM images is <b>{gain:.1f} points better</b> than the student of plain ones."
    elif gain > 0:
        said = (
            f"The student of PRISM images is {gain:.1f} points better than the student of plain ones: less than the "
            f"{_AIM_POINTS:g} points aimed at."
        )
    else:
        said = f"<b>PRISM did not help here</b>: its student is {-gain:.1f} points below the student of plain images."
    if config.full:
        closed = metrics["gap_closed"]
        if closed is None:
            said += " The student of real images is not above plain, so there is no gap to close."
        else:
            said += f" That closes {percent(closed, 0)} of the gap to the student of as many real images"
            said += "." if closed >= _AIM_GAP else f", less than the {percent(_AIM_GAP, 0)} aimed at."
    return said


def _guidance(metrics: Mapping[str, Any]) -> str:
    pair = metrics["same_seeds"]["prism"]
    ratio = pair["judge_gain_per_teacher_gain"]
    change = " and ".join(
        f"{who} from {percent(pair[key]['unguided'])} to {percent(pair[key]['guided'])}"
        for who, key in (
            ("the teacher's agreement", "teacher_agreement"),
            ("the independent judge's", "judge_agreement"),
        )
    )
    said = f"On the same prompts and seeds guidance moves {change}."
    if ratio is None:
        said += " The teacher gains nothing: the guidance does not do its work here."
    elif ratio < _AIM_JUDGE:
        said += " The judge gains much less than the teacher: part of the change pleases the teacher alone."
    fallen = [
        f"{name} falls from {pair[name]['unguided']:.2f} to {pair[name]['guided']:.2f}"
        for name in ("precision", "recall")
        if pair[name]["guided"] < pair[name]["unguided"]
    ]
    if fallen:
        said += f" On these images {' and '.join(fallen)}."
    control = metrics["same_seeds"].get("random-direction")
    if control is not None:
        gain = control["judge_agreement"]["gain"]
        said += f" A random direction of the same norm changes the judge's agreement by {100 * gain:+.1f} points."
    return said


def _caution(config: DemoConfig) -> str:
    return (
        f"One seed ({config.seed}) and small networks: between two students, differences of about a point are within "
        "what another seed changes."
    )
