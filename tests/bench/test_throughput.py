"""The throughput benchmark on a tiny pipeline: what it writes, what its ratios are, when it stops."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import command, plot, throughput
from bench.contenders import LARGE, Schedule, contenders, rows_of
from bench.course import Course
from bench.phases import PHASES, count_flop, matmul_peak, phases
from bench.record import percentiles
from prism_fast.config import canonical
from prism_fast.pipeline.load import load_pipeline
from prism_fast.recipes import load_recipe
from prism_fast.recipes.fields import build, lay_over
from prism_fast.sampling.config import LEVELS, GuidanceConfig, SamplerConfig
from prism_fast.sampling.fast import FastSampler
from prism_fast.sampling.guidance import cfg_steps, gradient_steps, guided_steps
from prism_fast.study.fidelity import SETTINGS
from prism_fast.synthesis.config import SynthesisConfig
from prism_fast.teachers.load import load_teacher
from tests.tiny import save_tiny_pipeline, save_tiny_teacher, save_tiny_xl_pipeline

ROOT = Path(__file__).parents[2]
ROWS = ["naive-batch1", "naive", "same-schedule", "diffusers", "unguided", "exact", "fast", "fast-reuse"]
RATIOS = {
    "ratio_to_naive_batch1": "naive-batch1",
    "ratio_to_naive_same_batch": "naive",
    "ratio_to_same_schedule": "same-schedule",
}
GUIDED = [name for name in ROWS if name not in ("diffusers", "unguided")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("models")
    return str(save_tiny_pipeline(folder / "pipeline")), str(save_tiny_teacher(folder / "teacher"))


def _arguments(folders: tuple[str, str], *more: str) -> list[str]:
    given = ["--weights", folders[0], "--teacher", folders[1], "--decoder", "kl@16", "--repeats", "2"]
    return [*given, "--batch", "2", "--steps", "2", "--start", "0.5", "--stop", "1", *more]


@pytest.fixture(scope="module")
def written(folders: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, Path]:
    """Its object, its results' folder and its trace."""
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "RESULTS", folder)
        files = ["--json", str(folder / "run.json"), "--trace", str(folder / "trace.json")]
        throughput.main(_arguments(folders, *files))
    return json.loads((folder / "run.json").read_text()), folder, folder / "trace.json"


def test_its_object(written: tuple[Any, Path, Path]) -> None:
    found = written[0]
    assert [row["name"] for row in found["rows"]] == ROWS
    assert {"device", "torch", "commit", "peak_flop_per_s", "agreement", "published", "schedule"} <= set(
        found["environment"]
    )
    assert found["environment"]["agreement"]["share_of_steps_within_1e-4"] >= 0.95
    for row in found["rows"]:
        assert row["batch"] == (1 if row["name"] == "naive-batch1" else 2)
        assert row["seconds_p20"] <= row["seconds_p50"] <= row["seconds_p80"]
        assert row["peak_memory_bytes"] > 0 and row["tflop_per_s"] > 0 and row["peak_share"] > 0
        assert (row["guidance_overhead"] is None) == (row["name"] not in GUIDED)


