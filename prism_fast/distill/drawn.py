"""Images straight from the sampler, in the process that trains on them: nothing of them is written."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from prism_fast.distill.config import DistillConfig
from prism_fast.distill.growing import Part
from prism_fast.distill.images import MemoryImages
from prism_fast.distill.report import RUN
from prism_fast.errors import UserError
from prism_fast.progress import NoBar, ProgressFactory, silent
from prism_fast.recipes.command_line import CommandLine
from prism_fast.recipes.fields import build
from prism_fast.synthesis.config import SynthesisConfig
from prism_fast.synthesis.drawer import Drawer, Drawn, encode_lossy
from prism_fast.synthesis.interruption import StopRequest
from prism_fast.synthesis.job import Job
from prism_fast.synthesis.pilot import load_pilot, save_pilot
from prism_fast.synthesis.soft import pack_logits, unpack_logits
from prism_fast.synthesis.tally import shard_stats
from prism_fast.synthesis.thresholds import Thresholds

_FILES = (".yaml", ".yml")


def drawn_config(recipe: str, device: torch.device) -> SynthesisConfig:
    """What ``prism-fast synthesize`` would make of a recipe's name, or of a file of settings.

    Raises:
        UserError: no such recipe or file, or one that cannot be used.
    """
    line = CommandLine(program="prism-fast distill", description="", kind=SynthesisConfig, recipe="prism")
    fields = line.parse(["--config" if Path(recipe).suffix in _FILES else "--recipe", recipe]).fields
    return build(SynthesisConfig, {**fields, "device": str(device)})


class DrawnSet:
    """The plan of a synthesis, drawn as it is needed: :class:`~prism_fast.distill.growing.GrowingSet`.

    Its rows are those of the shards that the same configuration would make here, bit for bit; of a lossy format what a
    reader of the files would see. They can be drawn again: a resumed run does so with those of its window.

    Args:
        config: the run.
        job: the synthesis; nothing is written into its folder.
        progress: how the pilot's progress is shown.
    """

    def __init__(self, config: DistillConfig, job: Job, progress: ProgressFactory = silent) -> None:
        self._config, self._job, self._progress = config, job, progress
        self._folder = Path(config.out)
        self._pilot: Any = None
        self._tally = job.tally()
        self.rows = len(job.plan)
        self.num_classes = len(job.plan.counts)
        self.class_names: tuple[str, ...] | None = tuple(job.plan.class_names)
        self.fingerprint = job.request.key

    def part(self, rows: range, stop: StopRequest) -> Part:
        """Draws some rows.

        Raises:
            Interrupted: a stop was asked for meanwhile.
            UserError: too many of them are not finite or rejected, or they do not fit in memory.
        """
        drawer = replace(self._drawer, stop=stop)
        self._keep_pilot()
        records: list[dict[str, Any]] = []
        images: dict[int, tuple[Drawn, int]] = {}

        def settle(record: dict[str, Any], drawn: Drawn | None) -> None:
            records.append(record)
            if drawn is not None:
                images[record["index"]] = drawn, record["class_index"]

        draws = drawer.draw([self._job.plan.row(row) for row in rows], settle)
        records.sort(key=lambda record: int(record["index"]))
        stats = shard_stats(rows.start, records, draws.guidances, drawer.config_hash, draws.replaced)
        self._tally.add(rows.start, stats)
        self._tally.check()
        return self._part(dict(sorted(images.items())))

    def _part(self, images: dict[int, tuple[Drawn, int]]) -> Part:
        keys = torch.tensor(list(images), dtype=torch.int64)
        if not images:
            return Part(rows=keys, source=None)
        pixels = torch.stack([drawn.image for drawn, _ in images.values()])
        self._refuse_too_large(pixels[0].nbytes)
        top_k = self._job.config.soft_top_k
        logits = [unpack_logits(pack_logits(d.logits, top_k), self.num_classes, top_k) for d, _ in images.values()]
        source = MemoryImages(
            pixels,
            torch.tensor([label for _, label in images.values()]),
            torch.stack([torch.from_numpy(row) for row in logits]),
            num_classes=self.num_classes,
            class_names=self.class_names,
            fingerprint=self.fingerprint,
        )
        return Part(rows=keys, source=source)

    def _refuse_too_large(self, image_bytes: int) -> None:
        held = min(self.rows, self._config.replay.window)
        if held * image_bytes > self._config.ram_gib * 2**30:
            raise UserError(
                f"{held} images of {image_bytes} bytes are {held * image_bytes / 2**30:.1f} GiB, more than ram_gib "
                f"{self._config.ram_gib:g}: lower replay.window, or raise ram_gib"
            )

    @cached_property
    def _drawer(self) -> Drawer:
        """With what the pilot found, where the synthesis needs one."""
        job, found = self._job, Thresholds()
        if job.config.needs_pilot:
            found_before = load_pilot(self._folder, job.request.key)
            if found_before is None:
                self._pilot = job.draw_pilot(StopRequest(), self._progress)
            found = found_before or self._pilot[0]
        drawer = job.drawer(found, job.request.config_hash(found.facts()), StopRequest(), NoBar())
        return replace(drawer, encode=encode_lossy)

    def _keep_pilot(self) -> None:
        """A resumed run need not draw it again. The folder is the run's once training begins."""
        if self._pilot is not None and (self._folder / RUN).exists():
            save_pilot(self._folder, self._job.request.key, *self._pilot)
            self._pilot = None
