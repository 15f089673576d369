"""Training learns, repeats, resumes bit for bit, and stops with one clear message where it cannot go on."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from prism_fast.distill.config import AugmentConfig, DistillConfig
from prism_fast.distill.images import MemoryImages
from prism_fast.distill.loop import learning_rate
from prism_fast.distill.trainer import DistillReport, distill_images, train
from prism_fast.errors import UserError
from prism_fast.teachers.load import load_teacher
from tests.distill.doubles import ColourTeacher, coloured_images, tiny_config


def _train(config: DistillConfig, seed: int, **options: Any) -> DistillReport:
    return distill_images(config, *coloured_images(seed), ColourTeacher(), **options)


def _weights(report: DistillReport) -> dict[str, torch.Tensor]:
    return load_file(report.student / "model.safetensors")


class _Stop(Exception):
    pass


def _stop_after(images: int) -> Any:
    """A progress that raises once so many images are done: a killed process, as far as the folder is concerned."""

    class Bar:
        def __init__(self) -> None:
            self.done = 0

        def update(self, n: int = 1) -> None:
            self.done += n
            if self.done >= images:
                raise _Stop

        def note(self, text: str) -> None:
            pass

    @contextmanager
    def progress(total: int, unit: str = "", label: str = "", done: int = 0) -> Iterator[Bar]:
        yield Bar()

    return progress


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
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [e.step for e in events.Scalars("train/loss")] == report.history["step"]
    assert [e.value for e in events.Scalars("train/loss")] == pytest.approx(report.history["loss"])


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
    monkeypatch.setattr("prism_fast.distill.loop.learning_rate", lambda step, steps, config: math.inf)
    with pytest.raises(UserError, match="lower lr"):
        _train(tiny_config(tmp_path, steps=1), seed)
    assert not (tmp_path / "student").exists()


def test_loss_that_is_not_finite_stops_at_its_step(seed: int, tmp_path: Path) -> None:
    class Broken(ColourTeacher):
        def outputs(self, images: torch.Tensor) -> Any:
            outputs = super().outputs(images)
            if len(self.calls) == 8:
                outputs.logits[0, 0] = math.nan
            return outputs

    config = tiny_config(tmp_path, checkpoint_every=5, log_every=4)
    with pytest.raises(UserError, match=r"loss became nan at step 8 of 12 .*lower lr.*clip_norm.*amp"):
        distill_images(config, *coloured_images(seed), Broken())
    assert not (tmp_path / "student").exists()


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


def test_learning_rate_warms_up_and_falls_to_zero() -> None:
    config = tiny_config(Path("x"), lr=1.0, warmup=0.1)
    rates = [learning_rate(step, 100, config) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 11 for i in range(10)]) and rates[10] == 1
    assert all(a > b for a, b in itertools.pairwise(rates[10:])) and 0 < rates[-1] < 1e-3
    assert rates[55] == pytest.approx(0.5)
    assert learning_rate(0, 1, tiny_config(Path("x"), lr=1.0, warmup=0.9)) > 0
