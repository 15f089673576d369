"""Rows and schedules that tests of every level of the sampler share."""

from __future__ import annotations

from typing import Any

from prism_fast.sampling.guidance import GateThresholds

PROMPTS = ["a photo of a coat", "a dark boot", "a silhouette of a bag, a container with a handle", "jumper"]
CLASSES = [4, 9, 8, 2]
SCHEDULERS: list[dict[str, Any]] = [
    {"scheduler": "pndm"},
    {"scheduler": "ddim"},
    {"scheduler": "ddim", "eta": 0.8},
    {"scheduler": "ddpm"},
    {"scheduler": "euler"},
    {"scheduler": "euler", "karras": True},
    {"scheduler": "euler_a"},
    {"scheduler": "dpmsolver++"},
    {"scheduler": "dpmsolver++", "karras": True, "spacing": "trailing"},
]
IDS = [" ".join(map(str, case.values())) for case in SCHEDULERS]
GATE = GateThresholds(tau=(-1.0,) * 10, delta=(2.0,) * 10)
