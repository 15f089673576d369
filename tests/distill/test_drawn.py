"""A student of images that are drawn while it learns: those that the shards would hold, and the same student."""

from __future__ import annotations

import json
import os
import random
import signal
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from prism_fast.cli import main
from prism_fast.config import save_yaml
from prism_fast.data.augment_config import AugmentConfig
from prism_fast.data.shards import ShardSet
from prism_fast.distill.batches import Freeze
from prism_fast.distill.config import DistillConfig
from prism_fast.distill.drawn import DrawnSet
from prism_fast.distill.follow import FollowedSet
from prism_fast.distill.growing import GrowingBatches, Part
from prism_fast.distill.replay_config import ReplayConfig
from prism_fast.distill.report import DistillReport
from prism_fast.distill.trainer import distill, train_batches
from prism_fast.distill.world import ALONE
from prism_fast.errors import UserError
from prism_fast.keyed import seed_of
from prism_fast.progress import silent
from prism_fast.sampling.batch import SampleBatch
from prism_fast.sampling.config import GuidanceConfig, SamplerConfig
from prism_fast.sampling.energy import load_student
from prism_fast.sampling.guidance import GateThresholds
from prism_fast.synthesis.config import SynthesisConfig
from prism_fast.synthesis.filter_config import FilterConfig
from prism_fast.synthesis.interruption import Interrupted, StopRequest
from prism_fast.synthesis.job import prepare, synthesize
from prism_fast.synthesis.models import Models
from prism_fast.teachers.load import load_teacher
from tests import tiny
from tests.distill.doubles import RICH, TINY, ColourTeacher, same, tiny_config
from tests.distill.lives import after, ended, fork, free_port, kill_me, rank_variables
from tests.study.worlds import one_thread
from tests.synthesis import doubles
from tests.synthesis.processes import tiny_config as tiny_config_of_synthesis

CPU = torch.device("cpu")
WINDOW = ReplayConfig(window=12)


def _config(out: Path, **changes: Any) -> DistillConfig:
    fields = {"data": "synthesize:plain", "replay": WINDOW, "steps": None, "epochs": 3, "batch": 4, "log_every": 1}
    return tiny_config(out, **{**fields, **changes})


def _drawn(config: DistillConfig, synthesis: SynthesisConfig, models: Models | None = None) -> DrawnSet:
    return DrawnSet(config, prepare(synthesis, Path(config.out), models or doubles.models()))


def _teacher() -> Any:
    return ColourTeacher(len(doubles.CLASSES))


def _train(
    config: DistillConfig, synthesis: SynthesisConfig, models: Models | None = None, **options: Any
) -> DistillReport:
    batches = GrowingBatches(config, _drawn(config, synthesis, models), _teacher(), CPU, ALONE)
    return train_batches(config, batches, _teacher(), **options)


FILTERED: dict[str, Any] = {"filter": FilterConfig(attempts=2, energy_quantile=0.5, max_rejected=1.0)}


@pytest.mark.parametrize("changes", [{}, {"format": "jpg"}, {"soft_top_k": 2}, FILTERED])
def test_the_rows_are_those_of_the_shards(changes: dict[str, Any], seed: int, tmp_path: Path) -> None:
    synthesis = doubles.small_config(tmp_path, seed=seed, **changes)
    doubles.run(synthesis, tmp_path / "set")
    shards = ShardSet(tmp_path / "set")
    drawn = _drawn(_config(tmp_path / "out"), synthesis)
    assert (drawn.rows, drawn.class_names) == (23, shards.class_names)
    parts = [drawn.part(rows, StopRequest()) for rows in (range(5), range(5, 17), range(17, 23))]
    assert torch.cat([part.rows for part in parts]).tolist() == shards.keys().tolist()
    sources = [part.source.batch(torch.arange(len(part.rows))) for part in parts if part.source is not None]
    images, labels, logits = shards.arrays()
    assert torch.equal(torch.cat([batch.images for batch in sources]), images)
    assert torch.equal(torch.cat([batch.labels for batch in sources]), labels)
    assert torch.equal(torch.stack([row for batch in sources for row in batch.logits]), logits)  # type: ignore[union-attr]
    followed = FollowedSet(tmp_path / "set", WINDOW, ram_bytes=2**20)
    assert drawn.fingerprint == followed.fingerprint
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("changes", [{}, RICH, {"targets": "stored", "augment": AugmentConfig(pad=0)}])
def test_the_student_is_that_of_the_shards(changes: dict[str, Any], seed: int, tmp_path: Path) -> None:
    synthesis = doubles.small_config(tmp_path, seed=seed)
    doubles.run(synthesis, tmp_path / "set")
    config = _config(tmp_path / "followed", data=str(tmp_path / "set"), follow=True, **changes)
    growing = FollowedSet(config.data, config.replay, ram_bytes=2**30)
    followed = train_batches(config, GrowingBatches(config, growing, _teacher(), CPU, ALONE), _teacher())
    assert same(_train(_config(tmp_path / "drawn", **changes), synthesis), followed)
    assert not list((tmp_path / "drawn").glob("shard-*"))


