"""Training batches of a set that is read while the student learns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prism_fast.config import resolve_device
from prism_fast.data.loader import LoadedBatch, ShardLoader, image_size
from prism_fast.data.shards import ShardSet
from prism_fast.distill.batches import Freeze, TrainingBatch, check_shares
from prism_fast.distill.config import DistillConfig
from prism_fast.distill.targets import ViewLoader
from prism_fast.distill.world import World
from prism_fast.errors import UserError
from prism_fast.synthesis.interruption import StopRequest


def streams(config: DistillConfig, shards: ShardSet) -> bool:
    """Whether a run reads its set while it trains, instead of decoding it into memory once.

    It does where a loader or a crop size is asked for, and where the decoded images take more than ``ram_gib``.

    Raises:
        UserError: no images, or none that can be decoded.
    """
    if config.loader != "auto" or config.stream.crop_size is not None:
        return True
    if not len(shards):
        raise UserError(f"{shards.path} holds no images: synthesize some first")
    height, width = image_size(shards)
    return 3 * height * width * len(shards) > int(config.ram_gib * 2**30)


@contextmanager
def open_stream(config: DistillConfig, shards: ShardSet, views: ViewLoader, world: World) -> Iterator[StreamedBatches]:
    """The batches of a run that streams its set.

    Args:
        config: the run.
        shards: the set.
        views: tells what the student should say about a view.
        world: which rank this is. The ranks read equal, disjoint parts of the set.

    Raises:
        UserError: what :class:`ShardLoader` refuses, a batch that cannot be shared out, or views whose labels would
            have to be kept.
    """
    if config.targets == "online" and config.augment.views is not None:
        raise UserError(
            "augment.views keeps the teacher's answers in memory, which a streamed set has no room for: leave views "
            "out, or store them with prism-fast student views and take targets 'views'"
        )
    step_images = check_shares(len(shards), config.batch, config.accumulate, world) if len(shards) else config.batch
    loader = ShardLoader(
        shards,
        config.augment,
        config.stream,
        name=config.loader,
        batch=step_images // (world.ranks * config.accumulate),
        seed=config.seed,
        device=world.device(config.device, resolve_device(config.device)),
        multiple=config.accumulate,
        rank=world.rank,
        ranks=world.ranks,
        stored=config.targets == "stored",
        views=views.stored_table,
    )
    try:
        yield StreamedBatches(config, views, loader)
    finally:
        loader.close()


class StreamedBatches:
    """Views and targets in the order of a loader: :class:`~prism_fast.distill.batches.Batches`.

    Args:
        config: the run.
        views: tells what the student should say about a view.
        loader: gives the views.
    """

    def __init__(self, config: DistillConfig, views: ViewLoader, loader: ShardLoader) -> None:
        self._views, self._loader = views, loader
        self.targets = config.targets
        self.images = len(views.source)
        self.num_classes, self.class_names = views.source.num_classes, views.source.class_names
        self.fingerprint = f"{views.fingerprint}/{loader.name}"  # loaders differ in rounding
        self.size = loader.order.batch
        self.epoch_batches = loader.steps_per_epoch

    def try_first(self) -> TrainingBatch:
        batch = self._answered(self._loader.peek())
        self._views.require_finite(batch.targets)
        return batch

    def wait(self, stop: StopRequest, freeze: Freeze) -> str | None:  # noqa: ARG002  all shards are there
        return None

    def take(self) -> TrainingBatch:
        return self._answered(self._loader.load())

    def position(self) -> Any:
        return self._loader.state()

    def seek(self, position: Any) -> None:
        self._loader.restore(position)

    def not_finite(self) -> str:
        return self._views.not_finite()

    def _answered(self, batch: LoadedBatch) -> TrainingBatch:
        return self._views.answer(batch.view, batch.rows, batch.images, batch.labels, batch.logits)
