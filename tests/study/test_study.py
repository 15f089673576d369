"""The study on tiny networks: its rows and files, that it resumes, and that one failing method fails alone."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from prism_fast.cli import EXIT_ERROR, main
from prism_fast.errors import UserError
from prism_fast.progress import silent
from prism_fast.study import costs, experiment
from prism_fast.study.commit import commit
from prism_fast.study.experiment import BY_COUNT, EQUAL_COMPUTE, EQUAL_IMAGES, OWN_LOSS, TRIAL_SEED, Experiment
from prism_fast.study.methods import TRIALS, Method, suite
from prism_fast.study.preparations import Preparation, Request
from prism_fast.study.results import claims
from prism_fast.study.study import REPORT, RESULTS, run_study
from prism_fast.study.study_config import StudyConfig
from prism_fast.study.study_page import _overlaps, _probability
from tests.study.studies import (
    IMAGES,
    copy_records,
    killed_when,
    prepared_methods,
    started,
    three_methods,
    tiny_study,
    without_seconds,
)

NAMES = ("plain", "plain-reject", "prism")


Finished = tuple[StudyConfig, dict[str, Any], list[str]]


@pytest.fixture(scope="module")
def finished(networks: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    said: list[str] = []
    config = tiny_study(networks, tmp_path_factory.mktemp("study") / "out")
    return config, run_study(config, said.append, silent, three_methods()), said


def rows_of(figures: dict[str, Any], table: str) -> list[dict[str, Any]]:
    return [row for row in figures["rows"] if row["table"] == table]


def plan_rows(folder: Path) -> list[tuple[Any, ...]]:
    columns = ("index", "seed", "class_index")
    tables = [pq.read_table(path).select(columns).to_pylist() for path in sorted(folder.glob("*.parquet"))]
    return [tuple(row[name] for name in columns) for table in tables for row in table]


def test_a_row_for_every_recipe_and_seed(finished: Finished) -> None:
    config, figures, _ = finished
    assert figures == json.loads(Path(config.out, RESULTS).read_text())
    rows = rows_of(figures, EQUAL_IMAGES)
    assert Counter((row["recipe"], row["seed"]) for row in rows) == {
        (n, s): 1 for n in ("real", *NAMES) for s in (0, 1)
    }
    for row in rows:
        assert row["images"] == IMAGES and 0 <= row["student_accuracy"] <= 1
        assert {"training", "measuring"} <= set(row["seconds"]) and ("sampling" in row["seconds"]) == (
            row["recipe"] != "real"
        )
        found = {(f["metric"], f["extractor"]) for f in row["figures"]}
        assert len(found) == len(row["figures"]) == 2 * 6
        assert {f["count"] for f in row["figures"]} == {IMAGES} and {f["reference"] for f in row["figures"]} == {"test"}
        headline = {f["metric"]: f["value"] for f in row["figures"] if f["extractor"] == config.judge}
        by_shift = row["shifts"]
        assert len(by_shift) == 7 and row["shifted_accuracy"] == pytest.approx(sum(by_shift.values()) / 7, abs=1e-5)
        assert all(row[name] == headline[name] for name in ("precision", "recall", "density", "coverage"))
    assert config.teacher not in {f["extractor"] for row in rows for f in row["figures"]}
    pairs = {(c["first"], c["second"]) for c in figures["shift_comparisons"]}
    assert pairs == {("prism", n) for n in ("real", "plain", "plain-reject")} | {
        (n, "real") for n in ("plain", "plain-reject")
    }
    assert figures["quotable"] and not figures["failures"] and set(figures["curves"]) == {"real", *NAMES}
    assert [point["k"] for point in figures["curves"]["prism"]] == list(range(1, 11))


def test_methods_share_the_rows_of_a_seed_and_trials_have_others(finished: Finished) -> None:
    config, _, _ = finished
    sets = {
        (n, s): plan_rows(Path(config.out, "sets", n, f"seed-{s}", "shards"))
        for n in ("plain", "prism")
        for s in (0, 1)
    }
    assert sets["plain", 0] == sets["prism", 0] and sets["plain", 1] == sets["prism", 1]
    seeds = {seed for rows in sets.values() for _, seed, _ in rows}
    assert len(seeds) == 2 * IMAGES
    tried = [plan_rows(Path(config.out, "trials", "prism", str(n), "shards")) for n in range(2)]
    assert tried[0] == tried[1] and not seeds & {seed for _, seed, _ in tried[0]}
    assert TRIAL_SEED not in range(config.seeds)


def test_what_was_chosen_is_what_is_drawn(finished: Finished) -> None:
    config, figures, _ = finished
    for name in ("plain-reject", "prism"):
        chosen = [trial["fields"] for trial in figures["trials"][name] if trial["chosen"]]
        assert len(chosen) == 1 and len(figures["trials"][name]) == 2
        info = json.loads(Path(config.out, "sets", name, "seed-1", "shards", "_info.json").read_text())["made_from"]
        assert info["sampler"]["cfg_scale"] == chosen[0]["sampler"]["cfg_scale"]
        if name == "prism":
            assert info["sampler"]["guidance"]["scale"] == chosen[0]["sampler"]["guidance"]["scale"]
        else:
            assert (info["filter"]["attempts"], info["filter"]["keep"]) == (chosen[0]["filter"]["attempts"], "best")


def test_students_differ_in_images_alone(finished: Finished) -> None:
    config, _, _ = finished
    made = {
        (name, seed): yaml.safe_load(
            Path(config.out, "students", "equal-images", name, f"seed-{seed}", "student", "config.yaml").read_text()
        )
        for name in ("real", *NAMES)
        for seed in (0, 1)
    }
    first = made["plain", 0]
    for (_, seed), other in made.items():
        assert {key for key in first if first[key] != other[key]} <= {"data", "out"} | ({"seed"} if seed else set())
    assert first["steps"] == config.student_steps


def test_the_report_is_whole_and_loads_nothing(finished: Finished) -> None:
    config, figures, said = finished
    text = Path(config.out, REPORT).read_text()
    opened: list[str] = []

    class Checker(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            opened.append(tag)
            for name, value in attrs:
                assert name not in ("src", "href") or (value or "").startswith("data:")

    Checker().feed(text)
    assert opened.count("img") == len(NAMES) + 1 and opened.count("svg") >= 2
    assert all(claim["claim"] in unescape(text).replace("\u00a0", " ") for claim in figures["claims"])
    assert "not quotable" not in text.lower()
    assert "from left to right: class 0, class 1, class 2" in text
    assert "features of judge, k = 3, N = 20 images" in said[-1]


def test_the_report_shows_no_frechet_distance_of_no_more_images_than_features(finished: Finished) -> None:
    config, figures, _ = finished
    widths = figures["feature_widths"]
    assert list(widths) == list(figures["compared_images"]) and max(widths.values()) < IMAGES
    assert "No Fréchet" not in Path(config.out, REPORT).read_text()
    shown = "".join(_overlaps(figures))
    wide = "".join(_overlaps({**figures, "feature_widths": {**widths, config.extractor: IMAGES}}))
    assert wide.count("No Fréchet distance: 20 features") == 1
    assert wide.count("<td>–</td>") - shown.count("<td>–</td>") == len(NAMES) + 1


def test_results_say_what_made_them_and_what_seconds_are(finished: Finished) -> None:
    _, figures, _ = finished
    assert figures["clock"] == "CPU time" and figures["commit"] == commit() and figures["control"] == []


def test_a_quick_run_says_so_everywhere(networks: Path, tmp_path: Path) -> None:
    said: list[str] = []
    config = tiny_study(networks, tmp_path / "out", quick=True)
    figures = run_study(config, said.append, silent, three_methods()[:1])
    assert figures["quotable"] is False and "not quotable" in figures["note"]
    assert "not quotable" in said[0] and "not quotable" in said[-1]
    assert "not quotable" in Path(config.out, REPORT).read_text().lower()


@pytest.mark.parametrize(
    ("value", "told"), [(None, "–"), (0.04, "0.040"), (0.0005, "0.001"), (0.0004999, "&lt; 0.001"), (0.0, "&lt; 0.001")]
)
def test_a_small_probability_is_not_called_zero(value: float | None, told: str) -> None:
    assert _probability(value) == told


def test_a_quick_run_decides_no_claim(finished: Finished) -> None:
    _, figures, _ = finished
    measured = figures["rows"], figures["comparisons"], figures["headline"], 2, ("plain", "plain-reject")
    assert [line for line in claims(*measured) if line["holds"] is not None]
    assert {line["holds"] for line in claims(*measured, quick=True)} == {None}


def test_a_finished_study_makes_nothing_again(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    config, figures, _ = finished
    before = {path: path.stat().st_mtime_ns for path in Path(config.out).rglob("*.tar")}

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("something was made or measured again")

    monkeypatch.setattr(experiment, "measure_accuracy", refuse)
    monkeypatch.setattr(costs, "costs_of", refuse)
    again = run_study(config, lambda _: None, silent, three_methods())
    assert again == figures
    assert {path: path.stat().st_mtime_ns for path in Path(config.out).rglob("*.tar")} == before


def test_the_records_are_enough_to_go_on(
    finished: Finished, networks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without shards and students, in another folder; a set that has to be looked at again is drawn again."""
    config, figures, _ = finished
    out = tmp_path / "out"
    copy_records(Path(config.out), out)
    moved = replace(config, out=str(out))
    with monkeypatch.context() as patch:
        patch.setattr("prism_fast.study.draws.synthesize", None)
        patch.setattr(experiment, "learn", None)
        again = run_study(moved, lambda _: None, silent, three_methods())
    assert again == figures
    (out / "shown" / "plain.json").unlink()
    assert not list(out.rglob("*.tar"))
    assert without_seconds(run_study(moved, lambda _: None, silent, three_methods())) == without_seconds(figures)
    assert {path.parts[-4] for path in out.rglob("*.tar")} == {"plain"}


