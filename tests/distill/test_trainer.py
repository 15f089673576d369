"""Training learns, repeats, resumes bit for bit, and stops with one clear message where it cannot go on."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from prism_fast.data.augment_config import AugmentConfig
from prism_fast.distill.batches import RowBatches
from prism_fast.distill.checkpoints import load_state
from prism_fast.distill.config import DistillConfig, LossConfig
from prism_fast.distill.images import MemoryImages
from prism_fast.distill.losses import distillation_loss
from prism_fast.distill.schedule import Schedule
from prism_fast.distill.targets import ViewLoader
from prism_fast.distill.trainer import DistillReport, distill_images, train, train_batches
from prism_fast.distill.world import ALONE
from prism_fast.errors import UserError
from prism_fast.synthesis.interruption import Interrupted
from prism_fast.teachers.load import load_teacher
from tests.distill.doubles import TINY, ColourTeacher, coloured_images, tiny_config
from tests.distill.lives import after


def _train(config: DistillConfig, seed: int, **options: Any) -> DistillReport:
    return distill_images(config, *coloured_images(seed), ColourTeacher(), **options)


def _weights(report: DistillReport) -> dict[str, torch.Tensor]:
    return load_file(report.student / "model.safetensors")


class _Stop(Exception):
    pass


def _stop() -> None:
    raise _Stop


def _stop_after(images: int, stop: Callable[[], None] = _stop) -> Any:
    """A progress that raises once so many images are done: a killed process, as far as the folder is concerned."""
    return after(images, stop)


@pytest.mark.parametrize("changes", [{}, {"optimizer": "adamw", "lr": 0.02, "clip_norm": 1.0}, {"targets": "labels"}])
def test_student_learns_the_teachers_task(changes: dict[str, Any], seed: int, tmp_path: Path) -> None:
    report = _train(tiny_config(tmp_path, **{"steps": 80, "ema": 0.8, **changes}), seed)
    assert report.history["loss"][-1] < 0.5 * report.history["loss"][0]
    images, labels = coloured_images(seed + 1)
    student = load_teacher(str(report.student))
    assert (student.outputs(images.float() / 255).logits.argmax(1) == labels).float().mean() > 0.9


def test_folder_holds_student_report_and_curve(seed: int, tmp_path: Path) -> None:
    report = distill_images(tiny_config(tmp_path), *coloured_images(seed), ColourTeacher(), class_names="abcd")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"run.json", "config.yaml", "student", "metrics.json", "history.json", "tensorboard"}
    assert json.loads((tmp_path / "student" / "config.json").read_text())["label_names"] == list("abcd")
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["steps"] == 12 and metrics["images"] == 64 and metrics["num_classes"] == 4
    assert metrics["loss"] == report.history["loss"][-1] and metrics["environment"]["device"] == "cpu"
    assert report.history["step"] == [3, 6, 9, 12]
    assert {len(column) for column in report.history.values()} == {4}
    assert _curve(tmp_path) == (report.history["step"], pytest.approx(report.history["loss"]))


def _curve(out: Path) -> tuple[list[int], list[float]]:
    """Steps and losses, as TensorBoard reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    points = events.Scalars("train/loss")
    return [point.step for point in points], [point.value for point in points]


@pytest.mark.parametrize("extra", [{}, {"views": 2, "mixup": 0.5}])
def test_same_configuration_same_bits(extra: dict[str, Any], seed: int, tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "a", augment=AugmentConfig(pad=2, **extra), seed=seed)
    one = _weights(_train(config, seed))
    torch.rand(7)
    two = _weights(_train(dataclasses.replace(config, out=str(tmp_path / "b")), seed))
    other = _weights(_train(dataclasses.replace(config, out=str(tmp_path / "c"), seed=seed ^ 1), seed))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    "changes",
    [
        {"model_args": {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 16], "stem_width": 4, "drop_rate": 0.3}},
        {"optimizer": "adamw", "augment": AugmentConfig(pad=2, views=2), "ema": 0.0},
    ],
)
def test_interrupted_run_continues_bit_for_bit(changes: dict[str, Any], seed: int, tmp_path: Path) -> None:
    whole = _train(tiny_config(tmp_path / "whole", checkpoint_every=5, **changes), seed)
    config = tiny_config(tmp_path / "parts", checkpoint_every=5, **changes)
    for images in (8 * 16, 6 * 16):  # stops in step 8 (saved: 5) and, from there, in step 11 (saved: 10)
        with pytest.raises(_Stop):
            _train(config, seed, progress=_stop_after(images))
        assert not (tmp_path / "parts" / "metrics.json").exists()
    parts = _train(config, seed)
    one, two = _weights(whole), _weights(parts)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert whole.history["step"] == parts.history["step"] and whole.history["loss"] == parts.history["loss"]
    assert _curve(tmp_path / "parts") == _curve(tmp_path / "whole")
    assert not (tmp_path / "parts" / "state.safetensors").exists()


