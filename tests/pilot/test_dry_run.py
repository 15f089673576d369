"""``prism-fast synthesize --dry-run``: figures, and nothing on the disk."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from prism_fast.cli import EXIT_ERROR, main
from prism_fast.pilot import dry_run as module
from prism_fast.pilot.cost import cost
from prism_fast.pilot.dry_run import BESIDE_BYTES, dry_run
from prism_fast.synthesis.filter_config import FilterConfig
from prism_fast.synthesis.part import Part
from prism_fast.synthesis.shards import SHARD_FILES, shard_name
from prism_fast.synthesis.tar import RECORD
from tests.study.worlds import make_world, one_thread
from tests.synthesis import doubles


def test_cost_of_several_workers() -> None:
    alone = cost(7200, 3600, 1.0, 2.0, 3.0)
    assert (alone["hours"], alone["cost"]) == (5.0, 15.0)
    four = cost(7200, 3600, 1.0, 2.0, 3.0, workers=4)  # the pilot is drawn by one, and all are paid
    assert (four["hours"], four["cost"]) == (2.0, 24.0)


def test_imagenet_is_planned_in_seconds_without_torch(tmp_path: Path) -> None:
    classes = tmp_path / "classes.json"
    classes.write_text(json.dumps([f"thing number {c}" for c in range(1000)]))
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from prism_fast.cli import main\n"
        "status = main(sys.argv[1:])\n"
        "most = Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]\n"
        "print('usage', time.process_time(), most, 'torch' in sys.modules)\n"
        "sys.exit(status)"
    )
    asked = ["synthesize", "--vocabulary", str(classes), "--images", "1281167", "--format", "jpg", "--dry-run"]
    asked += ["--images-per-s", "20", "--workers", "8", "--price-per-hour", "2.5", "--recipe", "plain"]
    done = subprocess.run(
        [sys.executable, "-c", code, *asked], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    for line in ("images: 1281167", "shards: 2563 (10252 files)", "20 images/s a worker, as given; 160 with 8 workers"):
        assert line in done.stdout
    hours = 1281167 / 160 / 3600
    assert f"{hours:.3g} hours" in done.stdout and f"{hours * 8 * 2.5:.2f} at 2.5" in done.stdout
    seconds, kib, torch = re.findall(r"usage ([\d.]+) (\d+) (\w+)", done.stdout)[0]
    assert float(seconds) < 20 and int(kib) < 400 * 1024 and torch == "False"
    assert [path.name for path in tmp_path.iterdir()] == ["classes.json"]


def test_measured_bytes_are_those_of_the_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = doubles.small_config(tmp_path, images=400, shard_size=200)
    prepare = module.prepare_job
    monkeypatch.setattr(module, "prepare_job", lambda config: prepare(config, doubles.models()))
    before = sorted(path.name for path in tmp_path.rglob("*"))
    found = dry_run(config, workers=2, price_per_hour=1.0)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before
    assert found["measured"] and found["guided_images_per_s"] > 0 and found["pilot_images"] == 6
    doubles.run(config, tmp_path / "out")
    sizes = {
        kind: sum((tmp_path / "out" / shard_name(shard, kind)).stat().st_size for shard in (0, 1))
        for kind in SHARD_FILES
    }
    assert 400 * found["row_bytes"] == pytest.approx(sizes["tar"], rel=0.02, abs=4 * RECORD)
    assert sizes["idx"] + sizes["parquet"] < 400 * BESIDE_BYTES
    half = dry_run(config, part=Part(number=1, of=2), images_per_s=5.0)
    assert (half["images"], half["shards"]) == (200, 1)


def test_a_filtered_set_of_few_logits_is_measured_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = module.prepare_job
    monkeypatch.setattr(module, "prepare_job", lambda config: prepare(config, doubles.models()))
    thousand = tmp_path / "thousand.json"
    thousand.write_text(json.dumps([f"thing {n}" for n in range(1000)]))
    all_logits = doubles.small_config(tmp_path, vocabulary=str(thousand))
    few = replace(all_logits, soft_top_k=10)
    assert (
        dry_run(all_logits, images_per_s=1.0)["row_bytes"] - dry_run(few, images_per_s=1.0)["row_bytes"] == 2048 - 512
    )
    config = doubles.filtered(tmp_path, filter=FilterConfig(energy_quantile=0.5, attempts=3), soft_top_k=1)
    found = dry_run(config)
    assert found["measured"] and found["pilot_images"] == 6
    assert "a draw that the filter rejects takes its time again" in module.dry_run_text(found)


def test_the_command_measures_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = make_world(tmp_path / "world")
    networks = ["--pipeline", str(world.pipeline), "--teacher", str(world.teacher), "--device", "cpu"]
    sizes = ["--images", "12", "--batch", "2", "--sampler.steps", "2", "--pilot-images", "1"]
    out = tmp_path / "out"
    with one_thread():
        assert main(["synthesize", *networks, *sizes, "--out", str(out), "--dry-run", "--price-per-hour", "1"]) == 0
    said = capsys.readouterr().out
    assert "measured here" in said and "cost:" in said and "12, and 10 of the pilot" in said
    assert not out.exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dry-run", "--images-per-s", "0"], "--images-per-s is 0.0: give a positive number"),
        (["--dry-run", "--images-per-s", "1e999"], "--images-per-s is inf"),
        (["--dry-run", "--images-per-s", "3", "--price-per-hour=-1"], "--price-per-hour is -1.0"),
        (["--dry-run", "--workers", "0"], "--workers is 0"),
        (["--out", "x", "--price-per-hour", "3"], "--price-per-hour is for --dry-run alone"),
        (["--out", "x", "--part", "4/4"], "the first of eight is 0/8"),
        (["--out", "x", "--part", "1/4", "--pilot-only"], "give one of the two"),
        ([], "synthesize needs --out"),
    ],
)
def test_bad_numbers_are_named(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["synthesize", *flags]) == EXIT_ERROR
    assert message in capsys.readouterr().err