def test_killed_three_times(seed: int, tmp_path: Path) -> None:
    """The pilot of a run that was killed is not drawn again."""
    synthesis = doubles.small_config(tmp_path, seed=seed)
    whole = _train(_config(tmp_path / "whole", **RICH), synthesis)
    config, chance = _config(tmp_path / "killed", **RICH), random.Random(seed)
    for _ in range(3):
        images = 4 * chance.randint(2, 4)
        assert ended(fork(lambda n=images: _train(config, synthesis, progress=after(n, kill_me)))) == -signal.SIGKILL  # type: ignore[misc]
    assert same(_train(config, synthesis, models=_without_pilot()), whole)


def _without_pilot() -> Models:
    made = doubles.models()

    def make(config: SamplerConfig, gate: GateThresholds | None) -> Any:
        assert config.guidance is not None, "the pilot is drawn again"
        return made.make_sampler(config, gate)

    return replace(made, make_sampler=make)


def test_every_row_is_drawn_once_while_it_is_in_the_window(tmp_path: Path) -> None:
    synthesis, drawn = doubles.small_config(tmp_path, sampler=doubles.PLAIN), list[int]()
    made = doubles.models()

    def make(config: SamplerConfig, gate: GateThresholds | None) -> Any:
        return doubles.SeedSampler(config, gate, before=drawn.extend)

    _train(_config(tmp_path / "run"), synthesis, models=replace(made, make_sampler=make))
    counts = Counter(drawn)
    tried = {seed_of(0, row, 0) for row in range(4)}  # the first batch is tried before anything is written
    assert counts == {seed_of(0, row, 0): 1 for row in range(23)} | dict.fromkeys(tried, 2)


def test_a_signal_ends_the_drawing(tmp_path: Path) -> None:
    """And the same command goes on from there."""
    synthesis = doubles.small_config(tmp_path, sampler=doubles.PLAIN)
    whole = _train(_config(tmp_path / "whole"), synthesis)
    made, batches = doubles.models(), count()

    def stop(_seeds: Sequence[int]) -> None:
        if next(batches) == 4:  # with a batch of its segment still to come
            os.kill(os.getpid(), signal.SIGTERM)

    def make(config: SamplerConfig, gate: GateThresholds | None) -> Any:
        return doubles.SeedSampler(config, gate, before=stop)

    config = _config(tmp_path / "stopped")
    with pytest.raises(Interrupted, match="SIGTERM"):
        _train(config, synthesis, models=replace(made, make_sampler=make))
    assert (tmp_path / "stopped" / "state.safetensors").exists()
    assert same(_train(config, synthesis), whole)


def test_a_synthesis_that_does_not_work_is_stopped(tmp_path: Path) -> None:
    black = doubles.models(spoil=doubles.darkened(1.0))
    filtered = doubles.filtered(tmp_path, filter=FilterConfig(attempts=1, max_rejected=0.5))
    with pytest.raises(UserError, match=r"filters leave 4 of 4 rows without an image"):
        _train(_config(tmp_path / "run"), filtered, models=black)
    lenient = doubles.filtered(tmp_path, filter=FilterConfig(attempts=1, max_rejected=1.0))
    with pytest.raises(UserError, match="none of the first 4 rows has an image: loosen the filter"):
        _train(_config(tmp_path / "run"), lenient, models=black)
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_drawn_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synthesis = doubles.small_config(tmp_path, sampler=doubles.PLAIN)
    with pytest.raises(UserError, match=r"12 images of 192 bytes are 0.0 GiB, more than ram_gib 1e-06: lower replay"):
        _train(_config(tmp_path / "run", ram_gib=1e-6), synthesis)
    for data, message in (("prysm", "did you mean prism"), ("none.yaml", "cannot read the configuration none.yaml")):
        with pytest.raises(UserError, match=message):
            distill(_config(tmp_path / "run", data=f"synthesize:{data}", targets="labels"))
    for name, value in rank_variables(0, 2, free_port()).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"not by each of 2 ranks: run prism-fast synthesize .*--follow"):
        distill(_config(tmp_path / "run", targets="labels"))
    assert not (tmp_path / "run").exists()


