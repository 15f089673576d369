from __future__ import annotations

import hashlib
import json
import logging
import math
import signal
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from prism_fast.config import environment
from prism_fast.errors import UserError
from prism_fast.keyed import seed_of
from prism_fast.prompts.prompt_config import PromptConfig
from prism_fast.sampling.batch import SampleBatch
from prism_fast.sampling.config import GuidanceConfig, SamplerConfig
from prism_fast.sampling.pending import Pending
from prism_fast.synthesis import job, publish
from prism_fast.synthesis.encoders import encoder_versions
from prism_fast.synthesis.images import decode_image
from prism_fast.synthesis.interruption import Interrupted
from prism_fast.synthesis.soft import top_k_dtype
from prism_fast.synthesis.tar import index_text, scan_tar
from tests.synthesis.doubles import (
    PLAIN,
    SIZE,
    STEPS,
    ColourTeacher,
    SeedSampler,
    contents,
    models,
    run,
    small_config,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of an uninterrupted run of the small configuration."""
    folder = tmp_path_factory.mktemp("whole")
    run(small_config(folder), folder / "out")
    return contents(folder / "out")


def members(folder: Path, shard: int) -> dict[str, bytes]:
    path = folder / f"shard-{shard:06d}.tar"
    data = path.read_bytes()
    return {m.name: data[m.offset : m.offset + m.size] for m in scan_tar(path)}


class Eager(SeedSampler):
    """A batch is there only once the next one of its shard has been begun: ten images, four a batch."""

    begun: list[threading.Event]

    def begin(self, prompts: Sequence[str], class_indices: Sequence[int], seeds: Sequence[int]) -> Pending:
        batch, last = self.sample(prompts, class_indices, seeds), len(seeds) < self.config.compute_batch
        if self.begun:
            self.begun[-1].set()
        following = threading.Event()
        self.begun = [] if last else [following]

        def finish() -> SampleBatch:
            assert last or following.wait(30), "the next batch was not begun before this one was waited for"
            return batch

        return Pending(images=batch.images, finish=finish)


@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_the_next_batch_is_begun_before_one_is_waited_for(kind: str, tmp_path: Path) -> None:
    config = small_config(tmp_path, sampler=PLAIN, images=20, format=kind)
    assert config.shard_size % PLAIN.compute_batch and not config.shard_size % 10
    made = replace(models(), make_sampler=_eager)
    assert run(config, tmp_path / "out", made).images == 20
    run(config, tmp_path / "plain")
    assert contents(tmp_path / "out") == contents(tmp_path / "plain")


def _eager(config: SamplerConfig, gate: Any) -> SeedSampler:
    sampler = Eager(config, gate)
    sampler.begun = []
    return sampler


# What a set looks like


def test_the_files_of_a_set(whole: dict[str, bytes]) -> None:
    shards = [f"shard-{n:06d}.{kind}" for n in range(3) for kind in ("idx", "json", "parquet", "tar")]
    assert sorted(whole) == sorted([*shards, "README.md", "_info.json", "config.yaml", "pilot.json"])


def test_members_hold_the_image_and_its_labels(tmp_path: Path) -> None:
    config = small_config(tmp_path, sampler=PLAIN)
    run(config, tmp_path / "out")
    sampler = SeedSampler(PLAIN, None)
    for shard, numbers in ((0, range(10)), (1, range(10, 20)), (2, range(20, 23))):
        found = members(tmp_path / "out", shard)
        names = [f"{i:09d}.{ext}" for i in numbers for ext in ("png", "cls", "label", "soft", "json")]
        assert list(found) == names
        for i in numbers:
            row = json.loads(found[f"{i:09d}.json"])
            image = decode_image(found[f"{i:09d}.png"], "png")
            expected = sampler.sample([row["prompt"]], [i % 3], [seed_of(0, i, 0)]).images[0]
            assert np.array_equal(image, expected.permute(1, 2, 0).numpy())
            assert found[f"{i:09d}.cls"] == str(i % 3).encode()
            assert found[f"{i:09d}.label"] == (i % 3).to_bytes(8, "little")
            logits = np.frombuffer(found[f"{i:09d}.soft"], "<f2")
            assert np.allclose(logits, 10 * image.mean((0, 1)) / 255, rtol=2**-10)
            assert (row["index"], row["seed"], row["class_index"], row["attempt"]) == (i, seed_of(0, i, 0), i % 3, 0)
            assert row["teacher_top1"] == logits.argmax() == i % 3
            p = np.exp(logits.astype(float)) / np.exp(logits.astype(float)).sum()
            assert row["teacher_probability"] == pytest.approx(p[i % 3], rel=1e-2)
            assert row["energy"] == pytest.approx(-float(logits[i % 3]), rel=1e-2)  # E = -f_y at the default weights
            assert row["accepted"] is True and row["reason"] == ""
            assert row["guidance"] == {"steps": [], "energy": [], "gate": []}


def test_records_keep_the_guidance_trace(whole: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "shard-000000.tar").write_bytes(whole["shard-000000.tar"])
    info = json.loads(whole["_info.json"])
    for name, data in members(tmp_path, 0).items():
        if name.endswith(".json"):
            row = json.loads(data)
            assert row["guidance"]["steps"] == list(STEPS)
            assert row["guidance"]["energy"] == [0.0 - row["seed"] % 7, 1.0 - row["seed"] % 7]
            assert row["guidance"]["gate"] == [0.5, 0.5]
            assert row["config_hash"] == info["config_hash"]


def test_statistics_index_and_table_agree_with_the_archive(whole: dict[str, bytes], tmp_path: Path) -> None:
    for name, data in whole.items():
        (tmp_path / name).write_bytes(data)
    for shard, rows in enumerate((10, 10, 3)):
        stem = f"shard-{shard:06d}"
        stats = json.loads(whole[f"{stem}.json"])
        assert (stats["shard"], stats["first_row"], stats["rows"], stats["images"]) == (shard, 10 * shard, rows, rows)
        assert (stats["guidances"], stats["skipped"], stats["rejected"]) == (rows * len(STEPS), 0, {})
        for kind, facts in stats["files"].items():
            data = whole[facts["name"]]
            assert facts["name"] == f"{stem}.{kind}"
            assert (facts["bytes"], facts["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
        assert whole[f"{stem}.idx"].decode() == index_text(scan_tar(tmp_path / f"{stem}.tar"))
        table = pq.read_table(tmp_path / f"{stem}.parquet").to_pylist()
        records = [json.loads(d) for n, d in members(tmp_path, shard).items() if n.endswith(".json")]
        assert table == [{key: value for key, value in r.items() if key in table[0]} for r in records]
        assert set(records[0]) - set(table[0]) == {"guidance", "config_hash"}


def test_info_names_what_other_readers_need(whole: dict[str, bytes]) -> None:
    info = json.loads(whole["_info.json"])
    assert info["splits"]["train"] == {
        "name": "train",
        "num_samples": 23,
        "filenames": [f"shard-{n:06d}.tar" for n in range(3)],
        "shard_lengths": [10, 10, 3],
    }
    assert (info["complete"], info["num_classes"], info["counts"]) == (True, 3, [8, 8, 7])
    assert info["class_names"] == ["red thing", "green thing", "blue thing"]
    assert info["environment"] == {**environment(torch.device("cpu"), "float32"), **encoder_versions("png")}


def test_a_card_tells_which_files_are_the_data(whole: dict[str, bytes], tmp_path: Path) -> None:
    import yaml

    head = whole["README.md"].decode().split("---\n")[1]
    (config,) = yaml.safe_load(head)["configs"]
    (entry,) = config["data_files"]
    for name in whole:
        (tmp_path / name).touch()
    assert sorted(path.name for path in tmp_path.glob(entry["path"])) == [f"shard-{n:06d}.tar" for n in range(3)]


def test_a_readme_of_the_user_is_kept(tmp_path: Path, whole: dict[str, bytes]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/README.md").write_text("mine")
    run(small_config(tmp_path), tmp_path / "out")
    assert same(contents(tmp_path / "out"), {**whole, "README.md": b"mine"})


def test_the_report_sums_up(tmp_path: Path) -> None:
    report = run(small_config(tmp_path), tmp_path / "out")
    assert (report.images, report.rows, report.made, report.shards) == (23, 23, 23, 3)
    assert (report.guidances, report.skipped, report.rejected) == (23 * len(STEPS), 0, {})
    assert report.teacher_agreement == 1.0 and 0 < report.teacher_probability < 1
    table = [row for n in range(3) for row in pq.read_table(tmp_path / f"out/shard-{n:06d}.parquet").to_pylist()]
    assert report.energy == pytest.approx(math.fsum(row["energy"] for row in table) / 23)


def test_the_configuration_lies_beside_the_images(whole: dict[str, bytes]) -> None:
    import yaml

    saved = yaml.safe_load(whole["config.yaml"])
    assert saved["images"] == 23 and saved["sampler"]["guidance"]["scale"] == 0.1


@pytest.mark.parametrize("kind", ["jpg", "webp"])
def test_labels_are_those_of_the_stored_image(tmp_path: Path, kind: str) -> None:
    run(small_config(tmp_path, format=kind), tmp_path / "out")
    found = members(tmp_path / "out", 2)
    for i in range(20, 23):
        image = decode_image(found[f"{i:09d}.{kind}"], kind)
        logits = np.frombuffer(found[f"{i:09d}.soft"], "<f2")
        assert np.allclose(logits, 10 * image.mean((0, 1)) / 255, rtol=2**-10)


def test_the_largest_logits_alone_can_be_kept(tmp_path: Path) -> None:
    config = small_config(tmp_path, sampler=PLAIN)
    run(config, tmp_path / "full")
    run(replace(config, soft_top_k=2), tmp_path / "top")
    info = json.loads((tmp_path / "top/_info.json").read_text())
    assert info["logits"]["top_k"] == 2 and "2 largest logits" in (tmp_path / "top/README.md").read_text()
    full, top = members(tmp_path / "full", 0), members(tmp_path / "top", 0)
    assert {name for name in full if full[name] != top[name]} == {
        name for name in full if name.endswith((".soft", ".json"))
    }
    for name in full:
        if name.endswith(".soft"):
            logits, record = np.frombuffer(full[name], "<f2"), np.frombuffer(top[name], top_k_dtype(2))[0]
            assert record["logit"].tolist() == sorted(logits.tolist(), reverse=True)[:2]


@pytest.mark.parametrize("top_k", [3, 4])
def test_all_logits_are_not_the_largest_of_them(tmp_path: Path, top_k: int) -> None:
    with pytest.raises(UserError, match=f"soft_top_k {top_k} of 3 classes: it must be below"):
        run(small_config(tmp_path, soft_top_k=top_k), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_batches_do_not_cross_shards(tmp_path: Path) -> None:
    seen: list[list[int]] = []
    config = small_config(tmp_path)
    run(config, tmp_path / "out", models(before=lambda seeds: seen.append(list(seeds))))
    assert [len(batch) for batch in seen] == [4, 4, 2, 4, 4, 2, 3]
    assert [seed for batch in seen for seed in batch] == [seed_of(0, i, 0) for i in range(23)]


def test_the_teacher_is_called_with_one_shape(tmp_path: Path) -> None:
    teacher = ColourTeacher()
    run(small_config(tmp_path), tmp_path / "out", models(teacher=teacher))
    assert set(teacher.shapes) == {(4, 3, SIZE, SIZE)}


# The pilot


def test_the_pilot_sets_the_gate_and_is_kept(tmp_path: Path) -> None:
    config = small_config(tmp_path)
    run(config, tmp_path / "out")
    pilot = json.loads((tmp_path / "out/pilot.json").read_text())
    info = json.loads((tmp_path / "out/_info.json").read_text())
    assert pilot["gate"] == info["gate"] and pilot["classes"] == [0, 1, 2, 0, 1, 2]
    assert len(pilot["energies"]) == 6
    for c in range(3):
        low, high = sorted(e for e, k in zip(pilot["energies"], pilot["classes"], strict=True) if k == c)
        assert info["gate"]["tau"][c] == pytest.approx(low + 0.25 * (high - low))


@pytest.mark.parametrize("sampler", [PLAIN, replace(PLAIN, guidance=GuidanceConfig(gate="none"))])
def test_no_pilot_where_nothing_needs_one(tmp_path: Path, sampler: SamplerConfig) -> None:
    run(small_config(tmp_path, sampler=sampler), tmp_path / "out")
    assert not (tmp_path / "out/pilot.json").exists()
    assert json.loads((tmp_path / "out/_info.json").read_text())["gate"] is None


def test_a_pilot_made_before_is_used(tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/pilot.json").write_bytes(whole["pilot.json"])
    monkeypatch.setattr(job, "pilot_energies", None)
    run(small_config(tmp_path), tmp_path / "out")
    assert contents(tmp_path / "out") == {**whole, "config.yaml": (tmp_path / "out/config.yaml").read_bytes()}


def test_thresholds_decide_images_and_are_in_the_hash(tmp_path: Path, whole: dict[str, bytes]) -> None:
    pilot = json.loads(whole["pilot.json"])
    pilot["gate"]["tau"][0] += 1.0
    (tmp_path / "out").mkdir()
    (tmp_path / "out/pilot.json").write_text(json.dumps(pilot))
    run(small_config(tmp_path), tmp_path / "out")
    assert (
        json.loads((tmp_path / "out/_info.json").read_text())["config_hash"]
        != json.loads(whole["_info.json"])["config_hash"]
    )


def test_a_class_that_is_not_shown_needs_no_pilot(tmp_path: Path) -> None:
    run(small_config(tmp_path, images=1000, counts=(5, 0, 4)), tmp_path / "out")
    gate = json.loads((tmp_path / "out/_info.json").read_text())["gate"]
    assert (gate["tau"][1], gate["delta"][1]) == (0.0, 1.0) and gate["tau"][0] != 0


@pytest.mark.parametrize("text", ["{", "[]", '{"key": 1}', '{"key": "a", "gate": {"tau": [1], "delta": [0]}}'])
def test_a_damaged_pilot_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/pilot.json").write_text(text)
    with pytest.raises(UserError, match=r"pilot\.json is damaged"):
        run(small_config(tmp_path), tmp_path / "out")
    assert list(contents(tmp_path / "out")) == ["pilot.json"]


# Going on


def same(found: dict[str, bytes], whole: dict[str, bytes]) -> bool:
    """Byte-identical, but for config.yaml, which names the vocabulary's folder."""
    return {**found, "config.yaml": b""} == {**whole, "config.yaml": b""}


def test_a_finished_set_is_left_alone(tmp_path: Path) -> None:
    config = small_config(tmp_path)
    run(config, tmp_path / "out")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    report = run(config, tmp_path / "out", models(before=lambda seeds: pytest.fail("sampled again")))
    assert (report.made, report.images, report.shards) == (0, 23, 3)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == times


@pytest.mark.parametrize("stop_at", range(1, 8))
def test_a_signal_stops_after_the_batch_and_the_same_command_continues(
    tmp_path: Path, whole: dict[str, bytes], stop_at: int
) -> None:
    batches = 0

    def before(seeds: Sequence[int]) -> None:
        nonlocal batches
        batches += 1
        if batches == stop_at:
            signal.raise_signal(signal.SIGTERM if stop_at % 2 else signal.SIGINT)

    config = small_config(tmp_path)
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    stopped = stop_at < 7  # the last batch ends the set: there is nothing left to stop
    if stopped:
        with pytest.raises(Interrupted, match=r"SIG(TERM|INT)"):
            run(config, tmp_path / "out", models(before))
        assert batches == stop_at
    else:
        run(config, tmp_path / "out", models(before))
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
    there = contents(tmp_path / "out")
    assert not any(name.startswith(".") for name in there)
    assert [f"shard-{n:06d}.tar" in there for n in range(3)] == [stop_at >= 3, stop_at >= 6, not stopped]
    report = run(config, tmp_path / "out")
    assert report.images == 23 and report.made == 23 - 10 * ((stop_at >= 3) + (stop_at >= 6)) - 3 * (not stopped)
    assert same(contents(tmp_path / "out"), whole)


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    def before(seeds: Sequence[int]) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(small_config(tmp_path), tmp_path / "out", models(before))
    assert not [name for name in contents(tmp_path / "out") if "shard" in name]


def test_it_works_outside_the_main_thread(tmp_path: Path, whole: dict[str, bytes]) -> None:
    thread = threading.Thread(target=run, args=(small_config(tmp_path), tmp_path / "out"))
    thread.start()
    thread.join()
    assert same(contents(tmp_path / "out"), whole)


def test_leftovers_of_dead_runs_and_foreign_files_are_left_or_replaced(tmp_path: Path, whole: dict[str, bytes]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    mine = {"notes.txt": b"mine", ".hidden": b"mine too"}
    for name, data in {**mine, ".shard-000000.tar.tmp": b"half", ".shard-000001.json.tmp": b"{"}.items():
        (out / name).write_bytes(data)
    run(small_config(tmp_path), out)
    assert same(contents(out), {**whole, **mine})


@pytest.mark.parametrize("kind", ["tar", "idx", "parquet", "json"])
@pytest.mark.parametrize("damage", ["cut", "gone", "empty"])
def test_a_damaged_shard_is_made_again(
    tmp_path: Path, whole: dict[str, bytes], kind: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = small_config(tmp_path)
    run(config, tmp_path / "out")
    path = tmp_path / f"out/shard-000001.{kind}"
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-3] if damage == "cut" else b"")
    with caplog.at_level(logging.WARNING):
        report = run(config, tmp_path / "out")
    assert same(contents(tmp_path / "out"), whole) and report.made == 10
    assert ("made again" in caplog.text) == (kind != "json" or damage != "gone")


def test_a_full_disk_ends_in_one_message_and_half_of_nothing(
    tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(tmp_path)
    calls, real = 0, publish.os.fsync

    def fsync(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 15:  # somewhere in the second shard
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(publish.os, "fsync", fsync)
    with pytest.raises(UserError, match=r"No space left on device.*the same command continues"):
        run(config, tmp_path / "out")
    monkeypatch.undo()
    assert not [name for name in contents(tmp_path / "out") if name.startswith(".")]
    run(config, tmp_path / "out")
    assert same(contents(tmp_path / "out"), whole)


# What is refused


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"seed": 1}, "seed is 0 there, 1 here"),
        ({"images": 24}, "images is 23 there, 24 here"),
        ({"sampler": PLAIN}, "sampler.guidance"),
        ({"prompts": PromptConfig(per_class=4)}, "prompts.per_class is 5 there, 4 here"),
        ({"format": "jpg"}, "format is png there, jpg here"),
    ],
)
def test_another_configuration_is_refused_and_nothing_is_touched(
    tmp_path: Path, change: dict[str, Any], difference: str
) -> None:
    config = small_config(tmp_path)
    run(config, tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(UserError, match=f"another configuration: .*{difference}"):
        run(replace(config, **change), tmp_path / "out")
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (models(pipeline="another"), "pipeline is pipeline there, another here"),
        (models(teacher=ColourTeacher(fingerprint="another")), "teacher is teacher there, another here"),
    ],
)
def test_other_weights_under_the_same_name_are_refused(tmp_path: Path, other: Any, difference: str) -> None:
    config = small_config(tmp_path)
    run(config, tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(UserError, match=difference):
        run(config, tmp_path / "out", other)
    assert contents(tmp_path / "out") == before


def test_another_environment_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config(tmp_path)
    run(config, tmp_path / "out")
    before = contents(tmp_path / "out")
    real = job.environment
    monkeypatch.setattr(job, "environment", lambda *a: {**real(*a), "torch": "9.9"})
    with pytest.raises(UserError, match=r"another environment: torch is .* there, 9\.9 here"):
        run(config, tmp_path / "out")
    assert contents(tmp_path / "out") == before


def test_a_pilot_of_another_configuration_is_refused(tmp_path: Path, whole: dict[str, bytes]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/pilot.json").write_bytes(whole["pilot.json"])
    with pytest.raises(UserError, match="another configuration or environment"):
        run(small_config(tmp_path, seed=1), tmp_path / "out")
    assert contents(tmp_path / "out") == {"pilot.json": whole["pilot.json"]}


@pytest.mark.parametrize("name", ["shard-000000.tar", "shard-000007.json", "config.yaml"])
def test_a_folder_of_something_else_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("mine")
    with pytest.raises(UserError, match="of something else"):
        run(small_config(tmp_path), tmp_path / "out")
    assert contents(tmp_path / "out") == {name: b"mine"}


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UserError, match="is a file"):
        run(small_config(tmp_path), tmp_path / "out")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"made_from": {}, "environment": {}, "gate": 0, "config_hash": "x"}']
)
def test_a_damaged_info_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/_info.json").write_text(text)
    with pytest.raises(UserError, match=r"_info\.json (is damaged|was changed)"):
        run(small_config(tmp_path), tmp_path / "out")
    assert contents(tmp_path / "out") == {"_info.json": text.encode()}


