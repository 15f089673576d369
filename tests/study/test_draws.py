"""Sets of a study: known by what they are drawn from, whole, and honest about where their images come from."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from prism_fast.errors import UserError
from prism_fast.progress import silent
from prism_fast.study import draws
from prism_fast.study.draws import Drawn, Draws
from prism_fast.study.methods import MAIN
from prism_fast.study.preparations import Preparation, Request
from prism_fast.study.stages import Stages
from prism_fast.study.study_config import StudyConfig

PLAIN = next(method for method in MAIN if method.name == "plain")
STUDY = StudyConfig(images=10, steps=2, batch=8)


@dataclass
class Shards:
    """Stands for what a sampler would leave."""

    length: int = 10
    fingerprint: str = "first"
    drawn: int = 0

    def __call__(self, *_: Any, **__: Any) -> None:
        self.drawn += 1

    def open(self, _: Path) -> Any:
        return _Sized(self.length, SimpleNamespace(fingerprint=self.fingerprint))


class _Sized:
    def __init__(self, length: int, one: Any) -> None:
        self._length, self.set = length, one

    def __len__(self) -> int:
        return self._length


@pytest.fixture
def shards(monkeypatch: pytest.MonkeyPatch) -> Shards:
    made = Shards()
    monkeypatch.setattr(draws, "synthesize", made)
    monkeypatch.setattr(draws, "ShardSource", made.open)
    return made


def draw(out: Path, study: StudyConfig = STUDY, machine: str = "one") -> Drawn:
    made = Draws(study, out, Stages(out), silent, {"weights": "w"}, machine)
    return made.draw("plain seed 0: synthesize", PLAIN, {}, study.images, 0, out / "set")


def test_a_set_is_the_same_wherever_it_is_drawn(tmp_path: Path, shards: Shards) -> None:
    first = draw(tmp_path)
    for device in ("cpu", "cuda:1"):
        assert draw(tmp_path, replace(STUDY, device=device)).identity == first.identity
    assert shards.drawn == 1
    draw(tmp_path, replace(STUDY, steps=3))
    assert shards.drawn == 2


def test_a_set_in_which_rows_have_no_image_is_refused_before_anything_is_measured(
    tmp_path: Path, shards: Shards
) -> None:
    shards.length = 8
    with pytest.raises(UserError, match=r"2 of 10 rows have no image, .* rejected: raise filter\.attempts"):
        draw(tmp_path)
    assert not (tmp_path / "set" / "set.json").exists()


@pytest.mark.parametrize("other", [False, True])
def test_images_that_are_drawn_again_are_told_from_the_first_where_they_differ(
    tmp_path: Path, shards: Shards, other: bool
) -> None:
    first = draw(tmp_path)
    assert first.machine() == "one"
    if other:
        shards.fingerprint = "second"
    again = draw(tmp_path, machine="two")
    assert again.machine() == "one"  # nobody has looked at them
    again.read()
    told = "one; other images since: two" if other else "one"
    assert (again.machine(), again.identity, again.count) == (told, first.identity, 10)
    assert json.loads((tmp_path / "set" / "set.json").read_text())["machine"] == told
    once_more = draw(tmp_path, machine="three")
    once_more.read()
    assert once_more.machine() == told.replace("two", "three")


def test_what_is_made_before_is_made_by_one_run_at_a_time(tmp_path: Path, shards: Shards) -> None:
    inside: list[int] = []
    most: list[int] = []

    def make(_: Request) -> dict[str, Any]:
        inside.append(1)
        time.sleep(0.2)
        most.append(len(inside))
        inside.pop()
        return {}

    method = replace(PLAIN, prepare=Preparation(make=make))
    runs = [Draws(STUDY, tmp_path, Stages(tmp_path), silent, {}, "one") for _ in range(3)]
    threads = [
        threading.Thread(target=run.draw, args=("plain seed 0: synthesize", method, {}, 10, 0, tmp_path / "set"))
        for run in runs
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1]
