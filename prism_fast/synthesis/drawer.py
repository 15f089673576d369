"""Rows to labelled images, batch by batch, drawn again where a filter rejects them; what becomes of them is another's.

Light to import: torch comes with the sampler and the labeller.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from prism_fast.progress import Bar
from prism_fast.synthesis.filter_config import BEATEN
from prism_fast.synthesis.filtering import NO_FILTER, Filter
from prism_fast.synthesis.images import ImageFormat, decode_image, encode_image
from prism_fast.synthesis.interruption import StopRequest
from prism_fast.synthesis.mix import Mixer
from prism_fast.synthesis.plan import Plan, Row, sampler_arguments
from prism_fast.synthesis.record import Labels, batch_records
from prism_fast.synthesis.waiting import Waiting, batch_kind

if TYPE_CHECKING:
    from torch import Tensor

    from prism_fast.sampling.pending import Pending, QueuingSampler

Encoder = Callable[[Any, ImageFormat], bytes]
"""One of a sampler's images to an image file."""


Cosines = Callable[[Any, Sequence[int], Sequence[int]], list[float]]
"""Images uint8 [n, 3, H, W], classes and seeds of their rows to their cosines with the images they started from."""


class Labelling(Protocol):
    """A :class:`~prism_fast.synthesis.label.Labeller`, or what stands in for one."""

    def ask(self, images: Tensor, classes: list[int]) -> Callable[[], Labels]:
        """Images and their classes to what waits for their labels."""
        ...


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """An image that is kept.

    Args:
        image: uint8 [3, H, W], as a reader of its file sees it.
        file: the encoded image.
        logits: the teacher's at T = 1, fp16 [K].
    """

    image: Tensor
    file: bytes
    logits: NDArray[np.float16]


Settle = Callable[[dict[str, Any], Drawn | None], None]
"""Gets a row's record once it is not drawn again, with its image or, where that is rejected, None."""


@dataclass(frozen=True, kw_only=True)
class Draws:
    """What rows took.

    Args:
        guidances: gradients asked for, over all draws.
        replaced: records of draws that another one of the same row has replaced.
    """

    guidances: int
    replaced: list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Drawer:
    """Draws rows in this process.

    While a device makes a batch, the one before is compressed, labelled and settled: the device is handed the next
    batch before the host waits for anything of this one.

    Args:
        plan: what to make.
        sampler: rows to images.
        labeller: images to labels.
        config_hash: of the set.
        stop: looked at between batches.
        bar: progress in rows.
        encode: an image to a file.
        encoders: threads that do so.
        filter: which images are rejected.
        mixer: mixes rows, where the set has them mixed.
        similarity: of images and what they started from, where the filter asks for it.
    """

    plan: Plan
    sampler: QueuingSampler
    labeller: Labelling
    config_hash: str
    stop: StopRequest
    bar: Bar
    encode: Encoder = field(default_factory=lambda: encode)
    encoders: int = 1
    filter: Filter = NO_FILTER
    mixer: Mixer | None = None
    similarity: Cosines | None = None

    def draw(self, rows: Sequence[Row], settle: Settle) -> Draws:
        """Makes rows, batch by batch, and gives each to ``settle``: in order but for those that are drawn again.

        And but for rows that start from images: a batch has rows of one strength.

        Which rows are drawn again together does not matter: an image depends on its own row and attempt alone.

        Raises:
            Interrupted: a stop was asked for.
        """
        sampler = self.plan.config.sampler
        todo, size = Waiting(rows, batch_kind(sampler)), sampler.compute_batch
        contest = _Contest(self.filter.config.keep == "best")
        guidances = 0
        with ThreadPoolExecutor(1) as waiter, ThreadPoolExecutor(self.encoders) as encoders:
            waiting: _Sampled | None = None
            while todo or waiting is not None:
                sampled = None
                # Before a batch that is not full, those to be drawn again have to be known: they fill it up.
                if todo and (todo.full(size) or waiting is None or not self.filter.redraws):
                    self.stop.check()  # else what is sampled already only has to be settled
                    sampled = self._sample(todo.take(size), waiter, encoders)
                if waiting is not None:
                    again = self._settle(waiting, contest, settle)
                    todo.put_back([self.plan.row(r["index"], r["attempt"] + 1) for r in again])
                    guidances += self._guidances(waiting)
                    self.bar.update(len(waiting.rows) - len(again))
                waiting = sampled
        return Draws(guidances=guidances, replaced=contest.replaced)

    def _sample(self, rows: Sequence[Row], waiter: Executor, encoders: Executor) -> _Sampled:
        """Up to ``compute_batch`` rows as images, for which ``waiter`` waits and which ``encoders`` write to files."""
        kind = self.plan.config.format
        classes = [row.class_index for row in rows]
        if self.mixer is not None:
            pending = self.mixer.begin(self.sampler, rows)
        else:
            pending = self.sampler.begin(*sampler_arguments(rows))
        files = waiter.submit(
            lambda: list(encoders.map(lambda image: self.encode(image, kind), pending.result().images))
        )
        # A lossless file's image is labelled where it is; of a JPEG the one that a reader will see.
        asked = self.labeller.ask(pending.images, classes) if kind != "jpg" else None
        return _Sampled(rows=rows, pending=pending, files=files, asked=asked)

    def _settle(self, sampled: _Sampled, contest: _Contest, settle: Settle) -> list[dict[str, Any]]:
        """Settles a sampled batch with its labels; the records of those rows that have to be drawn again."""
        rows, files = sampled.rows, sampled.files.result()
        batch = sampled.pending.result()
        classes = [row.class_index for row in rows]
        stored = batch.images if sampled.asked is not None else _decoded(files)
        labels = (sampled.asked or self.labeller.ask(stored, classes))()
        cosines = self.similarity(stored, classes, [row.seed for row in rows]) if self.similarity is not None else None
        reasons = self.filter.reasons(stored, batch.finite, classes, labels, cosines)
        again = []
        mixed = self.mixer is not None
        for place, record in enumerate(batch_records(rows, batch, labels, reasons, self.config_hash, mixed)):
            drawn = None
            if record["accepted"]:
                drawn = Drawn(image=stored[place], file=files[place], logits=labels.logits[place])
            if contest.open(drawn) and record["attempt"] + 1 < self.filter.config.attempts:
                contest.enter(record, drawn)
                again.append(record)
            else:
                settle(*contest.close(record, drawn))
        return again

    def _guidances(self, sampled: _Sampled) -> int:
        """How many guidances a batch asked for."""
        guidance = self.plan.config.sampler.guidance
        repeats = guidance.repeats if guidance is not None else 0
        gates = sampled.pending.result().gate.tolist()
        # rows that start from images are not guided at every step: their gates there are no numbers
        return sum(not math.isnan(gate) for step in gates for gate in step) * repeats