def test_a_teacher_of_other_classes_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"knows 4 classes, vocabulary .* names 3"):
        run(small_config(tmp_path), tmp_path / "out", models(teacher=ColourTeacher(num_classes=4)))
    assert not (tmp_path / "out").exists()


def test_a_class_that_does_not_fit_the_tokenizer_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="red thing"):
        run(small_config(tmp_path), tmp_path / "out", models(fits=lambda text: False))
    assert not (tmp_path / "out").exists()


def test_shortened_prompts_are_counted(tmp_path: Path) -> None:
    report = run(small_config(tmp_path), tmp_path / "out", models(fits=lambda text: len(text) < 25))
    info = json.loads((tmp_path / "out/_info.json").read_text())
    assert report.prompts_shortened == info["prompts"]["shortened"] > 0


# What goes wrong in the models


def skipping(rate_of_rows: int) -> Any:
    def spoil(batch: SampleBatch) -> SampleBatch:
        skipped = torch.zeros_like(batch.skipped)
        skipped[:rate_of_rows] = 1
        energy = batch.energy.clone()
        energy[0, :rate_of_rows] = math.nan
        return replace(batch, skipped=skipped, energy=energy)

    return spoil


def test_dropped_guidances_are_recorded(tmp_path: Path) -> None:
    guidance = GuidanceConfig(max_bad_rate=0.5)
    config = small_config(tmp_path, sampler=replace(PLAIN, guidance=guidance))
    report = run(config, tmp_path / "out", models(spoil=skipping(1)))
    assert (report.skipped, report.guidances) == (7, 46)  # one row of each of seven batches, at one of two steps
    row = json.loads(members(tmp_path / "out", 0)["000000000.json"])
    assert row["skipped"] == 1 and row["guidance"]["energy"][0] is None


