"""Stand-ins for the models of a synthesis: images that are functions of their seed, a teacher that reads colours."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prism_fast.energy.terms import Outputs
from prism_fast.progress import silent
from prism_fast.prompts.prompt_config import PromptConfig
from prism_fast.sampling.batch import SampleBatch
from prism_fast.sampling.config import GuidanceConfig, SamplerConfig
from prism_fast.sampling.guidance import GateThresholds
from prism_fast.sampling.pending import Pending, done
from prism_fast.synthesis.config import SynthesisConfig
from prism_fast.synthesis.filter_config import FilterConfig
from prism_fast.synthesis.job import Engine, SynthesisReport, in_turn, synthesize
from prism_fast.synthesis.models import Models

CLASSES = ("red thing", "green thing", "blue thing")
SIZE = 8
STEPS = (0, 2)
PLAIN = SamplerConfig(steps=4, compute_batch=4)


class ColourTeacher:
    """Logits are ten times the mean of each colour; remembers the shapes it was called with."""

    label_names: tuple[str, ...] | None = None
    input_size = (SIZE, SIZE)

    def __init__(self, num_classes: int = len(CLASSES), fingerprint: str = "teacher", scale: float = 10.0) -> None:
        self.num_classes, self.fingerprint, self.scale = num_classes, fingerprint, scale
        self.shapes: list[tuple[int, ...]] = []

    def outputs(self, images: Tensor) -> Outputs:
        self.shapes.append(tuple(images.shape))
        return Outputs(logits=self.scale * images.mean((2, 3)))

    def features(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))

    def energy_and_grad(self, images: Tensor, targets: Tensor, term: Any) -> Any:
        raise NotImplementedError


class SeedSampler:
    """An image is noise of its seed, brighter in its class's colour, and darker where the gate is.

    Args:
        config, gate: as a sampler gets them.
        before: called with the batch's seeds before each batch.
        spoil: changes a finished batch.
    """

    def __init__(
        self,
        config: SamplerConfig,
        gate: GateThresholds | None,
        before: Callable[[Sequence[int]], None] | None = None,
        spoil: Callable[[SampleBatch], SampleBatch] | None = None,
    ) -> None:
        self.config, self.gate, self.before, self.spoil = config, gate, before, spoil

    def begin(self, prompts: Sequence[str], class_indices: Sequence[int], seeds: Sequence[int]) -> Pending:
        return done(self.sample(prompts, class_indices, seeds))

    def sample(self, prompts: Sequence[str], class_indices: Sequence[int], seeds: Sequence[int]) -> SampleBatch:
        assert len(prompts) == len(class_indices) == len(seeds) <= self.config.compute_batch
        if self.before is not None:
            self.before(seeds)
        images = torch.stack([self._image(*row) for row in zip(prompts, class_indices, seeds, strict=True)])
        guided = STEPS if self.config.guidance is not None else ()
        batch = SampleBatch(
            images=images,
            latents=torch.zeros(len(seeds), 1, 1, 1),
            guided_steps=guided,
            energy=torch.arange(float(len(guided)))[:, None] - torch.tensor([s % 7 for s in seeds])[None],
            gate=torch.full((len(guided), len(seeds)), 0.5),
            skipped=torch.zeros(len(seeds), dtype=torch.int64),
            compute_batch=self.config.compute_batch,
        )
        return batch if self.spoil is None else self.spoil(batch)

    def _image(self, prompt: str, class_index: int, seed: int) -> Tensor:
        image = torch.randint(0, 100, (3, SIZE, SIZE), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
        image[class_index] += 100
        image[:, 0, 0] = hashlib.sha256(prompt.encode()).digest()[0]
        if self.gate is not None:
            image[:, 0, 1] = int(abs(self.gate.tau[class_index]) * 1e4) % 256
        return image


def models(
    before: Callable[[Sequence[int]], None] | None = None,
    spoil: Callable[[SampleBatch], SampleBatch] | None = None,
    teacher: ColourTeacher | None = None,
    pipeline: str = "pipeline",
    fits: Callable[[str], bool] | None = None,
) -> Models:
    """Models of the doubles; ``before`` and ``spoil`` go to samplers with guidance."""

    def make(config: SamplerConfig, gate: GateThresholds | None) -> SeedSampler:
        hooks = (before, spoil) if config.guidance is not None else (None, None)
        return SeedSampler(config, gate, *hooks)

    return Models(
        teacher=teacher or ColourTeacher(),
        make_sampler=make,
        pipeline_fingerprint=pipeline,
        fits=fits,
        device=torch.device("cpu"),
    )


def load(
    _config: SynthesisConfig,
    pipeline: str = "pipeline",
    log: Path | None = None,
    pause_s: float = 0.0,
    hold: Path | None = None,
    black: float = 0.0,
) -> Models:
    """Models of the doubles, for processes that load their own.

    Args:
        pipeline: its fingerprint.
        log: gets a line a guided batch: the process and its seeds.
        pause_s: before each guided batch.
        hold: while this file exists, a process waits in the batch that it has logged.
        black: share of images that are black.
    """

    def before(seeds: Sequence[int]) -> None:
        if log is not None:
            with log.open("a") as file:
                file.write(f"{os.getpid()} {' '.join(map(str, seeds))}\n")
        time.sleep(pause_s)
        while hold is not None and hold.exists():
            time.sleep(0.01)

    return models(before, darkened(black) if black else None, pipeline=pipeline)


def small_config(folder: Path, **changes: Any) -> SynthesisConfig:
    """23 rows in three shards of 10, 10 and 3, batches of 4; its vocabulary is written into ``folder``."""
    path = folder / "classes.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(CLASSES))
    fields: dict[str, Any] = {
        "vocabulary": str(path), "images": 23, "shard_size": 10, "device": "cpu", "pilot_images": 2,
        "prompts": PromptConfig(per_class=5),
        "sampler": SamplerConfig(steps=4, compute_batch=4, guidance=GuidanceConfig(scale=0.1)),
    }  # fmt: skip
    return SynthesisConfig(**{**fields, **changes})


def darkened(share: float) -> Callable[[SampleBatch], SampleBatch]:
    """Blackens images by their own noise alone, as a broken one would be."""

    def spoil(batch: SampleBatch) -> SampleBatch:
        images = batch.images.clone()
        for image in images:
            if int(image[:, 1, 1].sum()) % 100 < 100 * share:
                image[:] = 0
        return replace(batch, images=images)

    return spoil


def filtered(folder: Path, **changes: Any) -> SynthesisConfig:
    """The same with a filter that asks for three draws at most, and guided without a gate."""
    fields: dict[str, Any] = {
        "sampler": replace(PLAIN, guidance=GuidanceConfig(gate="none")),
        "filter": FilterConfig(attempts=3, max_rejected=1.0),
    }
    return small_config(folder, **{**fields, **changes})


def run(
    config: SynthesisConfig, out: Path | str, made: Models | None = None, engine: Engine = in_turn, **more: Any
) -> SynthesisReport:
    """``synthesize`` with the doubles, in silence."""
    return synthesize(config, out, models=made or models(), engine=engine, **{"progress": silent, "load": load, **more})


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, hidden ones too."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
