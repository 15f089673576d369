"""Makes shards: sample, label, store, publish. :mod:`prism_fast.synthesis.job` is the whole job.

Light to import: torch comes with the sampler and the labeller, so that a process without them can do the rest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from prism_fast.errors import UserError
from prism_fast.progress import Bar
from prism_fast.synthesis.filtering import NO_FILTER, Filter
from prism_fast.synthesis.images import ImageFormat, decode_image, encode_image
from prism_fast.synthesis.interruption import StopRequest
from prism_fast.synthesis.place import Place
from prism_fast.synthesis.plan import Plan, Row, sampler_arguments
from prism_fast.synthesis.record import Labels, batch_records
from prism_fast.synthesis.row_order import RowOrder
from prism_fast.synthesis.shards import Sample, ShardWriter, claim_shard, read_stats
from prism_fast.synthesis.tally import shard_stats

if TYPE_CHECKING:
    from torch import Tensor

    from prism_fast.sampling.pending import Pending, QueuingSampler

Encoder = Callable[[Any, ImageFormat], bytes]
"""One of a sampler's images to an image file."""


class Labelling(Protocol):
    """A :class:`~prism_fast.synthesis.label.Labeller`, or what stands in for one."""

    def ask(self, images: Tensor, classes: list[int]) -> Callable[[], Labels]:
        """Images and their classes to what waits for their labels."""
        ...


@dataclass(frozen=True, kw_only=True)
class Worker:
    """Makes shards in this process, one at a time.

    While a device makes a batch, the one before is compressed, labelled and stored: the device is handed the next batch
    before the host waits for anything of this one.

    Args:
        plan: what to make.
        sampler: rows to images.
        labeller: images to labels.
        out: the set's folder, already claimed.
        config_hash: of the set.
        stop: looked at between batches.
        bar: progress in rows.
        encode: an image to a file.
        encoders: threads that do so.
        filter: which images are rejected.
        remake: shards that are made although they are published.
    """

    plan: Plan
    sampler: QueuingSampler
    labeller: Labelling
    out: Place
    config_hash: str
    stop: StopRequest
    bar: Bar
    encode: Encoder = field(default_factory=lambda: encode)
    encoders: int = 1
    filter: Filter = NO_FILTER
    remake: frozenset[int] = frozenset()

    def make(self, shard: int) -> dict[str, Any] | None:
        """Publishes a shard, or finds it published: the same bytes, whoever makes them.

        Args:
            shard: its number.

        Returns:
            Its statistics; None while another live run on this folder is making it.

        Raises:
            Interrupted: a stop was asked for; nothing of the shard is left.
            UserError: the disk is full.
        """
        self.stop.check()
        with writing(self.out):
            writer = claim_shard(self.out, shard)
            if writer is None:
                return None
            with writer:
                found = None
                if shard not in self.remake:
                    found = read_stats(self.out, shard, self.config_hash)  # another run was faster
                if found is None:
                    return self._fill(shard, writer)
        self.bar.update(found["rows"])
        return found

    def _fill(self, shard: int, writer: ShardWriter) -> dict[str, Any]:
        """Makes the rows of a claimed shard, batch by batch; no batch has rows of two shards.

        Which rows are drawn again together does not matter: an image depends on its own row and attempt alone.
        """
        todo, size = deque(self.plan.rows(shard)), self.plan.config.sampler.compute_batch
        order = RowOrder(writer, todo[0].index)
        replaced: list[dict[str, Any]] = []
        guidances = 0
        with ThreadPoolExecutor(1) as waiter, ThreadPoolExecutor(self.encoders) as encoders:
            waiting: _Sampled | None = None
            while todo or waiting is not None:
                sampled = None
                # Before a batch that is not full, those to be drawn again have to be known: they fill it up.
                if todo and (len(todo) >= size or waiting is None or not self.filter.redraws):
                    self.stop.check()  # else what is sampled already only has to be stored
                    sampled = self._sample([todo.popleft() for _ in range(min(size, len(todo)))], waiter, encoders)
                if waiting is not None:
                    again = self._store(waiting, order)
                    replaced += again
                    todo.extendleft(self.plan.row(r["index"], r["attempt"] + 1) for r in reversed(again))
                    guidances += self._guidances(waiting)
                    self.bar.update(len(waiting.rows) - len(again))
                waiting = sampled
        filtered = replaced if self.plan.config.filter is not None else None
        return writer.publish(shard_stats(shard, order.records, guidances, self.config_hash, filtered))

    def _sample(self, rows: Sequence[Row], waiter: Executor, encoders: Executor) -> _Sampled:
        """Up to ``compute_batch`` rows as images, for which ``waiter`` waits and which ``encoders`` write to files."""
        kind = self.plan.config.format
        classes = [row.class_index for row in rows]
        pending = self.sampler.begin(*sampler_arguments(rows))
        files = waiter.submit(
            lambda: list(encoders.map(lambda image: self.encode(image, kind), pending.result().images))
        )
        # A lossless file's image is labelled where it is; of a JPEG the one that a reader will see.
        asked = self.labeller.ask(pending.images, classes) if kind != "jpg" else None
        return _Sampled(rows=rows, pending=pending, files=files, asked=asked)

    def _store(self, sampled: _Sampled, order: RowOrder) -> list[dict[str, Any]]:
        """Stores a sampled batch with its labels; the records of those rows that have to be drawn again."""
        rows, files = sampled.rows, sampled.files.result()
        batch = sampled.pending.result()
        classes = [row.class_index for row in rows]
        stored = batch.images if sampled.asked is not None else _decoded(files)
        labels = (sampled.asked or self.labeller.ask(stored, classes))()
        reasons = self.filter.reasons(stored, batch.finite, classes, labels)
        again = []
        for place, record in enumerate(batch_records(rows, batch, labels, reasons, self.config_hash)):
            sample = None
            if record["accepted"]:
                sample = self.stored(files[place], labels.logits[place], record)
            elif record["attempt"] + 1 < self.filter.config.attempts:
                again.append(record)
                continue
            order.settle(record, sample)
        return again

    def stored(self, image: bytes, logits: NDArray[np.float16], record: dict[str, Any]) -> Sample:
        """A row as its shard gets it: an image file, logits [K] and provenance."""
        config = self.plan.config
        return Sample(
            index=record["index"],
            image=image,
            extension=config.format,
            label=record["class_index"],
            logits=logits,
            record=record,
            top_k=config.soft_top_k,
        )

    def _guidances(self, sampled: _Sampled) -> int:
        """How many guidances a batch asked for."""
        guidance = self.plan.config.sampler.guidance
        repeats = guidance.repeats if guidance is not None else 0
        return len(sampled.rows) * len(sampled.pending.result().guided_steps) * repeats


@dataclass(frozen=True, kw_only=True)
class _Sampled:
    """A batch between sampler and shard."""

    rows: Sequence[Row]
    pending: Pending
    files: Future[list[bytes]]
    asked: Callable[[], Labels] | None


def encode(image: Tensor, kind: ImageFormat) -> bytes:
    """uint8 [3, H, W] to an image file."""
    return encode_image(image.permute(1, 2, 0).numpy(), kind)


def _decoded(files: Sequence[bytes]) -> Tensor:
    """Image files to uint8 [n, 3, H, W]."""
    import torch

    return torch.stack([torch.from_numpy(decode_image(file)).permute(2, 0, 1) for file in files])


@contextmanager
def writing(out: Place) -> Iterator[None]:
    """A disk that is full or read-only is the user's to mend, not a bug."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write to {out}: {error}; what is published is whole, the same command continues"
        ) from error