def test_too_many_dropped_guidances_stop_the_run_after_recording(tmp_path: Path) -> None:
    config = small_config(tmp_path)
    for _ in range(2):  # again: the same complaint, not one shard more
        with pytest.raises(UserError, match=r"3 of 20 guidances were dropped .*15\.0%.*allows 1\.0%"):
            run(config, tmp_path / "out", models(spoil=skipping(1)))
        there = contents(tmp_path / "out")
        assert [f"shard-{n:06d}.json" in there for n in range(3)] == [True, False, False]
        assert json.loads(there["shard-000000.json"])["skipped"] == 3


def test_allowing_more_lets_the_stopped_set_go_on(tmp_path: Path) -> None:
    """As the message says: the rate decides whether to go on, not what is made."""
    config = small_config(tmp_path)
    with pytest.raises(UserError, match="allow more and the same command goes on"):
        run(config, tmp_path / "out", models(spoil=skipping(1)))
    made = (tmp_path / "out/shard-000000.tar").read_bytes()
    more = replace(config, sampler=replace(config.sampler, guidance=GuidanceConfig(scale=0.1, max_bad_rate=1.0)))
    report = run(more, tmp_path / "out", models(spoil=skipping(1)))
    assert report.images == 23 and (tmp_path / "out/shard-000000.tar").read_bytes() == made