def test_finished_run_is_returned_and_another_one_refused(seed: int, tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    first = _train(config, seed)
    before = (tmp_path / "student" / "model.safetensors").stat().st_mtime_ns
    assert _train(config, seed, progress=_stop_after(1)) == first
    with pytest.raises(UserError, match="holds another run"):
        _train(dataclasses.replace(config, lr=0.01), seed)
    with pytest.raises(UserError, match="holds another run"):
        _train(config, seed + 1)
    with pytest.raises(UserError, match="holds another run"):
        distill_images(config, *coloured_images(seed), ColourTeacher(fingerprint="another"))
    assert (tmp_path / "student" / "model.safetensors").stat().st_mtime_ns == before


def test_a_finished_run_without_its_student_is_told(seed: int, tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    shutil.rmtree(_train(config, seed).student)
    with pytest.raises(UserError, match="student folder is gone: give another output folder"):
        _train(config, seed)


def test_state_of_another_run_is_refused_and_kept(seed: int, tmp_path: Path) -> None:
    config = tiny_config(tmp_path, checkpoint_every=2)
    with pytest.raises(_Stop):
        _train(config, seed, progress=_stop_after(5 * 16))
    state = (tmp_path / "state.safetensors").read_bytes()
    saved = (tmp_path / "config.yaml").read_bytes()
    with pytest.raises(UserError, match="holds another run"):
        _train(dataclasses.replace(config, temperature=2.0), seed)
    assert (tmp_path / "state.safetensors").read_bytes() == state
    assert (tmp_path / "config.yaml").read_bytes() == saved


@pytest.mark.parametrize("run", ["{}", "not JSON", None])
def test_folder_of_something_else_is_left_alone(run: str | None, seed: int, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("another's")
    if run is not None:
        (tmp_path / "run.json").write_text(run)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UserError, match="another output folder"):
        _train(tiny_config(tmp_path), seed)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_weights_that_are_not_finite_are_not_saved(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def infinite(schedule: Schedule, step: int) -> float:
        schedule._optimizer.param_groups[0]["lr"] = math.inf
        return math.inf

    monkeypatch.setattr(Schedule, "set", infinite)
    with pytest.raises(UserError, match="lower lr"):
        _train(tiny_config(tmp_path, steps=1), seed)
    assert not (tmp_path / "student").exists()


def test_loss_that_is_not_finite_stops_at_its_step(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = itertools.count(1)

    def loss(*arguments: Any) -> torch.Tensor:
        return distillation_loss(*arguments) * (math.nan if next(calls) == 8 else 1)

    monkeypatch.setattr("prism_fast.distill.losses.distillation_loss", loss)
    with pytest.raises(UserError, match=r"loss became nan at step 8 of 12 .*lower lr.*clip_norm.*amp"):
        _train(tiny_config(tmp_path, checkpoint_every=5, log_every=4), seed)
    assert not (tmp_path / "student").exists()


class _Damaged(ColourTeacher):
    """Says something that is no number from its n-th call on."""

    def __init__(self, first: int, value: float = math.nan) -> None:
        super().__init__()
        self.first, self.value = first, value

    def outputs(self, images: torch.Tensor) -> Any:
        outputs = super().outputs(images)
        if len(self.calls) >= self.first:
            outputs.logits[0, 0] = self.value
        return outputs


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("views", [None, 2])
def test_a_teacher_that_is_not_finite_claims_no_folder(
    views: int | None, value: float, seed: int, tmp_path: Path
) -> None:
    config = tiny_config(tmp_path / "out", augment=AugmentConfig(pad=1, views=views))
    with pytest.raises(UserError, match=r"logits of teacher fashion are not finite.*another teacher"):
        distill_images(config, *coloured_images(seed), _Damaged(1, value))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("views", "where"), [(None, r"^step 7 of 12: "), (2, "^the logits")])
def test_a_teacher_that_is_not_finite_of_a_later_image_is_told(
    views: int | None, where: str, seed: int, tmp_path: Path
) -> None:
    config = tiny_config(tmp_path, log_every=4, augment=AugmentConfig(pad=1, views=views))
    with pytest.raises(UserError, match=where + ".*teacher fashion"):  # the first call is before training
        distill_images(config, *coloured_images(seed), _Damaged(8 if views is None else 3))
    assert not (tmp_path / "student").exists()


def test_a_crop_that_can_miss_the_image_claims_no_folder(seed: int, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"augment.pad is 16; it must be below 16"):
        _train(tiny_config(tmp_path / "out", augment=AugmentConfig(pad=16)), seed)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_keeps_every_step(number: int, seed: int, tmp_path: Path) -> None:
    """Between checkpoints and between points of the curve; the rest is as if it had not been stopped."""
    dropout = {**TINY, "drop_rate": 0.3}
    whole = _train(tiny_config(tmp_path / "whole", model_args=dropout), seed)
    config = tiny_config(tmp_path / "parts", model_args=dropout)
    handler = signal.getsignal(number)
    for images, steps in ((4 * 16, 4), (4 * 16, 8)):
        with pytest.raises(Interrupted, match="stopped by SIG"):
            _train(config, seed, progress=_stop_after(images, lambda: os.kill(os.getpid(), number)))
        assert load_state(tmp_path / "parts" / "state.safetensors")[1]["step"] == steps
    assert signal.getsignal(number) is handler
    parts = _train(config, seed)
    one, two = _weights(whole), _weights(parts)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert {k: v for k, v in whole.history.items() if k != "seconds"} == {
        k: v for k, v in parts.history.items() if k != "seconds"
    }
    assert _curve(tmp_path / "parts")[0] == parts.history["step"]


@contextmanager
def _no_file_above(size_bytes: int) -> Iterator[None]:
    """As a full disk: every write beyond fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size_bytes", [0, 20, 4000])
def test_a_full_disk_is_one_line_and_the_same_command_continues(size_bytes: int, seed: int, tmp_path: Path) -> None:
    whole = _train(tiny_config(tmp_path / "whole", steps=6, checkpoint_every=4), seed)
    config = tiny_config(tmp_path / "out", steps=6, checkpoint_every=4)
    with _no_file_above(size_bytes), pytest.raises(UserError, match=r"cannot write .*: make room, then run the same"):
        _train(config, seed)
    assert not list((tmp_path / "out").rglob("*.tmp"))
    one, two = _weights(whole), _weights(_train(config, seed))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *[("metrics.json", damage) for damage in ("text", "[]", '{"loss": 1}', "a folder")],
        *[("history.json", damage) for damage in ("text", "[]", "a folder", "gone")],
    ],
)
def test_damaged_figures_of_a_finished_run_are_told(name: str, damage: str, tmp_path: Path, finished: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    (out / name).unlink()
    if damage == "a folder":
        (out / name).mkdir()
    elif damage != "gone":
        (out / name).write_text(damage)
    told = "missing" if damage == "gone" else "damaged .*"
    with pytest.raises(UserError, match=f"{name} is {told}: give another output folder, or move metrics.json away"):
        DistillReport.load(out)


@pytest.fixture(scope="module")
def finished(seed: int, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _train(tiny_config(tmp_path_factory.mktemp("finished"), steps=1), seed).out


def test_class_counts_that_differ_are_refused_before_training(seed: int, tmp_path: Path) -> None:
    images, labels = coloured_images(seed)
    source = MemoryImages(images, labels, num_classes=4)
    with pytest.raises(UserError, match="teacher knows 3 classes"):
        train(tiny_config(tmp_path / "a"), source, ColourTeacher(3))
    with pytest.raises(UserError, match="asked for 10 classes, but the set has 4"):
        train(tiny_config(tmp_path / "b", model_args={"num_classes": 10}), source, ColourTeacher())
    with pytest.raises(UserError, match="set of 3 classes"):
        distill_images(tiny_config(tmp_path / "c"), images, labels, ColourTeacher(3))
    assert list(tmp_path.iterdir()) == []


def test_average_is_what_is_saved(seed: int, tmp_path: Path) -> None:
    plain = _weights(_train(tiny_config(tmp_path / "a", ema=0.0), seed))
    averaged = _weights(_train(tiny_config(tmp_path / "b", ema=0.9), seed))
    assert any(not torch.equal(plain[name], averaged[name]) for name in plain)


def test_epochs_count_whole_batches_and_small_sets_make_small_batches(seed: int, tmp_path: Path) -> None:
    report = _train(tiny_config(tmp_path / "a", steps=None, epochs=2, batch=25), seed)
    assert report.steps == 4 and report.history["step"][-1] == 4
    assert _train(tiny_config(tmp_path / "b", steps=None, epochs=2, batch=999), seed).steps == 2


def test_global_random_state_is_left_alone(seed: int, tmp_path: Path) -> None:
    torch.manual_seed(seed)
    before = torch.get_rng_state()
    _train(tiny_config(tmp_path, steps=2), seed)
    assert torch.equal(before, torch.get_rng_state())


def test_generators_of_other_devices_are_left_alone(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch would otherwise begin to use every GPU of the machine, in every rank."""
    asked: list[Any] = []
    fork = torch.random.fork_rng
    monkeypatch.setattr(torch.random, "fork_rng", lambda *given: asked.append(given) or fork(*given))
    _train(tiny_config(tmp_path, steps=2), seed)
    assert asked and all(given == ([],) for given in asked)


def test_unusable_options_are_named(seed: int, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown optimizer"):
        _train(tiny_config(tmp_path, optimizer="sgdd"), seed)
    with pytest.raises(UserError, match="float16 needs a CUDA device"):
        _train(tiny_config(tmp_path, amp="float16"), seed)


def test_reduced_precision_learns_too(seed: int, tmp_path: Path) -> None:
    report = _train(tiny_config(tmp_path, amp="bfloat16", steps=30), seed)
    assert report.history["loss"][-1] < 0.6 * report.history["loss"][0]
    assert report.environment["dtype"] == "bfloat16"
    assert {t.dtype for t in _weights(report).values()} == {torch.float32, torch.int64}


def test_parts_of_a_step_sum_up_to_it(seed: int, tmp_path: Path) -> None:
    """A network without batch statistics takes the same steps in one part and in four."""
    vit: dict[str, Any] = {"student": "test_vit", "model_args": {"embed_dim": 16, "depth": 1, "num_heads": 2}}
    loss = LossConfig(hard=0.2, label_smoothing=0.1, energy_temperature=5.0)
    whole, parts = (
        _train(tiny_config(tmp_path / str(count), accumulate=count, clip_norm=0.5, loss=loss, **vit), seed)
        for count in (1, 4)
    )
    assert parts.history["loss"] == pytest.approx(whole.history["loss"], rel=1e-4)
    one, other = _weights(whole), _weights(parts)
    assert all(torch.allclose(one[name], other[name], rtol=1e-2, atol=1e-4) for name in one)


def test_loss_scaling_changes_nothing(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scales are powers of two: not a bit, also where gradients are summed and clipped and the run was killed."""
    settings = {"accumulate": 2, "clip_norm": 0.1, "checkpoint_every": 5}
    plain = _train(tiny_config(tmp_path / "plain", **settings), seed)
    scaler = torch.amp.GradScaler
    monkeypatch.setattr(
        torch.amp, "GradScaler", lambda device, enabled: scaler(device, init_scale=2.0**8, growth_interval=2)
    )
    config = tiny_config(tmp_path / "scaled", **settings)
    with pytest.raises(_Stop):
        _train(config, seed, progress=_stop_after(8 * 16))
    assert load_state(tmp_path / "scaled" / "state.safetensors")[0]["scaler"]["scale"] == 2.0**10
    scaled = _train(config, seed)
    assert scaled.history["loss"] == plain.history["loss"]
    one, other = _weights(plain), _weights(scaled)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_batches_of_other_targets_are_refused(seed: int, tmp_path: Path) -> None:
    asked = tiny_config(tmp_path / "out")
    stored = dataclasses.replace(asked, targets="labels")
    views = ViewLoader(stored, MemoryImages(*coloured_images(seed), num_classes=4), None, torch.device("cpu"))
    with pytest.raises(UserError, match="the loader gives targets 'labels', the run asks for 'online'"):
        train_batches(asked, RowBatches(stored, views, ALONE), ColourTeacher())
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("student", ["test_resnet", "test_vit"])
def test_a_compiled_student_learns_the_same(student: str, seed: int, tmp_path: Path) -> None:
    shape: dict[str, Any] = {"student": student, "model_args": TINY if student == "test_resnet" else {"depth": 1}}
    loss = LossConfig(features="contrast", features_weight=0.1)
    compiled, plain = (
        _train(tiny_config(tmp_path / kind, compile=kind, loss=loss, **shape), seed) for kind in ("on", "off")
    )
    assert compiled.history["loss"] == pytest.approx(plain.history["loss"], rel=1e-2)
    assert set(_weights(compiled)) == set(_weights(plain))
