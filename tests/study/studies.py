"""A study of tiny networks, in this process or in one of its own that can be killed."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prism_fast.progress import silent
from prism_fast.study.methods import MAIN, Method
from prism_fast.study.study import run_study
from prism_fast.study.study_config import StudyConfig
from tests.study.worlds import make_world, one_thread, use_fake_images
from tests.tiny import save_tiny_teacher

IMAGES = 20


def three_methods(trials: int = 2) -> tuple[Method, ...]:
    """plain, best of n and PRISM, of whose grids only the first and the last settings are tried."""
    every = {method.name: method for method in MAIN}
    chosen = (every["plain"], every["plain-reject"], every["prism"])
    return tuple(replace(m, grid=(*m.grid[: trials - 1], m.grid[-1]) if m.grid else ()) for m in chosen)


def make_networks(folder: Path) -> None:
    make_world(folder)
    for seed, name in ((3, "second"), (4, "extractor")):
        save_tiny_teacher(folder / name, seed=seed)


def tiny_study(networks: Path, out: Path, **changes: Any) -> StudyConfig:
    fields: dict[str, Any] = {
        "seeds": 2, "images": IMAGES, "trial_images": IMAGES, "extractor_images": IMAGES, "passes": 1, "steps": 2,
        "batch": 10, "pilot_images": 2, "more": 1.0, "device": "cpu", "out": str(out),
        **{name: str(networks / name) for name in ("pipeline", "teacher", "judge", "second", "extractor")},
    }  # fmt: skip
    return StudyConfig(**{**fields, **changes})


def main() -> None:
    """``python -m tests.study.studies NETWORKS OUT``."""
    networks, out = map(Path, sys.argv[1:])
    with pytest.MonkeyPatch.context() as patch, one_thread():
        use_fake_images(patch)
        run_study(tiny_study(networks, out), print, silent, three_methods())


if __name__ == "__main__":
    main()