def test_energies_that_overflow_stop_the_run(tmp_path: Path) -> None:
    guidance = GuidanceConfig(gate="none", class_weight=1e40)
    config = small_config(tmp_path, sampler=replace(PLAIN, guidance=guidance))
    with pytest.raises(UserError, match="energy is not finite although its logits are: guidance"):
        run(config, tmp_path / "out")


@pytest.mark.parametrize("place", ["classes.json", "classes.json/out", "dangling", "x" * 300])
def test_a_place_that_cannot_be_used_is_refused_before_any_work(tmp_path: Path, place: str) -> None:
    config = small_config(tmp_path)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    nothing_may_be_sampled: Any = None
    with pytest.raises(UserError, match="choose another output folder"):
        run(config, tmp_path / place, replace(models(), make_sampler=nothing_may_be_sampled))


def breaking(rows: set[int]) -> Any:
    seen = iter(range(10**6))

    def spoil(batch: SampleBatch) -> SampleBatch:
        latents = batch.latents.clone()
        for place in range(len(latents)):
            if next(seen) in rows:
                latents[place] = math.nan
        return replace(batch, latents=latents)

    return spoil


def test_an_image_of_nan_is_left_out_and_counted(tmp_path: Path) -> None:
    config = small_config(tmp_path, images=300, shard_size=150)
    report = run(config, tmp_path / "out", models(spoil=breaking({7})))
    assert (report.images, report.rows, report.rejected) == (299, 300, {"not finite": 1})
    found = members(tmp_path / "out", 0)
    assert "000000006.png" in found and "000000007.png" not in found and len(found) == 5 * 149
    table = pq.read_table(tmp_path / "out/shard-000000.parquet").to_pylist()
    assert [row["accepted"] for row in table] == [i != 7 for i in range(150)]
    info = json.loads((tmp_path / "out/_info.json").read_text())
    assert info["splits"]["train"]["shard_lengths"] == [149, 150]


def test_many_images_of_nan_stop_the_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="2 of 10 images hold numbers that are not finite"):
        run(small_config(tmp_path), tmp_path / "out", models(spoil=breaking({2, 5})))


def test_logits_that_cannot_be_stored_stop_the_run(tmp_path: Path) -> None:
    config = small_config(tmp_path, sampler=PLAIN)
    with pytest.raises(UserError, match="cannot label"):
        run(config, tmp_path / "out", models(teacher=ColourTeacher(scale=math.inf)))
    assert not [name for name in contents(tmp_path / "out") if "shard" in name]
