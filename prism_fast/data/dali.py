"""Reads crops with NVIDIA DALI: on the CPU, or decoded on a GPU.

DALI's webdataset reader follows index files. The published ones list an archive's samples in its order; here each
sample of a stretch of steps gets an index file of one line, in the order of the plan, so that any step can be the first
and a sample's crop is known before it is decoded. Beside the members a line names the row number in the tar header in
front of the image and the ends of the image file: what was read proves whose it is, and that it is whole.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn, math, types
from nvidia.dali.pipeline import Pipeline
from torch import Tensor

from prism_fast.data.corrupt import substitutes
from prism_fast.data.crops import EDGE_BYTES, Fetched, Request, cut_off, decode_crop
from prism_fast.data.shards import ShardSet
from prism_fast.errors import UserError
from prism_fast.synthesis.shards import LABEL_MEMBERS, ROW_DIGITS
from prism_fast.synthesis.tar import BLOCK, INDEX_VERSION

_STRETCH = 8192
"""Images of a stretch of steps, whose pipeline is built while the one before is read."""

_DEPTH = 2
"""Batches that DALI prepares ahead."""

_LABEL, _SOFT = (1 + LABEL_MEMBERS.index(name) for name in ("label", "soft"))


class DaliReader:
    """Crops of a set, step by step.

    Args:
        shards: the set, its indices open.
        size: height and width of a crop in pixels.
        soft: whether to read the stored logits.
        workers: threads.
        device: where the crops will go; CUDA also decodes JPEGs.

    Attributes:
        bad: images that turned out to be undecodable: place in the set, and why.
    """

    def __init__(
        self, shards: ShardSet, size: tuple[int, int], *, soft: bool, workers: int, device: torch.device
    ) -> None:
        self.shards, self.size, self.soft = shards, size, soft
        self.threads, self.device = max(1, workers), device
        self.bad: dict[int, str] = {}

    def read(self, plan: Callable[[int], Request], first: int) -> Iterator[Fetched]:
        """The steps of ``plan`` from ``first`` on, without end.

        An image that cannot be decoded ends DALI's pipeline. It is looked for then, and a new pipeline goes on at the
        same step without it.

        Raises:
            UserError: an archive is damaged, or DALI fails on images that decode; file and image are named.
        """
        limit = max(1, _STRETCH // len(plan(first).rows))
        step, count = first, 1
        with ThreadPoolExecutor(1, thread_name_prefix="dali-build") as builder:
            coming = builder.submit(self._build, plan, step, count)
            try:
                while True:
                    stretch, after = coming.result(), min(limit, 2 * count)
                    coming = builder.submit(self._build, plan, step + count, after)
                    try:
                        for fetched in stretch:
                            yield fetched
                            step += 1
                        count = after
                    except _Undecodable as failure:
                        _close(coming)
                        self._find(plan, step, failure)
                        coming, count = builder.submit(self._build, plan, step, 1), 1
                    finally:
                        stretch.close()
            finally:
                _close(coming)

    def _build(self, plan: Callable[[int], Request], first: int, count: int) -> _Stretch:
        return _Stretch(self, [plan(step) for step in range(first, first + count)])

    def _find(self, plan: Callable[[int], Request], step: int, failure: _Undecodable) -> None:
        """Adds to :attr:`bad` what has ended the pipeline: an image of this step or of those read ahead.

        Raises:
            UserError: each of them decodes.
        """
        before = len(self.bad)
        for ahead in range(_DEPTH + 1):
            request = plan(step + ahead)
            for row in request.rows.tolist():
                try:
                    decode_crop(self.shards.stored(row).image, self.shards.image_format, request.boxes[0], (1, 1))
                except ValueError as error:
                    if isinstance(error, UserError):
                        raise
                    self.bad[row] = str(error)
        if len(self.bad) == before:  # DALI's decoders are the stricter ones
            for row in plan(step).rows.tolist():
                self._try_alone(row)
        if len(self.bad) == before:
            raise UserError(
                f"DALI failed, and not on an image ({failure}): take the loader torch, or fewer workers"
            ) from failure

    def _try_alone(self, row: int) -> None:
        if row in self.bad:
            return
        whole = np.array([[0, 0, 1, 1]], np.float32)
        stretch = _Stretch(self, [Request(np.array([row], np.int64), whole)])
        try:
            list(stretch)
        except _Undecodable as error:
            self.bad[row] = f"an image that DALI cannot decode: {error}"
        finally:
            stretch.close()


class _Undecodable(Exception):
    """DALI has stopped: the first line of what it says that tells why."""


class _Stretch:
    """A pipeline over some steps, its first batch already on the way.

    Args:
        reader: whose set and sizes.
        requests: of the steps.
    """

    def __init__(self, reader: DaliReader, requests: Sequence[Request]) -> None:
        self._reader = reader
        self._bad = dict(reader.bad)
        self._requests = requests
        # Rows known as bad are not decoded again: others of their batch take their places here too.
        self._taken = [
            substitutes([slot for slot, row in enumerate(request.rows.tolist()) if row in self._bad], len(request.rows))
            for request in requests
        ]
        self._folder = tempfile.TemporaryDirectory(prefix="prism-fast-index-")
        self._pipeline = self._define(*self._write_indices(Path(self._folder.name)))
        self._pipeline.build()
        self._first: Any = self._run()

    def close(self) -> None:
        """Ends the pipeline and removes its index files."""
        self._first = None
        del self._pipeline
        self._folder.cleanup()

    def __iter__(self) -> Iterator[Fetched]:
        for number in range(len(self._requests)):
            outputs = self._first if number == 0 else self._run()
            if isinstance(outputs, _Undecodable):
                raise outputs
            yield self._fetched(number, outputs)

    def _run(self) -> Any:
        try:
            return self._pipeline.run()
        except RuntimeError as error:
            lines = [line.strip() for line in str(error).splitlines()]
            told = [
                line for line in lines if line and "Critical error" not in line and "used in the pipeline" not in line
            ]
            return _Undecodable((told or lines or ["no message"])[0])

    def _write_indices(self, folder: Path) -> tuple[list[str], list[str]]:
        """(archive, index file of one line) of each sample in order."""
        archives: list[str] = []
        indices: list[str] = []
        kind = self._reader.shards.image_format
        for request, taken in zip(self._requests, self._taken, strict=True):
            for row in request.rows[taken.numpy()].tolist():
                shard, number = self._reader.shards.locate(row)
                members = shard.places[number].tolist()
                (image, size), label, soft = members[0], members[_LABEL], members[_SOFT]
                end = max(0, size - EDGE_BYTES) // BLOCK * BLOCK  # DALI wants every offset at the beginning of a block
                parts = [
                    ("row", image - BLOCK, ROW_DIGITS),
                    ("head", image, EDGE_BYTES),
                    ("tail", image + end, size - end),
                    (kind, image, size),
                    ("label", *label),
                    ("soft", *soft),
                ]
                line = " ".join(f"{name} {offset} {length} {row}.{name}" for name, offset, length in parts)
                path = f"{folder}/{len(indices)}.idx"
                with open(path, "w") as file:
                    file.write(f"{INDEX_VERSION} 1\n{line}\n")
                archives.append(str(shard.path))
                indices.append(path)
        return archives, indices

    def _define(self, archives: list[str], indices: list[str]) -> Pipeline:
        reader = self._reader
        cuda = reader.device.type == "cuda"
        device_id = (reader.device.index or 0) if cuda else None
        batch = len(self._requests[0].rows)
        pipeline = Pipeline(batch, reader.threads, device_id, prefetch_queue_depth=_DEPTH)
        boxes = iter([request.boxes[taken.numpy()] for request, taken in zip(self._requests, self._taken, strict=True)])
        bytes_, long = types.UINT8, types.INT64
        with pipeline:
            members: Any = fn.readers.webdataset(
                paths=archives,
                index_paths=indices,
                ext=["row", "head", "tail", reader.shards.image_format, "label", "soft"],
                dtypes=[bytes_, bytes_, bytes_, bytes_, long, bytes_],
                missing_component_behavior="error",
            )
            row, head, tail, data, label, soft = members
            box = fn.external_source(source=boxes, batch=True, dtype=types.FLOAT, ndim=1)
            # crops.pixels_of
            size = fn.cast(fn.peek_image_shape(data)[0:2], dtype=types.FLOAT)
            extent = math.min(math.max(math.floor(box[2:4] * size + np.float32(0.5)), np.float32(1)), size)
            begin = math.max(math.min(math.floor(box[0:2] * size), size - extent), np.float32(0))
            image = fn.decoders.image_slice(
                data,
                start=fn.cast(begin, dtype=types.INT32),
                shape=fn.cast(extent, dtype=types.INT32),
                axis_names="HW",
                device="mixed" if cuda else "cpu",
                output_type=types.RGB,
            )
            image = fn.resize(image, size=list(reader.size), interp_type=types.INTERP_LINEAR, antialias=True)
            pipeline.set_outputs(row, head, tail, image, label, *([soft] if reader.soft else []))
        return pipeline

    def _fetched(self, number: int, outputs: Sequence[Any]) -> Fetched:
        row, head, tail, image, label, *soft = outputs
        asked, taken = self._requests[number].rows.tolist(), self._taken[number].tolist()
        read = [asked[slot] for slot in taken]
        shards = self._reader.shards
        bad = {slot: self._bad[place] for slot, place in enumerate(asked) if place in self._bad}
        labels = torch.from_numpy(np.array(label.as_array())).reshape(-1)
        for slot, place in enumerate(read):
            shard, member = shards.locate(place)
            if bytes(row.at(slot)) != b"%0*d" % (ROW_DIGITS, shard.keys[member]):
                raise shards.bad(place, "another name in the archive than in its index")
            if not 0 <= labels[slot] < shards.num_classes:
                raise shards.bad(place, f"label {int(labels[slot])} of {shards.num_classes} classes")
            size = int(shard.places[member, 0, 1])
            ends = bytes(head.at(slot)), bytes(tail.at(slot))[-EDGE_BYTES:]
            problem = cut_off(shards.image_format, *ends, size)
            if problem and place == asked[slot]:
                bad[slot] = self._reader.bad[place] = problem
        packed = [bytes(soft[0].at(slot)) for slot in range(len(read))] if soft else None
        return Fetched(self._pixels(image), labels, packed, bad)

    def _pixels(self, image: Any) -> Tensor:
        """[B,3,H,W] uint8, copied: DALI uses its buffers again."""
        if self._reader.device.type != "cuda":
            return torch.from_numpy(np.array(image.as_array())).permute(0, 3, 1, 2)
        from nvidia.dali.plugin.pytorch import feed_ndarray

        dense = image.as_tensor()
        pixels = torch.empty(dense.shape(), dtype=torch.uint8, device=self._reader.device)
        feed_ndarray(dense, pixels, cuda_stream=torch.cuda.current_stream(self._reader.device))
        return pixels.permute(0, 3, 1, 2)


def _close(coming: Future[_Stretch]) -> None:
    """Drops a stretch that nobody will read."""
    if coming.exception() is None:
        coming.result().close()
