"""A sampler and a labeller that only take time: what is left is planning, publishing and statistics. No torch."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from prism_fast.progress import Bar
from prism_fast.prompts import build_prompts, load_vocabulary
from prism_fast.synthesis.config import SynthesisConfig
from prism_fast.synthesis.images import ImageFormat, encode_image
from prism_fast.synthesis.interruption import StopRequest
from prism_fast.synthesis.plan import Plan
from prism_fast.synthesis.record import Labels
from prism_fast.synthesis.worker import Worker

CONFIG_HASH = "simulated"
SIDE = 8
"""Of the images, which are encoded once and stored many times."""

IMAGES = 16
LOG_EVERY = 250
"""Rows between two looks at a worker's memory."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Stands in for a :class:`~prism_fast.sampling.batch.SampleBatch`: the same fields in numpy.

    Args:
        images: encoded files.
        guided_steps, energy, gate, skipped, finite, compute_batch: as there.
    """

    images: list[bytes]
    guided_steps: tuple[int, ...]
    energy: NDArray[np.float32]
    gate: NDArray[np.float32]
    skipped: NDArray[np.int64]
    finite: NDArray[np.bool_]
    compute_batch: int


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """Calling it gives a worker: the real one, between a stub that sleeps and a stub that knows the class.

    Args:
        config: of the set; an unguided one.
        out: its folder.
        log: folder for each worker's memory over time.
        images_per_s: of one worker, if nothing but its sampler took time.
    """

    config: SynthesisConfig
    out: Path
    log: Path
    images_per_s: float

    def __call__(self, stop: StopRequest, bar: Bar) -> Worker:
        """A worker in the process that calls."""
        vocabulary = load_vocabulary(self.config.vocabulary)
        plan = Plan(self.config, vocabulary, build_prompts(vocabulary, self.config.prompts))
        noise = np.random.default_rng(0).integers(0, 256, (IMAGES, SIDE, SIDE, 3), dtype=np.uint8)
        files = [encode_image(image, self.config.format) for image in noise]
        memory = MemoryLog(self.log / f"{os.getpid()}.jsonl", LOG_EVERY)
        sampler = _Sampler(files, self.images_per_s, self.config.sampler.compute_batch, memory)
        return Worker(
            plan=plan,
            sampler=cast("Any", sampler),
            labeller=cast("Any", _Labeller(len(vocabulary))),
            out=self.out,
            config_hash=CONFIG_HASH,
            stop=stop,
            bar=bar,
            encode=_as_it_is,
        )


def _as_it_is(image: bytes, _kind: ImageFormat) -> bytes:
    return image


@dataclass(frozen=True, kw_only=True)
class Begun:
    """Stands in for :class:`~prism_fast.sampling.pending.Pending`."""

    batch: Batch

    @property
    def images(self) -> list[bytes]:
        """Encoded files."""
        return self.batch.images

    def result(self) -> Batch:
        """The batch."""
        return self.batch


class _Sampler:
    def __init__(self, files: list[bytes], images_per_s: float, batch: int, memory: MemoryLog) -> None:
        self._files, self._rate, self._batch, self._memory = files, images_per_s, batch, memory

    def begin(self, _prompts: Sequence[str], _classes: Sequence[int], seeds: Sequence[int]) -> Begun:
        count = len(seeds)
        self._memory.add(count)
        time.sleep(self._batch / self._rate)  # padded rows take as long as others
        batch = Batch(
            images=[self._files[seed % len(self._files)] for seed in seeds],
            guided_steps=(),
            energy=np.zeros((0, count), np.float32),
            gate=np.zeros((0, count), np.float32),
            skipped=np.zeros(count, np.int64),
            finite=np.ones(count, np.bool_),
            compute_batch=self._batch,
        )
        return Begun(batch=batch)


class _Labeller:
    def __init__(self, classes: int) -> None:
        self._eye = np.eye(classes, dtype=np.float16)

    def ask(self, images: list[bytes], classes: list[int]) -> Callable[[], Labels]:
        ones = [1.0] * len(images)
        labels = Labels(
            logits=self._eye[classes],
            energy=ones,
            free_energy=ones,
            class_energy=ones,
            probability=ones,
            top1=classes,
            top1_probability=ones,
        )
        return lambda: labels


def resident_bytes() -> int:
    """Main memory that this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class MemoryLog:
    """Appends to a file, every so many rows, what this process holds, and whether it has torch."""

    def __init__(self, path: Path, every: int) -> None:
        self._path, self._every = path, every
        self._rows = self._written = 0

    def add(self, rows: int) -> None:
        """So many more rows are done."""
        self._rows += rows
        if self._rows - self._written >= self._every:
            self._written = self._rows
            line = {"rows": self._rows, "bytes": resident_bytes(), "torch": "torch" in sys.modules}
            with self._path.open("a") as file:
                file.write(json.dumps(line) + "\n")