def test_an_xls_object(folders: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = str(save_tiny_xl_pipeline(tmp_path / "xl"))
    monkeypatch.setattr(command, "RESULTS", tmp_path)
    arguments = ["--pipeline", "sdxl", "--sampler", "exact", "--sampler", "fast", "--json", str(tmp_path / "run.json")]
    throughput.main([*arguments, *_arguments((pipeline, folders[1]))])
    found = json.loads((tmp_path / "run.json").read_text())
    assert [row["name"] for row in found["rows"]] == ROWS[3:]
    assert found["environment"]["agreement"]["share_of_steps_within_1e-4"] >= 0.95
    assert found["environment"]["published"]["cfg_scale"] == 5
    reuse = next(row for row in found["rows"] if row["name"] == "fast-reuse")
    assert {phase["name"] for phase in reuse["phases"]} == set(PHASES)
    with torch.no_grad():  # text: both encoders
        parts = phases(FastSampler(load_pipeline(pipeline), SamplerConfig(compute_batch=1)), ["a coat"])
        one = phases(FastSampler(load_pipeline(folders[0]), SamplerConfig(compute_batch=1)), ["a coat"])
    assert count_flop(parts)[0] > 1.9 * count_flop(one)[0]


def test_ratios_are_those_of_the_measured_numbers(written: tuple[Any, Path, Path]) -> None:
    rows = {row["name"]: row for row in written[0]["rows"]}
    for name, row in rows.items():
        assert row["images_per_s"] == pytest.approx(row["batch"] / row["seconds_p50"])
        for ratio, other in RATIOS.items():
            assert row[ratio] == pytest.approx(row["images_per_s"] / rows[other]["images_per_s"]), name
        peak = written[0]["environment"]["peak_flop_per_s"]
        assert row["peak_share"] == pytest.approx(row["tflop_per_s"] * 1e12 / peak)


def test_phases_are_those_of_the_schedule(written: tuple[Any, Path, Path]) -> None:
    rows = {row["name"]: row for row in written[0]["rows"]}
    assert [name for name, row in rows.items() if row["phases"]] == ROWS[4:]
    for name in ROWS[4:]:
        parts = {phase["name"]: phase for phase in rows[name]["phases"]}
        guided = 0 if name == "unguided" else 1  # of two steps
        assert list(parts) == [part for part in PHASES if guided or part not in ("guidance decode", "teacher")]
        assert parts["unet"]["uses"] == 2 and parts["step"]["uses"] == 2
        assert all(parts[part]["uses"] == 1 for part in parts if part not in ("unet", "step"))
        assert rows[name]["phases_seconds"] == pytest.approx(sum(phase["seconds"] for phase in parts.values()))
        for phase in parts.values():
            assert phase["images_per_s"] == pytest.approx(2 / phase["seconds"])
        # operations of the phases are those of the row
        total = sum(phase["tflop"] for phase in parts.values())
        assert total == pytest.approx(rows[name]["tflop_per_s"] * rows[name]["seconds_p50"])


def test_results_are_appended(written: tuple[Any, Path, Path], folders: tuple[str, str], monkeypatch: Any) -> None:
    monkeypatch.setattr(command, "RESULTS", written[1])
    path = written[1] / "throughput-cpu.jsonl"
    before = path.read_text()
    throughput.main(_arguments(folders, "--sampler", "exact"))
    lines = path.read_text()
    assert lines.startswith(before)
    new = [json.loads(line) for line in lines[len(before) :].splitlines()]
    assert [row["name"] for row in new] == ["diffusers", "unguided", "exact"]
    assert all(row["ratio_to_naive_batch1"] is None and row["time"] for row in new)


def test_its_trace(written: tuple[Any, Path, Path]) -> None:
    assert json.loads(written[2].read_text())["traceEvents"]


def test_the_trace_of_the_reference_loop_alone(
    folders: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "RESULTS", tmp_path)
    throughput.main(_arguments(folders, "--sampler", "reference", "--trace", str(tmp_path / "trace.json")))
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]