def test_what_there_is_can_be_read_at_any_time(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While others make the rest, and without making or claiming anything."""
    config, figures, _ = finished
    out = tmp_path / "out"
    copy_records(Path(config.out), out)
    reading = replace(config, out=str(out), report_only=True)
    for path in (out / RESULTS, out / REPORT, *out.rglob("*.lock")):
        path.unlink(missing_ok=True)
    monkeypatch.setattr("prism_fast.study.draws.synthesize", None)
    monkeypatch.setattr(experiment, "learn", None)
    whole = run_study(reading, lambda _: None, silent, three_methods())
    assert whole == figures and whole["unmade"] == [] and "report_only" not in whole["config"]
    (out / "students/equal-images/plain-reject/seed-1/figures.json").unlink()
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    said: list[str] = []
    found = run_study(reading, said.append, silent, three_methods())
    changed = {path.name for path in out.rglob("*") if path.is_file() and before.get(path) != path.read_bytes()}
    assert changed == {RESULTS, REPORT} and not list(out.rglob("*.lock"))
    assert found["unmade"] == ["plain-reject seed 1, equal images"] and not found["quotable"] and not found["failures"]
    lost = {"recipe": "plain-reject", "seed": 1}
    assert found["rows"] == [row for row in figures["rows"] if {**row, **lost} != row]
    holds = {claim["claim"]: claim["holds"] for claim in found["claims"]}
    assert holds["prism beats plain at equal images"] is None  # its p-value is corrected for every rival
    assert holds["prism has a higher recall than plain in the judge's features"] is not None
    told = "not quotable: not finished, pieces missing: 1"
    assert told in said[-1] and found["note"] == told and "1 of 2 seeds" in said[-1]
    text = (out / REPORT).read_text()
    assert told.capitalize() in text and text.count("<small>1 of 2 seeds</small>") == 2
    shutil.rmtree(out)
    with pytest.raises(UserError, match="out holds no study yet: give the folder of one as --out"):
        run_study(reading, print, silent, three_methods())
    assert not out.exists()
    out.mkdir()
    shutil.copy(Path(config.out, "study.json"), out)
    with pytest.raises(UserError, match=r"nothing of the study in .* is finished yet"):
        run_study(reading, print, silent, three_methods())


def test_a_finished_suite_goes_on_as_the_larger_one(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder whose ``study.json`` has the suite too, as it had at first."""
    config, figures, _ = finished
    out = tmp_path / "out"
    shutil.copytree(config.out, out)
    settings = json.loads((out / "study.json").read_text())
    assert not {"suite", "more"} & settings.keys()
    (out / "study.json").write_text(json.dumps({**settings, "suite": "fashion", "more": 2.0}))
    trained: list[str] = []
    distil = experiment.learn
    monkeypatch.setattr(experiment, "counts", lambda *_: (IMAGES,))
    monkeypatch.setattr(
        experiment, "learn", lambda c, *rest, **more: trained.append(c.data) or distil(c, *rest, **more)
    )
    (eda,) = (method for method in suite("fashion-full")[0] if method.name == "eda")
    larger = replace(config, suite="fashion-full", out=str(out))
    again = run_study(larger, lambda _: None, silent, (*three_methods(), eda))
    assert trained == ["images of eda seed 0", "images of eda seed 1"]
    assert [row for row in again["rows"] if row["recipe"] != "eda"] == figures["rows"]
    assert again["trials"] == figures["trials"]
    kept = json.loads((out / "study.json").read_text())
    assert kept["methods"].keys() == {*NAMES, "eda"} and "suite" not in kept
    # and the smaller one still does
    assert run_study(replace(config, out=str(out)), lambda _: None, silent, three_methods())["rows"] == figures["rows"]
    other = replace(three_methods()[0], fields={"sampler": {"cfg_scale": 2.0}})
    with pytest.raises(UserError, match=r"of other settings \(plain \w+ there"):
        run_study(larger, lambda _: None, silent, (other,))


@pytest.mark.parametrize("changes", [{"passes": 2}, {"seeds": 3}, {"trial_images": 30}, {"second": "judge"}])
def test_another_setting_is_refused_and_touches_nothing(
    finished: Finished, networks: Path, changes: dict[str, Any]
) -> None:
    config, _, _ = finished
    if "second" in changes:
        changes = {"second": str(networks / "judge")}
    before = Path(config.out, RESULTS).read_bytes()
    with pytest.raises(UserError, match=r"of other settings|one network"):
        run_study(replace(config, **changes), lambda _: None, silent, three_methods())
    assert Path(config.out, RESULTS).read_bytes() == before


def test_a_failing_method_is_named_and_the_others_are_kept(networks: Path, tmp_path: Path) -> None:
    def broken(_: Request) -> dict[str, Any]:
        raise UserError("the inverted images are gone")

    methods = (
        three_methods()[0],
        Method(name="broken", about="fails", recipe="plain", grid=({},), prepare=Preparation(make=broken)),
        Method(name="after", about="follows it", recipe="plain", follows="broken"),
    )
    config = tiny_study(networks, tmp_path / "out")
    with pytest.raises(UserError, match="broken: the inverted images are gone; after: it takes the values"):
        run_study(config, lambda _: None, silent, methods)
    figures = json.loads(Path(config.out, RESULTS).read_text())
    assert {row["recipe"] for row in figures["rows"]} == {"real", "plain"} and set(figures["failures"]) == {
        "broken",
        "after",
    }
    assert "the inverted images are gone" in Path(config.out, REPORT).read_text()


def test_preparation_own_loss_and_equal_compute(
    networks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Request] = []

    def prepare(request: Request) -> dict[str, Any]:
        asked.append(request)
        return {"sampler": {"cfg_scale": 2.5}}

    plain, _, prism = three_methods()
    made = Method(
        name="made", about="made from something", recipe="plain", prepare=Preparation(make=prepare),
        own={"temperature": 10.0},
    )  # fmt: skip
    ratios = {"plain": 0.1 / 0.16, "made": 0.11 / 0.16, "prism": 1.0}
    spent = {"seconds_per_image": {"plain": 0.1, "made": 0.11, "prism": 0.16}, "of_an_image_of_prism": ratios}
    monkeypatch.setattr(costs, "costs_of", lambda _: spent)
    config = tiny_study(networks, tmp_path / "out", more=2.0)
    methods = (plain, made, replace(prism, grid=prism.grid[:1]))
    figures = run_study(config, lambda _: None, silent, methods)
    with pytest.raises(UserError, match=r"equal compute with --more 2\.0, not 3\.0: give that"):
        Experiment(replace(config, more=3.0), print, silent, (plain,))
    assert Experiment(replace(config, more=1.0), print, silent, (plain,)).out == Path(config.out)
    for every, seeds in ((None, {0}), ("prism, made", {0, 1})):
        known = Experiment(replace(config, more=1.0, further_seeds=1, every_seed=every), print, silent, methods)
        assert {seed for seed in range(3) if f"made seed {seed}: distil" in known._planned()} == seeds
    with pytest.raises(UserError, match="every_seed is 'eda'; it must be of the suite's methods: plain, made"):
        Experiment(replace(config, more=1.0, every_seed="made,eda"), print, silent, (plain, made))
    info = json.loads(Path(config.out, "sets/made/seed-0/shards/_info.json").read_text())["made_from"]
    assert info["sampler"]["cfg_scale"] == 2.5 and {request.seed for request in asked} >= {0, 1}
    assert all("preparation" in row["seconds"] for row in figures["rows"] if row["recipe"] == "made")
    richer = {(row["recipe"], row["seed"]): row["images"] for row in rows_of(figures, EQUAL_COMPUTE)}
    assert richer == {("plain", 0): 30, ("plain", 1): 30}  # 1.6 times, in whole rounds of ten; 1.45 times is 20 again
    own = rows_of(figures, OWN_LOSS)
    assert [(row["recipe"], row["seed"]) for row in own] == [("made", 0), ("made", 1)] and "figures" not in own[0]
    text = Path(config.out, "students/own-loss/made/seed-0-own loss/student/config.yaml").read_text()
    assert re.search(r"^temperature: 10.0$", text, re.MULTILINE)
    tables = {(c["table"], c["second"]) for c in figures["comparisons"]}
    assert {(EQUAL_COMPUTE, "plain"), (OWN_LOSS, "made")} <= tables
    assert not {(EQUAL_COMPUTE, "made"), (OWN_LOSS, "plain")} & tables  # no rival; no loss of its own
    # One of the richer students is gone: its method does not stand there with its row of equal images.
    (tmp_path / "out/students/equal-compute/plain/seed-1-equal compute/figures.json").unlink()
    methods = (plain, made, replace(prism, grid=prism.grid[:1]))
    read = run_study(replace(config, report_only=True), lambda _: None, silent, methods)
    assert read["unmade"] == ["plain seed 1, equal compute 30"] and "plain" in figures["compute"]["seconds_per_image"]
    assert EQUAL_COMPUTE not in {c["table"] for c in read["comparisons"]}
    assert len(rows_of(read, EQUAL_COMPUTE)) == 1 and read["failures"] == {}


def test_the_command_refuses_what_cannot_be_with_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "--seeds", "1", "--out", str(tmp_path / "out")]) == EXIT_ERROR
    assert "seeds" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert main(["study", "--suite", "imagenet", "--out", str(tmp_path / "out")]) == EXIT_ERROR


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_full_suite_runs_every_ablation_and_number_of_images(
    networks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiment, "counts", lambda *_: (10, IMAGES, 40))
    config = tiny_study(networks, tmp_path / "out", suite="fashion-full")
    there, missing = suite("fashion-full")
    prepared = prepared_methods(TRIALS)
    figures = run_study(config, lambda _: None, silent, tuple(prepared.get(method.name, method) for method in there))
    assert figures["left_out"] == list(missing) == [] and figures["failures"] == {}
    assert {row["recipe"] for row in rows_of(figures, EQUAL_IMAGES)} == {"real", *(method.name for method in there)}
    counted = Counter((row["recipe"], row["images"]) for row in rows_of(figures, BY_COUNT))
    assert counted == {(name, count): 2 for name in ("plain", "prism") for count in (10, 40)}
    assert {len(trials) for trials in figures["trials"].values()} == {TRIALS}
    text = Path(config.out, REPORT).read_text()
    assert "Scale of the guidance" in text and "Number of images" in text


# Killed


@pytest.mark.slow
def test_a_killed_study_goes_on_to_the_same_results(finished: Finished, networks: Path, tmp_path: Path) -> None:
    _, figures, _ = finished
    out = tmp_path / "out"
    for sign in (
        "trials/prism/1/shards/shard-000000.json",  # between a set and what is seen of it
        "students/equal-images/plain-reject/seed-0/student/run.json",  # in a training
        "sets/prism/seed-1/shards/_info.json",  # before the first shard
    ):
        killed_when(networks, out, sign)
        assert not (out / RESULTS).exists()
    config = tiny_study(networks, out)
    again = run_study(config, lambda _: None, silent, three_methods())
    assert without_seconds(again) == without_seconds(figures)


@pytest.mark.slow
def test_two_runs_at_once_share_the_work(finished: Finished, networks: Path, tmp_path: Path) -> None:
    _, figures, _ = finished
    out = tmp_path / "out"
    runs = [started(networks, out) for _ in range(2)]
    assert [run.wait(timeout=240) for run in runs] == [0, 0]
    assert without_seconds(json.loads((out / RESULTS).read_text())) == without_seconds(figures)
    stages = json.loads((out / "stages.json").read_text())
    assert all(stage["finished"] for stage in stages.values())
