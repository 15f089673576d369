"""Distillation of a student: ``distill`` from a shard set, ``distill_images`` from images in memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from prism_fast.config import content_hash, resolve_device, save_yaml
from prism_fast.data.augment_config import AugmentConfig
from prism_fast.distill.config import DistillConfig
from prism_fast.distill.images import ImageSource, LazyImages, MemoryImages, open_images
from prism_fast.distill.loop import Run
from prism_fast.distill.report import METRICS, RUN, DistillReport, claim
from prism_fast.distill.stream import open_stream
from prism_fast.progress import ProgressFactory, silent
from prism_fast.synthesis.interruption import stop_on_signals

if TYPE_CHECKING:
    from prism_fast.data.loader import ShardLoader
    from prism_fast.teachers.base import Teacher

__all__ = ["AugmentConfig", "DistillConfig", "DistillReport", "distill", "distill_images", "train"]


def distill(config: DistillConfig, *, progress: ProgressFactory = silent) -> DistillReport:
    """Trains the student on the shard set ``config.data``; reads no other image. See :func:`train`.

    Raises:
        UserError: no such set, or an incomplete or damaged one; no such teacher; what :func:`train` refuses.
    """
    from prism_fast.data.shards import ShardDataset, ShardSet
    from prism_fast.teachers.load import load_teacher

    shards = ShardSet(config.data)
    teacher = load_teacher(config.teacher, resolve_device(config.device)) if config.targets == "online" else None
    with open_stream(config, shards) as stream:
        if stream is not None:
            lazy = LazyImages(ShardDataset(shards), shards.num_classes, shards.class_names, shards.fingerprint)
            return train(config, lazy, teacher, progress, stream)
    source = open_images(
        ShardDataset(shards),
        shards.num_classes,
        ram_bytes=int(config.ram_gib * 2**30),
        class_names=shards.class_names,
        fingerprint=shards.fingerprint,
    )
    return train(config, source, teacher, progress)


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
    config: DistillConfig,
    source: ImageSource,
    teacher: Teacher | None,
    progress: ProgressFactory = silent,
    stream: ShardLoader | None = None,
) -> DistillReport:
    """Trains the student on ``source``, read by ``stream`` where there is one, and writes the run's folder.

    A finished run of the same configuration, images and teacher is returned as it is; an interrupted one continues.

    Raises:
        UserError: another run's folder; class counts that do not fit; a loss that is not finite; no room.
        Interrupted: SIGTERM or Ctrl-C ended it after a step, which is saved.
    """
    read = [stream.name] if stream is not None else []  # loaders differ in rounding
    identity = content_hash([config.identity(), source.fingerprint, teacher.fingerprint if teacher else None, *read])
    out = Path(config.out)
    if os.path.exists(out / RUN) and os.path.exists(out / METRICS):
        claim(out, identity)
        return DistillReport.load(out)
    run = Run(config, source, teacher, identity, stream)
    claim(out, identity)
    save_yaml(config, out / "config.yaml")
    run.resume()
    with stop_on_signals() as stop:
        run.train(progress, f"distill {config.student}", stop)
        return run.finish()