def test_it_stops_where_exact_is_not_the_reference(
    folders: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    advance = FastSampler._advance

    def wrong(self: FastSampler, kind: Any) -> None:
        advance(self, kind)
        self._buffers.sample.mul_(1.2)

    monkeypatch.setattr(FastSampler, "_advance", wrong)
    monkeypatch.setattr(command, "RESULTS", tmp_path)
    with pytest.raises(SystemExit) as stopped:
        throughput.main(_arguments(folders, "--json", str(tmp_path / "run.json")))
    assert stopped.value.code == 1
    assert "not the reference" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--pipeline", "sd3"], "sd3"),
        (["--weights", "random"], "fashion comes with its weights"),
        (["--batch", "0"], "compute_batch"),
        (["--repeats", "1"], "--repeats 1"),
        (["--start", "1.0"], "guidance.start"),
        (["--decoder", "huge"], "guidance.decoder"),
        (["--scheduler", "heun"], "scheduler"),
        (["--teacher", "random:nothing"], "random:NAME"),
        (["--json", "/"], "is a folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_flags_are_refused_in_one_line(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        throughput.main(flags)
    said = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2 and len([line for line in said if line.startswith("throughput: ")]) == 1
    assert message in said[-1]


def test_it_does_not_overwrite_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.json").touch()
    with pytest.raises(SystemExit) as stopped:
        throughput.main(["--json", str(tmp_path / "run.json")])
    assert stopped.value.code == 2 and "exists already" in capsys.readouterr().err


def test_without_cuda_it_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(SystemExit) as stopped:
        throughput.main(["--device", "cuda"])
    assert stopped.value.code == 2 and "CUDA" in capsys.readouterr().err


def test_it_runs_as_a_script_and_as_a_module() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    for way in (["bench/throughput.py"], ["-m", "bench.throughput"]):
        line = [sys.executable, *way, "--repeats", "0"]
        done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 2 and done.stderr.startswith("throughput: --repeats 0"), done.stderr


def test_the_schedule_of_its_defaults() -> None:
    published = SamplerConfig(level="reference", steps=20, guidance=GuidanceConfig(gate="none"))
    them = contenders(published, Schedule(), LEVELS, compiled=True)
    assert list(them) == [*ROWS[:4], "diffusers-compiled", *ROWS[4:]]
    expected = {"same-schedule": (10, 10, 12), "exact": (10, 10, 12), "fast": (14, 3, 10), "fast-reuse": (10, 2, 12)}
    for name, (guided, fresh, cfg) in expected.items():
        config = them[name].config
        assert config.guidance is not None and len(guided_steps(config.guidance, 20)) == guided
        assert len(gradient_steps(config.guidance, 20)) == fresh and len(cfg_steps(config, 20)) == cfg
    recipe = build(
        SynthesisConfig,
        lay_over(SynthesisConfig, canonical(SynthesisConfig()), load_recipe("prism-fast"), "prism-fast"),
    ).sampler
    for raced in (them["fast-reuse"].config, SETTINGS["and reused features: fast-reuse"]):
        assert raced.guidance is not None and recipe.guidance is not None
        same = replace(raced, compute_batch=recipe.compute_batch, guidance=replace(raced.guidance, gate="pilot"))
        assert same == recipe
    studied, fast = SETTINGS["reused gradients at the last 14 steps, 0.7 of the scale: fast"], them["fast"].config
    assert studied.guidance is not None and fast.guidance is not None  # a scale costs no time
    same = replace(studied.guidance, scale=fast.guidance.scale, gate=fast.guidance.gate)
    assert replace(studied, compute_batch=fast.compute_batch, guidance=same) == fast
    naive = them["naive"].config
    assert naive.guidance is not None and len(guided_steps(naive.guidance, 20)) == len(cfg_steps(naive, 20)) == 20
    assert replace(them["fast"].unguided.config, cfg_stop=0.6) == them["exact"].unguided.config


@pytest.mark.parametrize(
    ("name", "steps", "cfg_scale", "scheduler"), [("sdxl", 20, 5.0, "dpmsolver++"), ("sdxl-turbo", 4, 1.0, "euler")]
)
def test_the_schedule_of_an_xl(name: str, steps: int, cfg_scale: float, scheduler: str) -> None:
    published, ours = throughput.configuration(throughput.parser().parse_args(["--pipeline", name]))
    assert (published.steps, published.cfg_scale, published.scheduler) == (steps, cfg_scale, scheduler)
    assert ours == LARGE and ours.decoder == "tiny@224"
    assert list(contenders(published, ours, LEVELS, compiled=False)) == ROWS


def test_a_tiny_decoder_is_found_where_it_is_said() -> None:
    options = throughput.parser().parse_args(["--tiny", "here", "--decoder", "tiny"])
    guidance = contenders(*throughput.configuration(options), LEVELS, compiled=False)["fast"].config.guidance
    assert guidance is not None and (guidance.decoder, guidance.tiny) == ("tiny", "here")


def test_a_decoder_that_is_not_there_is_said_before_anything_is_timed(
    folders: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "RESULTS", tmp_path)
    with pytest.raises(SystemExit) as stopped:
        throughput.main(_arguments(folders, "--decoder", "tiny"))
    said = capsys.readouterr()
    assert stopped.value.code == 2 and "no tiny decoder" in said.err and "reference" not in said.out
    assert not list(tmp_path.iterdir())


def test_rows_differ_from_turn_to_turn() -> None:
    turns = [rows_of(turn, 16, 10) for turn in range(3)]
    assert len({prompt for rows in turns for prompt in rows.prompts}) == 48
    assert turns[1].seeds == list(range(16, 32)) and turns[1].classes[:5] == [6, 7, 8, 9, 0]


def test_operations_are_counted(folders: tuple[str, str]) -> None:
    """The UNet twice under classifier-free guidance; the last decode as the VAE alone has it."""
    pipe, teacher = load_pipeline(folders[0]), load_teacher(folders[1])
    config = SamplerConfig(steps=2, cfg_stop=0.5, compute_batch=1, guidance=GuidanceConfig(gate="none"))
    with torch.no_grad():
        parts = phases(FastSampler(pipe, config, teacher), ["a dark boot"])
        counted = list(zip(parts, count_flop(parts), strict=True))
    both, one = (flop for part, flop in counted if part.name == "unet")
    assert both == 2 * one > 0
    forward = next(flop for part, flop in counted if part.name == "final decode")
    assert next(flop for part, flop in counted if part.name == "guidance decode") == pytest.approx(2 * forward, rel=0.1)
    assert all(flop == 0 for part, flop in counted if part.name == "transfer")


def test_the_batch_is_halved_where_memory_ends(
    folders: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe, teacher = load_pipeline(folders[0]), load_teacher(folders[1])
    config = SamplerConfig(steps=1, compute_batch=4, guidance=GuidanceConfig(gate="none"))
    them = contenders(config, Schedule(start=0, stop=1), ["exact"], compiled=False)
    sample = FastSampler.sample

    def small(self: FastSampler, *rows: Any) -> Any:
        if self.config.compute_batch > 2:
            raise torch.OutOfMemoryError("no room")
        return sample(self, *rows)

    monkeypatch.setattr(FastSampler, "sample", small)
    ((_, measured),) = Course(pipe, teacher, 1e12).race([them["exact"]], 2, 4)
    assert (measured.images, measured.batch, len(measured.seconds)) == (4, 2, 2)
    assert "2 at a time" in capsys.readouterr().out


def test_a_peak_is_measured() -> None:
    assert 1e9 < matmul_peak(torch.device("cpu"), torch.float32) < 1e14
    assert percentiles([1.0, 3.0]).p50 == 2


def test_its_plot_and_table_are_of_the_last_run(written: tuple[Any, Path, Path], tmp_path: Path) -> None:
    path = tmp_path / "throughput-cpu.jsonl"
    lines = [json.loads(line) for line in (written[1] / path.name).read_text().splitlines()][: len(ROWS)]
    later = [{**line, "time": "9999", "images_per_s": 1234.0} for line in lines[:3]]
    path.write_text("".join(json.dumps(line) + "\n" for line in [*lines, *later]))
    runs = plot.newest_runs(path)
    assert [row["name"] for row in runs["fashion"]] == ROWS[:3]
    assert plot.throughput_table(runs).count("1.23e+03") == 3
    plot.draw_throughput(runs, path.with_suffix(".svg"))
    drawn = path.with_suffix(".svg").read_bytes()
    plot.draw_throughput(runs, path.with_suffix(".svg"))
    assert drawn.startswith(b"<?xml") and drawn == path.with_suffix(".svg").read_bytes()
