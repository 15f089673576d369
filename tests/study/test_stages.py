"""Times and settings of a demo survive interruptions."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import pytest

from prism_fast.errors import UserError
from prism_fast.study.stages import CLOCKS, Stages, check_settings, clock_for, read_record


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_time_adds_up_over_interruptions_and_stops_when_finished(tmp_path: Path) -> None:
    clock = Clock()

    def interrupted() -> None:
        with Stages(tmp_path, clock).stage("a"):
            clock.now += 3
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    stages = Stages(tmp_path, clock)
    with stages.stage("a"):
        clock.now += 2
    with stages.stage("b"):
        clock.now += 1
    with Stages(tmp_path, clock).stage("a"):
        clock.now += 100
    again = Stages(tmp_path, clock)
    assert again.table() == {"a": 5.0, "b": 1.0}
    assert (again.seconds("a"), again.seconds("c"), again.total) == (5.0, 0.0, 6.0)


def test_a_folder_belongs_to_one_demo(tmp_path: Path) -> None:
    out = tmp_path / "new" / "demo"
    check_settings(out, {"images": 3, "seed": 0})
    check_settings(out, {"images": 3, "seed": 0})
    before = {path: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(UserError, match=r"images 3 there, 4 now\): give another --out"):
        check_settings(out, {"images": 4, "seed": 0})
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("another's")
    with pytest.raises(UserError, match="holds something else than a demo: give another output folder"):
        check_settings(tmp_path, {"images": 3})
    with pytest.raises(UserError, match="give another output folder"):
        check_settings(tmp_path / "config.yaml" / "demo", {"images": 3})
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
    assert (tmp_path / "config.yaml").read_text() == "another's"


def test_on_the_cpu_what_others_compute_meanwhile_does_not_count(tmp_path: Path) -> None:
    assert CLOCKS[clock_for("cuda")] is time.perf_counter
    stages = Stages(tmp_path, CLOCKS[clock_for("cpu")])
    with stages.stage("waits"):
        time.sleep(0.3)
    with stages.stage("works"):
        end = time.process_time() + 0.1
        while time.process_time() < end:
            pass
    assert stages.seconds("waits") < 0.1 <= stages.seconds("works")


def test_a_growing_table_is_checked_where_both_have_it_and_kept_whole(tmp_path: Path) -> None:
    out = tmp_path / "study"
    for methods in ({"a": 1, "b": 2}, {"b": 2, "c": 3}, {"a": 1}):
        check_settings(out, {"images": 3, "methods": methods}, "study", growing="methods")
    assert json.loads((out / "study.json").read_text()) == {"images": 3, "methods": {"a": 1, "b": 2, "c": 3}}
    before = (out / "study.json").read_bytes()
    with pytest.raises(UserError, match=r"\(c 3 there, 4 now\): give another --out"):
        check_settings(out, {"images": 3, "methods": {"c": 4, "d": 5}}, "study", growing="methods")
    with pytest.raises(UserError, match="images 3 there, 4 now"):
        check_settings(out, {"images": 4, "methods": {"d": 5}}, "study", growing="methods")
    assert (out / "study.json").read_bytes() == before


def test_what_another_run_wrote_in_the_same_tick_is_kept(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "stages.json"
    one, other = Stages(tmp_path, clock), Stages(tmp_path, clock)
    with one.stage("a"):
        pass
    assert one.finished("a")  # read
    time_of_a = path.stat().st_mtime_ns
    with other.stage("b"):
        pass
    os.utime(path, ns=(time_of_a, time_of_a))
    with one.stage("c"):
        pass
    assert set(Stages(tmp_path, clock).table()) == {"a", "b", "c"}


def test_a_folder_begun_before_a_setting_came_has_its_default(tmp_path: Path) -> None:
    later = {"reference": "test"}
    check_settings(tmp_path / "old", {"images": 3}, "study", usual=later)
    check_settings(tmp_path / "old", {"images": 3, "reference": "test"}, "study", usual=later)
    check_settings(tmp_path / "new", {"images": 3, "reference": "V"}, "study", usual=later)
    for folder, there, now in (("old", "test", "V"), ("new", "V", "test")):
        with pytest.raises(UserError, match=f"reference {there} there, {now} now"):
            check_settings(tmp_path / folder, {"images": 3, "reference": now}, "study", usual=later)


def test_a_folder_that_another_run_is_just_making_is_waited_for(tmp_path: Path) -> None:
    out = tmp_path / "study"
    out.mkdir()
    (out / ".study.json.1.tmp").write_text("half")
    other = threading.Timer(0.3, lambda: (out / "study.json").write_text('{"images": 3}'))
    other.start()
    check_settings(out, {"images": 3}, "study")
    other.join()
    with pytest.raises(UserError, match="images 3 there, 4 now"):
        check_settings(out, {"images": 4}, "study")


def test_time_of_two_runs_in_one_stage_adds_up(tmp_path: Path) -> None:
    clock, other_clock = Clock(), Clock()
    one, other = Stages(tmp_path, clock), Stages(tmp_path, other_clock)
    with one.stage("a"):
        with other.stage("a"):
            other_clock.now += 5
        clock.now += 3
    assert one.seconds("a") == 8.0 and one.finished("a")
    clock.now += 1

    def interrupted() -> None:
        with one.stage("b"):
            with other.stage("b"):
                other_clock.now += 2
            clock.now += 4
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert one.seconds("b") == 6.0 and one.finished("b")  # as the other run has it


def test_a_run_that_ended_after_its_figures_were_kept_has_finished(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    path.write_text(json.dumps({"identity": "x", "figures": {"a": 1}}))
    stages = Stages(tmp_path)
    assert stages.once("s", path, "x", lambda: {"a": 2}) == {"a": 1}
    assert stages.finished("s") and stages.seconds("s") == 0


@pytest.mark.parametrize("text", ["", "[1]", '{"a": '])
def test_a_damaged_record_is_named_with_its_cure(tmp_path: Path, text: str) -> None:
    path = tmp_path / "stages.json"
    path.write_text(text)
    for read in (lambda: Stages(tmp_path).table(), lambda: Stages.kept(path, "x"), lambda: read_record(path)):
        with pytest.raises(UserError, match=r"stages\.json is damaged .*: move it away"):
            read()
    assert path.read_text() == text
