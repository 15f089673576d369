from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from prism_fast.config import content_hash
from prism_fast.sampling.config import GuidanceConfig, SamplerConfig


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": float("-inf")}, "scale"),
        ({"scale": float("nan")}, "scale"),
        ({"free_weight": 0.0, "class_weight": 0.0}, "nothing guides"),
        ({"free_weight": 0.0, "class_weight": 0.0, "entropy_weight": 0.0}, "nothing guides"),
        ({"entropy_weight": -1.0}, "entropy_weight"),
        ({"bn_weight": float("inf")}, "bn_weight"),
        ({"student_weight": -0.5, "student": "x"}, "student_weight"),
        ({"student_weight": 1.0}, "give both or neither"),
        ({"student": "runs/student"}, "give both or neither"),
        ({"temperature": 0.0}, "temperature"),
        ({"weighting": "snr"}, "weighting"),
        ({"gate": "off"}, "gate"),
        ({"gate_quantile": 1.5}, "gate_quantile"),
        ({"start": 0.5, "stop": 0.5}, "below"),
        ({"every": 0}, "every"),
        ({"every": 1.5}, "every"),
        ({"repeats": 0}, "repeats"),
        ({"moves": "x_t"}, "guidance.moves"),
        ({"student_after": 5, "student": "here", "student_weight": 1.0}, "is for student: current"),
        ({"step": "unit"}, "guidance.step"),
        ({"bn_form": "l2"}, "guidance.bn_form"),
        ({"student_where": "differ"}, "guidance.student_where"),
        ({"step": "plain", "direction": "random"}, "set guidance.step rms"),
        ({"at": "image"}, "at must"),
        ({"direction": "up"}, "direction"),
        ({"max_bad_rate": 2.0}, "max_bad_rate"),
    ],
)
def test_bad_guidance_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GuidanceConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheduler": "unipc"}, "dpmsolver"),
        ({"steps": 0}, "steps"),
        ({"steps": True}, "steps"),
        ({"cfg_scale": -1.0}, "cfg_scale"),
        ({"eta": 0.5}, "DDIM"),
        ({"scheduler": "ddim", "eta": 1.5}, "eta"),
        ({"spacing": "even"}, "spacing"),
        ({"scheduler": "euler_a", "karras": True}, "karras"),
        ({"compute_batch": 0}, "compute_batch"),
        ({"dtype": "int8"}, "dtype"),
        ({"level": "turbo"}, "level"),
        ({"scheduler": "pndm", "level": "reference", "guidance": GuidanceConfig(repeats=2)}, "pndm"),
        ({"scheduler": "pndm", "guidance": GuidanceConfig(moves="sample")}, "moves: sample does not work with pndm"),
        ({"level": "fast", "reuse_features": 2, "guidance": GuidanceConfig(moves="sample")}, "set reuse_features 1"),
    ],
)
def test_bad_samplers_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplerConfig(**options)


def test_every_field_is_in_the_hash() -> None:
    base = SamplerConfig(guidance=GuidanceConfig())
    others = [
        SamplerConfig(),
        SamplerConfig(guidance=GuidanceConfig(scale=0.2)),
        SamplerConfig(guidance=GuidanceConfig(), compute_batch=32),
        SamplerConfig(guidance=GuidanceConfig(direction="random")),
    ]
    assert len({content_hash(config) for config in [base, *others]}) == 5


def test_the_configuration_is_light_to_import() -> None:
    code = "import sys, prism_fast.sampling as s; s.SamplerConfig(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
