"""Shards to training batches: crops read in a seeded order, augmented on the device."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from prism_fast.data.augment import Views, draw_views, make_view, mix_within
from prism_fast.data.augment_config import AugmentConfig
from prism_fast.data.choice import Reader, choose_loader
from prism_fast.data.corrupt import CorruptImages, substitutes
from prism_fast.data.crops import Fetched, Request, boxes_of
from prism_fast.data.loader_config import READERS, LoaderConfig
from prism_fast.data.order import Order, generator
from prism_fast.data.shards import ShardSet
from prism_fast.errors import UserError

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LoadedBatch:
    """A training batch of one rank.

    Attributes:
        images: the views, fp32 [B,3,H,W] in [0,1] on the device.
        labels: class indices asked for, int64 [B] on the device.
        logits: stored logits of the whole images [B,K], fp32 on the device; None unless they were asked for.
        rows: places in the set, int64 [B].
        view: number of the views: with the row and the seed it decides a view.
        boxes: fp32 [B,4], top, left, height and width of each crop as shares of its image.
        partner: int64 [B], number in the batch of the image that is mixed in; None without mixing.
    """

    images: Tensor
    labels: Tensor
    logits: Tensor | None
    rows: Tensor
    view: int
    boxes: Tensor
    partner: Tensor | None


class ShardLoader:
    """Batches of a set by step, read ahead while steps are asked for in turn.

    What a batch is depends on the configuration, the seed and the step alone; between loaders it differs in the
    rounding of decoders and resampling. A position is a step, so going on from one is exact.

    Args:
        shards: the set.
        augment: how views are made.
        config: how the set is read.
        name: ``auto``, ``dali`` or ``torch``.
        batch: images a step and rank.
        seed: of order and views.
        device: where the batches go.
        multiple: batches of an epoch are a multiple of this.
        rank, ranks: whose part of the set, of how many.
        stored: whether batches have the stored logits, which label whole images alone.
        views: gives the views of all images by their number, where they are known already: labels that are stored
            with the parameters of their views belong to exactly these batches, by row and view number. None draws them.

    Attributes:
        name: of the loader that was taken.
        order: in which the set is read.
        step: of the next batch.
        corrupt: images that cannot be decoded.

    Raises:
        UserError: a damaged, empty or too small set, more ranks than shards, no such loader, stored logits for views
            that they do not label.
    """

    def __init__(
        self,
        shards: ShardSet,
        augment: AugmentConfig,
        config: LoaderConfig,
        *,
        name: str = "auto",
        batch: int,
        seed: int,
        device: torch.device,
        multiple: int = 1,
        rank: int = 0,
        ranks: int = 1,
        stored: bool = False,
        views: Callable[[int], Views] | None = None,
    ) -> None:
        if stored and not augment.whole:
            raise UserError(
                "stored logits are those of whole images: pad 0, crop_scale 1, jitter 0, mixup 0 and cutmix 0"
            )
        sizes = tuple(shard.images for shard in shards.shards)
        self.order = Order(
            sizes=sizes, batch=batch, seed=seed, window=config.window, multiple=multiple, rank=rank, ranks=ranks
        )
        shards.open_indices()
        self.name = choose_loader(name, device)
        self.corrupt = CorruptImages(shards, config.max_corrupt)
        self.step = 0
        self._shards, self._augment, self._seed, self._device = shards, augment, seed, device
        size = (config.crop_size, config.crop_size) if config.crop_size else image_size(shards)
        augment.check_side(min(size))
        # two: batches read ahead may be of the next epoch
        self._views = lru_cache(maxsize=2)(views or partial(draw_views, augment, len(shards), seed))
        if views is not None and augment.mixes:
            raise UserError("stored views that mix images cannot be streamed: mixup 0 and cutmix 0")
        self._reader: Reader = READERS.load(self.name)(
            shards, size, soft=stored, workers=config.workers_here(), device=device
        )
        self._batches: Iterator[Fetched] | None = None
        self._ahead: LoadedBatch | None = None

    @property
    def steps_per_epoch(self) -> int:
        """The same on every rank and in every epoch."""
        return self.order.steps_per_epoch

    def load(self, step: int | None = None) -> LoadedBatch:
        """The batch of a step, by default the next one; any other begins to read anew from there.

        Raises:
            UserError: a damaged archive, or too many images that cannot be decoded; they are named.
        """
        if step is not None and step != self.step:
            self.close()
            self.step = step
        batch = self.peek()
        self._ahead = None
        self.step += 1
        return batch

    def peek(self) -> LoadedBatch:
        """The next batch, which stays the next one.

        Raises:
            UserError: as for :meth:`load`.
        """
        if self._ahead is None:
            self._ahead = self._read()
        return self._ahead

    def state(self) -> dict[str, Any]:
        """The position, as JSON values."""
        return {"step": self.step, "corrupt": sorted(self.corrupt.rows)}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from what :meth:`state` gave."""
        self.close()
        self.step = state["step"]
        self.corrupt.rows = set(state["corrupt"])

    def close(self) -> None:
        """Stops reading ahead."""
        if self._batches is not None:
            self._batches.close()  # type: ignore[attr-defined]  # a generator
        self._batches = self._ahead = None

    def _read(self) -> LoadedBatch:
        if self._batches is None:
            self._batches = self._reader.read(self._request, self.step)
        return self._finish(next(self._batches))

    def _view(self, step: int) -> int:
        epoch = step // self.steps_per_epoch
        return epoch if self._augment.views is None else epoch % self._augment.views

    def _request(self, step: int) -> Request:
        rows = self.order.rows(step)
        return Request(rows.numpy(), boxes_of(self._views(self._view(step)).box, rows))

    def _finish(self, fetched: Fetched) -> LoadedBatch:
        request, views = self._request(self.step), self._views(self._view(self.step))
        read = (self.step + 1) * len(request.rows)
        for slot, why in fetched.bad.items():
            self.corrupt.add(int(request.rows[slot]), why, read)
        taken = substitutes(fetched.bad, len(request.rows))  # the one index of all that a batch holds
        rows, boxes = torch.from_numpy(request.rows)[taken], torch.from_numpy(request.boxes)[taken]
        pixels = fetched.images.to(self._device, non_blocking=True)
        if fetched.bad:
            pixels = pixels[taken.to(self._device)]
        images = pixels.float().div_(255)
        images = make_view(images, dataclasses.replace(views, box=None), rows, self._augment.pad)
        # partners of the batch: others would have to be read for it
        source = generator(self._seed, "partner", self.step, self.order.rank)
        images, partner = mix_within(images, views, rows, source)
        return LoadedBatch(
            images=images,
            labels=fetched.labels[taken].to(self._device, non_blocking=True),
            logits=None if fetched.soft is None else self._logits(fetched.soft, taken, rows),
            rows=rows,
            view=self._view(self.step),
            boxes=boxes,
            partner=partner,
        )

    def _logits(self, soft: Any, taken: Tensor, rows: Tensor) -> Tensor:
        pairs = zip(taken.tolist(), rows.tolist(), strict=True)
        return torch.stack([self._shards.logits(row, soft[slot]).float() for slot, row in pairs]).to(self._device)


def image_size(shards: ShardSet) -> tuple[int, int]:
    """Height and width of the first image that decodes.

    Raises:
        UserError: none does, or an archive is damaged.
    """
    from prism_fast.synthesis.images import read_image

    for row in range(len(shards)):
        try:
            image = read_image(shards.stored(row).image, shards.image_format)
        except UserError:
            raise
        except ValueError:
            continue
        return image.height, image.width
    raise UserError(f"no image of {shards.path} can be decoded: synthesize the set again")
