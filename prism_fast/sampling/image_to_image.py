"""Rows that start from images: which image, how much of it is left, and batches of rows that begin at one step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from prism_fast.errors import UserError
from prism_fast.ops.resample_filter import filter_matrix
from prism_fast.sampling.batch import SampleBatch
from prism_fast.sampling.config import SamplerConfig
from prism_fast.sampling.image_to_image_config import ImageToImageConfig, first_step, source_of, strength_of
from prism_fast.sampling.pending import Pending
from prism_fast.sampling.start import Start, StartingSampler


class Sources(Protocol):
    """Images of the classes.

    Attributes:
        fingerprint: 16 hex digits that change with any image or its class.
    """

    fingerprint: str

    def count(self, class_index: int) -> int:
        """How many images there are of a class."""
        ...

    def image(self, class_index: int, place: int) -> Tensor:
        """uint8 [3, H, W]: one of them, 0 <= place < count."""
        ...


def source_images(
    sources: Sources, class_indices: Sequence[int], seeds: Sequence[int], size: tuple[int, int]
) -> Tensor:
    """The images that rows start from, [n, 3, H, W] in [0, 1] at ``size``.

    Raises:
        UserError: a class has none, or one is of another aspect ratio.
    """
    return torch.stack([_source(sources, *row, size) for row in zip(class_indices, seeds, strict=True)])


def _source(sources: Sources, class_index: int, seed: int, size: tuple[int, int]) -> Tensor:
    count = sources.count(class_index)
    if not count:
        raise UserError(f"no source of class {class_index}: add images of it, or ask for none of this class")
    return fitted(sources.image(class_index, source_of(count, class_index, seed)), size)


def fitted(image: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 [3, H, W] as [3, *size] in [0, 1]: resized by the antialiased bilinear filter where it is of another size.

    Raises:
        UserError: it is of another aspect ratio; nothing is cropped or stretched.
    """
    pixels, source = image.double() / 255, (int(image.shape[1]), int(image.shape[2]))
    if source[0] * size[1] != source[1] * size[0]:
        raise UserError(
            f"a source of {source[1]}x{source[0]} pixels, the pipeline makes {size[1]}x{size[0]}: crop the sources to "
            "that shape; they are resized, never cropped or stretched"
        )
    if source != size:
        rows, columns = (filter_matrix(before, after) for before, after in zip(source, size, strict=True))
        pixels = rows @ pixels @ columns.T
    return pixels.float()


class ImageToImageSampler:
    """Rows to variations of their sources; source and strength of a row follow from its class and seed alone.

    Rows of one strength make a batch of ``compute_batch`` rows of their own, padded: nothing of a row depends on the
    strengths beside it, and no step is computed for a row that does not take it. Whoever hands over batches of one
    strength (:class:`~prism_fast.synthesis.waiting.Waiting` does) pays for no padding.

    Args:
        sampler: of the pipeline, for rows that begin at one step.
        config: with ``image_to_image``.
        sources: to start from.
        size: (height, width) of the pipeline's images.

    Raises:
        UserError: a strength so low that no step is taken.
    """

    def __init__(
        self, sampler: StartingSampler, config: SamplerConfig, sources: Sources, size: tuple[int, int]
    ) -> None:
        self._sampler, self._sources, self._size, self._steps = sampler, sources, size, config.steps
        self._config = config.image_to_image or ImageToImageConfig()
        firsts = {first_step(strength, config.steps) for strength in self._config.strengths}
        self._guided = tuple(sorted({step for first in firsts for step in sampler.guided_from(first)}))

    def sample(self, prompts: Sequence[str], class_indices: Sequence[int], seeds: Sequence[int]) -> SampleBatch:
        """As :meth:`begin`, and waits."""
        return self.begin(prompts, class_indices, seeds).result()

    def begin(self, prompts: Sequence[str], class_indices: Sequence[int], seeds: Sequence[int]) -> Pending:
        """Up to ``compute_batch`` rows, in the order asked for.

        Of the batch, ``guided_steps`` are those of all strengths; where a step does not guide a row, its energy
        and gate are not a number.

        Raises:
            UserError: as the sampler's, or no source of a class, or one of another aspect ratio.
        """
        groups: dict[int, list[int]] = {}
        for place, seed in enumerate(seeds):
            groups.setdefault(first_step(strength_of(self._config, seed), self._steps), []).append(place)
        parts = []
        for step, places in groups.items():
            classes, own = [class_indices[place] for place in places], [seeds[place] for place in places]
            start = Start(step=step, images=source_images(self._sources, classes, own, self._size))
            parts.append(self._sampler.begin([prompts[place] for place in places], classes, own, start))
        order = torch.tensor([place for places in groups.values() for place in places]).argsort()

        def finish() -> SampleBatch:
            return _merged([part.result() for part in parts], order, self._guided)

        return Pending(images=torch.cat([part.images for part in parts])[order], finish=finish)


def _merged(batches: Sequence[SampleBatch], order: Tensor, guided: tuple[int, ...]) -> SampleBatch:
    """Batches of rows that begin at several steps as one, in ``order``."""
    return replace(
        batches[0],
        images=torch.cat([batch.images for batch in batches])[order],
        latents=torch.cat([batch.latents for batch in batches])[order],
        guided_steps=guided,
        energy=_at(guided, ((batch.guided_steps, batch.energy) for batch in batches))[:, order],
        gate=_at(guided, ((batch.guided_steps, batch.gate) for batch in batches))[:, order],
        skipped=torch.cat([batch.skipped for batch in batches])[order],
    )


def _at(guided: tuple[int, ...], traces: Iterable[tuple[tuple[int, ...], Tensor]]) -> Tensor:
    """Traces [S, n] of some steps each as one [len(guided), sum of n]; not a number where a trace has no such step."""
    columns = []
    for steps, trace in traces:
        column = torch.full((len(guided), trace.shape[1]), torch.nan)
        column[[guided.index(step) for step in steps]] = trace
        columns.append(column)
    return torch.cat(columns, dim=1)