def _line(folder: Path, *data: str) -> list[str]:
    options = "--student test_resnet --input_size 32 --batch 4 --epochs 3 --replay.window 12 --augment.pad 1"
    return ["distill", *data, *options.split(), "--model_args", str(TINY), "--teacher", str(folder / "teacher")]


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the real sampler: the student of what prism-fast synthesize writes from the same file."""
    tiny.save_tiny_pipeline(tmp_path / "pipeline")
    tiny.save_tiny_teacher(tmp_path / "teacher")
    with one_thread():
        synthesize(tiny_config_of_synthesis(tmp_path), tmp_path / "set", progress=silent)
        drawn = ["--data", f"synthesize:{tmp_path / 'set' / 'config.yaml'}", "--out", str(tmp_path / "drawn")]
        followed = ["--data", str(tmp_path / "set"), "--follow", "--out", str(tmp_path / "followed")]
        for data in (drawn, followed):
            assert main(_line(tmp_path, *data, "--device", "cpu")) == 0
    assert capsys.readouterr().out.count("15 steps") == 2
    one, other = (tmp_path / name / "student" / "model.safetensors" for name in ("drawn", "followed"))
    assert one.read_bytes() == other.read_bytes()
    assert (tmp_path / "drawn" / "pilot.json").exists()


@pytest.mark.gpu
def test_drawn_and_learned_on_one_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.save_tiny_pipeline(tmp_path / "pipeline")
    tiny.save_tiny_teacher(tmp_path / "teacher")
    save_yaml(tiny_config_of_synthesis(tmp_path), tmp_path / "synthesis.yaml")
    data = ["--data", f"synthesize:{tmp_path / 'synthesis.yaml'}", "--out", str(tmp_path / "drawn")]
    assert main(_line(tmp_path, *data, "--device", "cuda")) == 0
    assert "15 steps" in capsys.readouterr().out


class TestCurrentStudent:
    """The student as it is takes part in the energy of the images that it will see."""

    @staticmethod
    def _models() -> Models:
        """Images that show which student guided them."""
        made = doubles.models()

        def make(config: SamplerConfig, gate: GateThresholds | None) -> Any:
            name = "" if config.guidance is None else config.guidance.student or ""
            if name:
                load_student(name)  # it is there, and is the one that it is called
            tone = int(name[-2:], 16) if name else 0

            def spoil(batch: SampleBatch) -> SampleBatch:
                images = batch.images.clone()
                images[:, :, 2, 2] = tone
                return replace(batch, images=images)

            return doubles.SeedSampler(config, gate, spoil=spoil)

        return replace(made, make_sampler=make)

    def _train(self, config: DistillConfig, folder: Path, **options: Any) -> DistillReport:
        guided = replace(doubles.PLAIN, guidance=GuidanceConfig(gate="none"))
        job = prepare(doubles.small_config(folder, sampler=guided), Path(config.out), self._models())
        batches = GrowingBatches(config, DrawnSet(config, job, 0.5), _teacher(), CPU, ALONE)
        return train_batches(config, batches, _teacher(), **options)

    def test_it_is_frozen_for_each_segment_and_named_by_its_hash(self, tmp_path: Path) -> None:
        self._train(_config(tmp_path / "run", epochs=3), tmp_path)
        guides = json.loads((tmp_path / "run" / "guides.json").read_text())
        assert [guide["first_row"] for guide in guides] == [0, 4, 8, 12, 16]  # two rows more in the last
        names = [guide["student"] for guide in guides]
        assert names[0] == names[1] and len(set(names)) == 4  # the first step waits for two segments
        for name in names:
            assert load_student(str(tmp_path / "run" / "snapshots" / name)).fingerprint == name
        seldom = _config(tmp_path / "seldom", replay=ReplayConfig(window=12, freeze_every=4))
        self._train(seldom, tmp_path)
        names = [guide["student"] for guide in json.loads((tmp_path / "seldom" / "guides.json").read_text())]
        assert names[:4] == [names[0]] * 4 and names[0] != names[4]

    def test_it_waits_for_so_many_images_of_each_class(self, tmp_path: Path) -> None:
        config = _config(tmp_path / "run", epochs=3)
        guided = replace(doubles.PLAIN, guidance=GuidanceConfig(gate="none", student_after=3))
        job = prepare(doubles.small_config(tmp_path, sampler=guided), Path(config.out), self._models())
        train_batches(config, GrowingBatches(config, DrawnSet(config, job, 0.5), _teacher(), CPU, ALONE), _teacher())
        guides = json.loads((tmp_path / "run" / "guides.json").read_text())
        assert [guide["first_row"] for guide in guides] == [12, 16]  # 9 rows of 3 classes come before, in segments of 4

    def test_killed_three_times(self, seed: int, tmp_path: Path) -> None:
        replay = ReplayConfig(window=12, freeze_every=2)
        whole = self._train(_config(tmp_path / "whole", **{**RICH, "replay": replay}), tmp_path)
        config, chance = _config(tmp_path / "killed", **{**RICH, "replay": replay}), random.Random(seed)
        for _ in range(3):
            kill = after(4 * chance.randint(2, 4), kill_me)
            assert ended(fork(lambda kill=kill: self._train(config, tmp_path, progress=kill))) == -signal.SIGKILL  # type: ignore[misc]
        assert same(self._train(config, tmp_path), whole)
        told = [(tmp_path / name / "guides.json").read_text() for name in ("killed", "whole")]
        assert told[0] == told[1]

    def test_what_does_not_go_together_is_refused(self, tmp_path: Path) -> None:
        file = tmp_path / "synthesis.yaml"
        file.write_text("sampler: {guidance: {student: current, student_weight: 0.1}}\n")
        with pytest.raises(UserError, match=r"current changes the energy .*set guidance.gate none"):
            distill(_config(tmp_path / "run", data=f"synthesize:{file}", targets="labels"))
        alone = "{gate: none, free_weight: 0, class_weight: 0, student: current, student_weight: 0.1}"
        file.write_text(f"sampler: {{guidance: {alone}}}\n")
        with pytest.raises(UserError, match=r"beside guidance\.student current another weight has to be above 0"):
            distill(_config(tmp_path / "run", data=f"synthesize:{file}", targets="labels"))
        assert main(["synthesize", "--config", str(file), "--out", str(tmp_path / "set")]) == 2
        own = _config(tmp_path / "run", student="tests.distill.own_students:small")
        with pytest.raises(UserError, match="current needs a student that a folder alone describes"):
            self._train(own, tmp_path)
        assert not (tmp_path / "run").exists() and not (tmp_path / "set").exists()

    @pytest.mark.slow
    def test_its_images_are_those_that_a_snapshot_of_that_name_guides(self, tmp_path: Path) -> None:
        """With the real sampler and energy."""
        tiny.save_tiny_pipeline(tmp_path / "pipeline")
        tiny.save_tiny_teacher(tmp_path / "teacher")
        guidance = GuidanceConfig(gate="none", scale=0.5)
        plain = replace(
            tiny_config_of_synthesis(tmp_path), sampler=SamplerConfig(steps=2, compute_batch=2, guidance=guidance)
        )
        config = _config(tmp_path / "run", teacher=str(tmp_path / "teacher"))
        drawn = DrawnSet(config, prepare(plain, tmp_path / "run"), 2.0)
        parts: dict[int, Part] = {}
        made = drawn.part

        def remember(rows: range, stop: StopRequest, freeze: Freeze | None = None) -> Part:
            parts[rows.start] = made(rows, stop, freeze)
            return parts[rows.start]

        drawn.part = remember  # type: ignore[method-assign]
        teacher = load_teacher(config.teacher)
        train_batches(config, GrowingBatches(config, drawn, teacher, CPU, ALONE), teacher)
        guides = {g["first_row"]: g["student"] for g in json.loads((tmp_path / "run" / "guides.json").read_text())}
        assert len(set(guides.values())) > 2
        for first in (0, 16):
            student = f"{tmp_path / 'run' / 'snapshots' / guides[first]}@{guides[first]}"
            named = replace(guidance, student=student, student_weight=2.0)
            again = replace(plain, sampler=replace(plain.sampler, guidance=named))
            images = []
            for synthesis in (again, plain):
                found = DrawnSet(config, prepare(synthesis, tmp_path / "x")).part(
                    range(first, first + 4), StopRequest()
                )
                assert found.source is not None
                images.append(found.source.batch(torch.arange(4)).images)
            source = parts[first].source
            assert source is not None
            assert torch.equal(source.batch(torch.arange(4)).images, images[0])
            assert not torch.equal(images[0], images[1])
