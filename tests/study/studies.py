"""A study of tiny networks, in this process or in one of its own that can be killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prism_fast.inversion.config import InversionConfig
from prism_fast.progress import silent
from prism_fast.study.methods import FURTHER, MAIN, Method
from prism_fast.study.preparations import first_student, inverted_images, learned_words
from prism_fast.study.study import run_study
from prism_fast.study.study_config import StudyConfig
from prism_fast.tokens.config import TokensConfig
from tests.study.worlds import make_world, one_thread, use_fake_images
from tests.tiny import save_tiny_teacher

IMAGES = 20


def three_methods(trials: int = 2) -> tuple[Method, ...]:
    """plain, best of n and PRISM, of whose grids only the first and the last settings are tried."""
    every = {method.name: method for method in MAIN}
    chosen = (every["plain"], every["plain-reject"], every["prism"])
    return tuple(replace(m, grid=(*m.grid[: trials - 1], m.grid[-1]) if m.grid else ()) for m in chosen)


def prepared_methods(trials: int = 2) -> dict[str, Method]:
    """The methods that need something made before, with as little of it as there can be."""
    every = {method.name: method for method in (*MAIN, *FURTHER)}
    dda = every["dda-sdedit"]
    return {
        "dda-sdedit": replace(
            dda,
            grid=(*dda.grid[: trials - 1], dda.grid[-1]),
            # as few steps as strength 0.3 needs; to networks that know nothing no image is like its source
            fields={"sampler": {"steps": 4}, "filter": {"min_cosine": -1.0}},
            prepare=inverted_images(InversionConfig(per_class=2, steps=2)),
        ),
        "ddis": replace(
            every["ddis"],
            fields={"sampler": {"steps": 2}},
            prepare=learned_words(TokensConfig(steps=1, batch=2, denoising_steps=2)),
        ),
        "diffdfkd": replace(
            every["diffdfkd"], fields={"sampler": {"steps": 2}}, prepare=first_student(per_class=2, steps=2)
        ),
    }


def make_networks(folder: Path) -> None:
    make_world(folder)
    for seed, name in ((3, "second"), (4, "extractor")):
        save_tiny_teacher(folder / name, seed=seed)


def tiny_study(networks: Path, out: Path, **changes: Any) -> StudyConfig:
    fields: dict[str, Any] = {
        "seeds": 2, "images": IMAGES, "trial_images": IMAGES, "extractor_images": IMAGES, "passes": 1, "steps": 2,
        "batch": 10, "pilot_images": 2, "more": 1.0, "device": "cpu", "workers": 1, "out": str(out),
        **{name: str(networks / name) for name in ("pipeline", "teacher", "judge", "second", "extractor")},
    }  # fmt: skip
    return StudyConfig(**{**fields, **changes})


def without_seconds(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: without_seconds(v) for k, v in value.items() if "seconds" not in k}
    return [without_seconds(item) for item in value] if isinstance(value, list) else value


def copy_records(study: Path, to: Path) -> None:
    """Takes the records of a study elsewhere by the command of docs/study/README.md."""
    text = (Path(__file__).parents[2] / "docs" / "study" / "README.md").read_text()
    (command,) = re.findall(r"^    (find .*)$", text.replace("\\\n", ""), re.MULTILINE)
    packed = to.with_suffix(".tar.gz")
    told = command.replace("../records.tar.gz", str(packed))
    assert told != command
    subprocess.run(["bash", "-c", told], cwd=study, check=True)
    with tarfile.open(packed) as records:
        records.extractall(to, filter="data")


def started(networks: Path, out: Path, *methods: str) -> subprocess.Popen[bytes]:
    """The study in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.study.studies", str(networks), str(out), *methods],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def killed_when(networks: Path, out: Path, sign: str, *methods: str) -> None:
    """Kills the study as soon as a file of this name is there."""
    with started(networks, out, *methods) as process:
        deadline = time.monotonic() + 240
        while not (out / sign).exists():
            assert process.poll() is None and time.monotonic() < deadline, "it ended, or never came so far"
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)


def main() -> None:
    """``python -m tests.study.studies NETWORKS OUT [METHOD]``; without a method, of the three."""
    networks, out = map(Path, sys.argv[1:3])
    methods = tuple(prepared_methods()[name] for name in sys.argv[3:]) or three_methods()
    with pytest.MonkeyPatch.context() as patch, one_thread():
        use_fake_images(patch)
        run_study(tiny_study(networks, out), print, silent, methods)


if __name__ == "__main__":
    main()
