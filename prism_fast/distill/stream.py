"""Training batches of a set that is read while the student learns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from prism_fast.config import resolve_device
from prism_fast.data.loader import LoadedBatch, ShardLoader, image_size
from prism_fast.data.shards import ShardSet
from prism_fast.distill.config import DistillConfig
from prism_fast.distill.targets import ViewLoader
from prism_fast.errors import UserError


@contextmanager
def open_stream(config: DistillConfig, shards: ShardSet, rank: int = 0, ranks: int = 1) -> Iterator[ShardLoader | None]:
    """The loader of a run that streams its set; None where the set is decoded into memory once.

    It streams where a loader or a crop size is asked for, and where the decoded images take more than ``ram_gib``.

    Raises:
        UserError: what :class:`ShardLoader` refuses, or views whose labels would have to be kept.
    """
    if config.loader == "auto" and config.stream.crop_size is None and _fits(config, shards):
        yield None
        return
    if config.targets == "online" and config.augment.views is not None:
        raise UserError(
            "augment.views keeps the teacher's answers in memory, which a streamed set has no room for: leave views out"
        )
    loader = ShardLoader(
        shards,
        config.augment,
        config.stream,
        name=config.loader,
        batch=min(config.batch, len(shards) // ranks) or config.batch,
        seed=config.seed,
        device=resolve_device(config.device),
        rank=rank,
        ranks=ranks,
        stored=config.targets == "stored",
    )
    try:
        yield loader
    finally:
        loader.close()


def _fits(config: DistillConfig, shards: ShardSet) -> bool:
    if not len(shards):
        raise UserError(f"{shards.path} holds no images: synthesize some first")
    height, width = image_size(shards)
    return 3 * height * width * len(shards) <= int(config.ram_gib * 2**30)


class StreamedBatches:
    """Views and targets in the order of a loader.

    Args:
        views: tells what the student should say about a view.
        loader: gives the views.
    """

    def __init__(self, views: ViewLoader, loader: ShardLoader) -> None:
        self._views, self._loader = views, loader

    def try_first(self) -> None:
        """Takes the first batch as training will, so that what cannot work is told before anything is written.

        Raises:
            UserError: targets that are missing or not finite, or what the loader refuses.
        """
        self._views.require_finite(self._labelled(self._loader.peek())[1])

    def take(self) -> tuple[Tensor, Tensor]:
        """The next images [B,3,H,W] in [0,1] and their targets, as :meth:`ViewLoader.load` gives them."""
        return self._labelled(self._loader.load())

    def position(self) -> Any:
        """JSON from which :meth:`seek` goes on with exactly the batch that is next now."""
        return self._loader.state()

    def seek(self, position: Any) -> None:
        """Goes to what :meth:`position` gave."""
        self._loader.restore(position)

    def _labelled(self, batch: LoadedBatch) -> tuple[Tensor, Tensor]:
        return batch.images, self._views.label(batch.images, batch.labels, batch.logits)
