"""``prism-fast teacher`` as a user types it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import onnx
import pytest
import torch

from prism_fast.cli import main
from prism_fast.teachers.decompositions import RULES

NAME = "test_resnet"  # timm's smallest


def test_check_says_how_far_every_backend_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["teacher", "check", NAME, "--images", "4", "--size", "48", "--backends", "eager,onnx"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["back-end", "eager", "onnx"]


@pytest.mark.usefixtures("shared_exports")
def test_check_as_json_for_a_built_in_teacher(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["teacher", "check", "fashion", "--images", "4", "--backends", "onnx", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["teacher"] == "fashion" and [entry["name"] for entry in found["backends"]] == ["onnx"]
    assert found["backends"][0]["passed"] and found["backends"][0]["median"] < 1e-5


def test_check_fails_where_a_gradient_is_wrong(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = RULES["aten::relu"]
    monkeypatch.setitem(RULES, "aten::relu", lambda x: (rule(x)[0], lambda g: (0.9 * g,)))
    command = ["teacher", "check", NAME, "--images", "4", "--size", "48", "--backends", "eager,onnx"]
    assert main(command) == 2
    assert "another gradient than autograd" in capsys.readouterr().err
    # and where nothing warns of it, as if the runtime were wrong
    monkeypatch.setattr("prism_fast.teachers.choice.why_unprovable", lambda *_: None)
    monkeypatch.setattr("prism_fast.teachers.export.prove", lambda *_: None)
    assert main(command) == 2
    said = capsys.readouterr()
    assert "OUT OF TOLERANCE" in said.out and "out of tolerance: onnx" in said.err


@pytest.mark.slow
def test_a_resnet50_is_exported_and_checked_within_a_minute(tmp_path: Path) -> None:
    path = tmp_path / "resnet50.onnx"
    command = ["teacher", "export", "resnet50", "--weights", "random", "--out", str(path)]
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-m", "prism_fast", *command], check=True)
    seconds = time.perf_counter() - begin
    print(f"{seconds:.0f} s")
    assert path.stat().st_size > 100e6 and seconds < 60


def test_export_writes_a_checked_model_and_replaces_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "teacher.onnx"
    command = ["teacher", "export", NAME, "--weights", "random", "--size", "40", "--out", str(path)]
    assert main(command) == 0
    assert "gradient within" in capsys.readouterr().out
    before = path.read_bytes()
    metadata = json.loads(onnx.load_from_string(before).metadata_props[0].value)
    assert metadata["size"] == [40, 40] and metadata["num_classes"] == 1000
    assert main(command) == 2
    assert "exists already" in capsys.readouterr().err and path.read_bytes() == before


def test_build_for_another_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.engine"
    command = ["teacher", "build", "fashion", "--batch", "4", "--out", str(path), "--capability"]
    assert main([*command, "12.0"]) == 0
    assert "compute capability 12.0, batch 4, by tensorrt-rtx" in capsys.readouterr().out
    assert path.stat().st_size > 100_000
    assert main([*command[:-2], str(tmp_path / "b.engine"), "--capability", "9.0"]) == 2
    said = capsys.readouterr().err
    assert "does not build for compute capability 9.0" in said and "take the compiled back-end" in said
    assert not (tmp_path / "b.engine").exists()


def test_build_for_this_gpu_where_there_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert main(["teacher", "build", "fashion"]) == 2
    assert "cuda" in capsys.readouterr().err.lower()


@pytest.mark.usefixtures("shared_exports")
def test_bench_times_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["teacher", "bench", "fashion", "--batch", "2", "--backends", "eager,onnx", "--pipeline", "fashion"]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["backends"]
    assert [entry["name"] for entry in found] == ["eager", "onnx"] and found[0]["ratio_to_eager"] == 1.0
    assert all(entry["images_per_s"] > 0 and entry["share_of_step"] > 0 for entry in found)
    assert main(command) == 0
    assert "share of step" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["chek"], "did you mean check?"),
        (["check"], "needs the teacher's name"),
        (["check", "fashion", "--backends", "onxx"], "unknown teacher back-end 'onxx'"),
        (["check", "fashion", "--images", "0"], "--images is 0"),
        (["check", "fashion", "--size", "0"], "--size is 0"),
        (["check", "fashion", "--dtype", "float8"], "unknown dtype 'float8'"),
        (["check", "fashion", "--weights", "random"], "timm has no model 'fashion'"),
        (["export", "no-such-teacher"], "unknown teacher 'no-such-teacher'"),
        (["build", "fashion", "--capability", "twelve"], "give a compute capability, as 12.0"),
        (["build", "fashion", "--out", "x"], "--out goes with --capability"),
    ],
    ids=" ".join,
)
def test_bad_input_is_one_line_with_the_cure(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["teacher", *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_help_needs_no_torch() -> None:
    code = (
        "import sys\nfrom prism_fast.cli import main\n"
        "try:\n    main(['teacher', '--help'])\n"
        "except SystemExit as stop:\n"
        "    sys.exit('torch was imported' if 'torch' in sys.modules else stop.code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "check" in done.stdout and "bench" in done.stdout