class _Contest:
    """Which draw of a row is kept, where more than one is made.

    Args:
        best: every draw takes part, and the accepted one of the lowest energy is kept; else the first accepted one.
    """

    def __init__(self, best: bool) -> None:
        self._best = best
        self._leading: dict[int, tuple[dict[str, Any], Drawn]] = {}
        self.replaced: list[dict[str, Any]] = []

    def open(self, drawn: Drawn | None) -> bool:
        """Whether a row that this was drawn for could do with another draw."""
        return self._best or drawn is None

    def enter(self, record: dict[str, Any], drawn: Drawn | None) -> None:
        """A draw that is not its row's last."""
        kept, image = self.close(record, drawn)
        if image is None:
            self.replaced.append(kept)
        else:
            self._leading[kept["index"]] = kept, image

    def close(self, record: dict[str, Any], drawn: Drawn | None) -> tuple[dict[str, Any], Drawn | None]:
        """The better of a draw and those before it; of two alike the earlier one."""
        before = self._leading.pop(record["index"], None)
        if before is None:
            return record, drawn
        leading, image = before
        if drawn is None:
            self.replaced.append(record)
            return leading, image
        beaten = leading if _order(record) < _order(leading) else record
        self.replaced.append({**beaten, "accepted": False, "reason": BEATEN})
        return (record, drawn) if beaten is leading else (leading, image)


def _order(record: dict[str, Any]) -> float:
    """The energy; one that is no number comes last."""
    energy = float(record["energy"])
    return math.inf if math.isnan(energy) else energy


@dataclass(frozen=True, kw_only=True)
class _Sampled:
    """A batch between sampler and settlement."""

    rows: Sequence[Row]
    pending: Pending
    files: Future[list[bytes]]
    asked: Callable[[], Labels] | None


def encode(image: Tensor, kind: ImageFormat) -> bytes:
    """uint8 [3, H, W] to an image file."""
    return encode_image(image.permute(1, 2, 0).numpy(), kind)


def encode_lossy(image: Tensor, kind: ImageFormat) -> bytes:
    """A file only where its reader sees another image than was drawn, else nothing: for images that stay in memory."""
    return encode(image, kind) if kind == "jpg" else b""


def _decoded(files: Sequence[bytes]) -> Tensor:
    """Image files to uint8 [n, 3, H, W]."""
    import torch

    return torch.stack([torch.from_numpy(decode_image(file)).permute(2, 0, 1) for file in files])
