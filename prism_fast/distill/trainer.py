"""Distillation of a student: ``distill`` from a shard set, ``distill_images`` from images in memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from prism_fast.config import content_hash, resolve_device, save_yaml
from prism_fast.data.augment_config import AugmentConfig
from prism_fast.data.corrupt import CorruptImages, DecodedDataset, substitutes
from prism_fast.data.loader import image_size
from prism_fast.data.shards import ShardDataset, ShardSet
from prism_fast.data.sources import load_source_models
from prism_fast.distill.batches import Batches, RowBatches
from prism_fast.distill.config import DistillConfig, LossConfig, ScheduleConfig
from prism_fast.distill.curve import curves
from prism_fast.distill.drawn import DrawnSet, drawn_config, without_current_student
from prism_fast.distill.follow import FollowedSet
from prism_fast.distill.growing import GrowingBatches, GrowingSet
from prism_fast.distill.host_memory import keep_freed_memory
from prism_fast.distill.images import ImageSource, LazyImages, MemoryImages, open_images
from prism_fast.distill.loop import Run
from prism_fast.distill.refusals import refused_alike
from prism_fast.distill.report import METRICS, RUN, DistillReport, claim
from prism_fast.distill.stream import open_stream, streams
from prism_fast.distill.targets import ViewLoader
from prism_fast.distill.world import World, joined, this_world
from prism_fast.errors import UserError
from prism_fast.progress import ProgressFactory, silent
from prism_fast.synthesis.interruption import stop_on_signals
from prism_fast.synthesis.job import prepare

if TYPE_CHECKING:
    from prism_fast.teachers.base import Teacher

__all__ = [
    "AugmentConfig",
    "DistillConfig",
    "DistillReport",
    "LossConfig",
    "ScheduleConfig",
    "distill",
    "distill_images",
    "train",
    "train_batches",
]


def distill(config: DistillConfig, *, progress: ProgressFactory = silent) -> DistillReport:
    """Trains the student on the shard set ``config.data``; reads no other image. See :func:`train`.

    Raises:
        UserError: no such set, or a damaged one, or an incomplete one that is not to be followed; no such teacher; what
            :func:`train` refuses.
    """
    from prism_fast.teachers.extractors import load_observer

    world = this_world()
    device = world.device(config.device, resolve_device(config.device))
    with ExitStack() as reading:
        with refused_alike(world.local_rank):
            batches: Batches
            shards = None if config.grows else ShardSet(config.data)
            teacher = load_observer(config.teacher, device) if config.targets == "online" else None
            if shards is None:
                batches = GrowingBatches(config, growing_set(config, world, progress), teacher, device, world)
            elif streams(config, shards):
                source = read_lazily(shards)
                views = ViewLoader(config, source, teacher, device)
                batches = reading.enter_context(open_stream(config, shards, views, world))
            else:
                batches = RowBatches(config, ViewLoader(config, open_set(config, shards), teacher, device), world)
        return train_batches(config, batches, teacher, progress)


def growing_set(config: DistillConfig, world: World, progress: ProgressFactory = silent) -> GrowingSet:
    """The set of a run whose ``data`` are drawn in memory or still being written.

    Raises:
        UserError: no such folder, recipe or file, or one that cannot be used; several ranks that would each draw.
    """
    if config.recipe_drawn is None:
        return FollowedSet(config.data, config.replay, ram_bytes=int(config.ram_gib * 2**30))
    if world.ranks > 1:
        raise UserError(
            f"images are drawn in memory by one process, not by each of {world.ranks} ranks: run prism-fast synthesize "
            "on devices of its own and follow its folder (--data FOLDER --follow), or start without torchrun"
        )
    synthesis, student_weight = without_current_student(
        drawn_config(config.recipe_drawn, resolve_device(config.device))
    )
    return DrawnSet(config, prepare(synthesis, Path(config.out), load=load_source_models), student_weight, progress)


def read_lazily(shards: ShardSet) -> LazyImages:
    """The images of a shard set, each decoded when it is needed."""
    return LazyImages(ShardDataset(shards), shards.num_classes, shards.class_names, shards.fingerprint)


def open_set(config: DistillConfig, shards: ShardSet) -> ImageSource:
    """The images of a shard set, decoded into memory where they fit.

    In memory, another image takes the place of one that cannot be decoded; otherwise that is an error when it is read.

    Raises:
        UserError: an empty or damaged set, or too many images that cannot be decoded; they are named.
    """
    if not len(shards):
        raise UserError(f"{shards.path} holds no images: synthesize some first")
    decoded = DecodedDataset(shards, image_size(shards))
    source = open_images(
        decoded,
        shards.num_classes,
        ram_bytes=int(config.ram_gib * 2**30),
        class_names=shards.class_names,
        fingerprint=shards.fingerprint,
    )
    if not isinstance(source, MemoryImages):
        return read_lazily(shards)
    corrupt = CorruptImages(shards, config.stream.max_corrupt)
    for row, why in sorted(decoded.bad.items()):
        corrupt.add(row, why, len(shards))
    source.instead = substitutes(decoded.bad, len(shards)) if decoded.bad else None
    return source


def distill_images(
    config: DistillConfig,
    images: Tensor,
    labels: Tensor,
    teacher: Teacher | None,
    *,
    class_names: Sequence[str] | None = None,
    progress: ProgressFactory = silent,
) -> DistillReport:
    """Trains the student on images in memory, by the same loop: the study's real-data ceiling, or a user's own images.

    Args:
        config: the run; ``data`` only names the images.
        images: uint8 [N,3,H,W].
        labels: class indices int64 [N].
        teacher: None only where targets are ``labels``.
    """
    num_classes = teacher.num_classes if teacher is not None else int(labels.max()) + 1
    source = MemoryImages(images, labels, num_classes=num_classes, class_names=class_names)
    return train(config, source, teacher, progress)


def train(
    config: DistillConfig, source: ImageSource, teacher: Teacher | None, progress: ProgressFactory = silent
) -> DistillReport:
    """Trains the student on ``source`` and writes the run's folder ``config.out``.

    A finished run of the same configuration, images and teacher is returned as it is; an interrupted one continues.

    Raises:
        UserError: another run's folder; class counts that do not fit; a loss that is not finite; no room.
        Interrupted: SIGTERM or Ctrl-C ended it after a step, which is saved.
    """
    world = this_world()
    device = world.device(config.device, resolve_device(config.device))
    with refused_alike(world.local_rank):
        batches = RowBatches(config, ViewLoader(config, source, teacher, device), world)
    return train_batches(config, batches, teacher, progress)


def train_batches(
    config: DistillConfig, batches: Batches, teacher: Teacher | None, progress: ProgressFactory = silent
) -> DistillReport:
    """As :func:`train`, on batches from elsewhere; ``teacher`` is the one that answers in them.

    Under torchrun every rank calls this with its own share; the first writes, and all see the folder.
    """
    world = this_world()
    identity = content_hash([config.identity(), batches.fingerprint, teacher.fingerprint if teacher else None])
    out = Path(config.out)
    if config.resume and not os.path.exists(out / RUN):
        with refused_alike(world.local_rank):
            raise UserError(f"{out} holds no run that could be resumed: leave out --resume to begin one")
    if os.path.exists(out / RUN) and os.path.exists(out / METRICS):
        claim(out, identity)
        return DistillReport.load(out)
    run = Run(config, batches, identity, world)
    open_curve = curves(config, identity, world)
    if run.device.type == "cpu":
        keep_freed_memory()
    with stop_on_signals() as stop, joined(world, run.device, config.rank_timeout_s):
        if world.writes:
            claim(out, identity)
            save_yaml(config, out / "config.yaml")
        world.any(False)  # the others look into the folder once it is the first's
        run.resume()
        run.train(progress, f"distill {config.student}", stop, open_curve)
        return run.finish()
