"""Images straight from the sampler, in the process that trains on them: nothing of them is written."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from prism_fast.config import content_hash
from prism_fast.distill.batches import Freeze
from prism_fast.distill.config import DistillConfig
from prism_fast.distill.growing import Part
from prism_fast.distill.images import MemoryImages
from prism_fast.distill.report import GUIDES, RUN, SNAPSHOTS
from prism_fast.errors import UserError
from prism_fast.progress import NoBar, ProgressFactory, silent
from prism_fast.recipes.command_line import CommandLine
from prism_fast.recipes.fields import build
from prism_fast.records import write_json
from prism_fast.sampling.energy import CURRENT_STUDENT
from prism_fast.synthesis.config import SynthesisConfig
from prism_fast.synthesis.drawer import Drawer, Drawn, encode_lossy
from prism_fast.synthesis.interruption import StopRequest
from prism_fast.synthesis.job import Job
from prism_fast.synthesis.pilot import load_pilot, save_pilot
from prism_fast.synthesis.soft import pack_logits, unpack_logits
from prism_fast.synthesis.tally import shard_stats
from prism_fast.synthesis.thresholds import Thresholds
from prism_fast.teachers.own import is_own

_FILES = (".yaml", ".yml")


def drawn_config(recipe: str, device: torch.device) -> SynthesisConfig:
    """What ``prism-fast synthesize`` would make of a recipe's name, or of a file of settings.

    Raises:
        UserError: no such recipe or file, or one that cannot be used.
    """
    line = CommandLine(program="prism-fast distill", description="", kind=SynthesisConfig, recipe="prism")
    fields = line.parse(["--config" if Path(recipe).suffix in _FILES else "--recipe", recipe]).fields
    return build(SynthesisConfig, {**fields, "device": str(device)})


def without_current_student(config: SynthesisConfig) -> tuple[SynthesisConfig, float]:
    """``config`` without the current student in its energy, and that student's weight; 0 where it is in none.

    Raises:
        UserError: the gate would compare an energy that changes with thresholds that do not.
    """
    guidance = config.sampler.guidance
    if guidance is None or guidance.student != CURRENT_STUDENT:
        return config, 0.0
    if guidance.gate != "none":
        raise UserError(
            f"guidance.student {CURRENT_STUDENT} changes the energy from segment to segment, which the thresholds of a "
            "pilot do not follow: set guidance.gate none"
        )
    try:
        rest = replace(guidance, student=None, student_weight=0.0)
    except ValueError as error:
        raise UserError(
            f"beside guidance.student {CURRENT_STUDENT} another weight has to be above 0: {error}"
        ) from error
    return replace(config, sampler=replace(config.sampler, guidance=rest)), guidance.student_weight


class DrawnSet:
    """The plan of a synthesis, drawn as it is needed: :class:`~prism_fast.distill.growing.GrowingSet`.

    Its rows are those of the shards that the same configuration would make here, bit for bit; of a lossy format what a
    reader of the files would see. They can be drawn again: a resumed run does so with those of its window.

    Where the student guides them, it is frozen before a segment is drawn, and the segment remembers its fingerprint.

    Args:
        config: the run.
        job: the synthesis; nothing is written into its folder.
        student_weight: of the current student in the energy of the guidance; 0: it takes no part in it.
        progress: how the pilot's progress is shown.

    Raises:
        UserError: a student that cannot be frozen so that guidance can load it.
    """

    def __init__(
        self, config: DistillConfig, job: Job, student_weight: float = 0.0, progress: ProgressFactory = silent
    ) -> None:
        self._config, self._job, self._progress = config, job, progress
        self._student_weight = student_weight
        self._guides: dict[int, str] = {}
        """First row of a segment to the fingerprint of the student that guides it."""
        self._guided: tuple[str, Drawer] | None = None
        self._folder = Path(config.out)
        self._pilot: Any = None
        self._tally = job.tally()
        self.rows = len(job.plan)
        self.num_classes = len(job.plan.counts)
        self.class_names: tuple[str, ...] | None = tuple(job.plan.class_names)
        self.fingerprint = job.request.key
        if student_weight:
            if is_own(config.student):
                raise UserError(
                    f"guidance.student {CURRENT_STUDENT} needs a student that a folder alone describes: take one of "
                    f"timm's architectures instead of {config.student}, or leave the student out of the energy"
                )
            self.fingerprint = content_hash([job.request.key, student_weight, config.replay.freeze_every])

    def part(self, rows: range, stop: StopRequest, freeze: Freeze | None = None) -> Part:
        """Draws some rows; those of a segment that was drawn before, guided by the same student as then.

        Raises:
            Interrupted: a stop was asked for meanwhile.
            UserError: too many of them are not finite or rejected, or they do not fit in memory.
        """
        drawer = self._drawer
        if self._student_weight and freeze is not None and self._takes_part(rows):
            drawer = self._guided_by(self._guide(rows, freeze))
        self._keep_pilot()
        records: list[dict[str, Any]] = []
        images: dict[int, tuple[Drawn, int]] = {}

        def settle(record: dict[str, Any], drawn: Drawn | None) -> None:
            records.append(record)
            if drawn is not None:
                images[record["index"]] = drawn, record["class_index"]

        draws = replace(drawer, stop=stop).draw([self._job.plan.row(row) for row in rows], settle)
        records.sort(key=lambda record: int(record["index"]))
        stats = shard_stats(rows.start, records, draws.guidances, drawer.config_hash, draws.replaced)
        self._tally.add(rows.start, stats)
        self._tally.check()
        return self._part(dict(sorted(images.items())))

    def state(self) -> Any:
        """Which student guides which segment."""
        return list(self._guides.items())

    def restore(self, state: Any) -> None:
        """Goes back to what :meth:`state` gave."""
        self._guides = {int(first): str(student) for first, student in state}

    def _takes_part(self, rows: range) -> bool:
        """Whether the student guides a segment: enough images of each class come before it."""
        guidance = self._job.config.sampler.guidance
        after = 0 if guidance is None else guidance.student_after
        return rows.start >= after * sum(count > 0 for count in self._job.plan.counts)

    def _guide(self, rows: range, freeze: Freeze) -> str:
        """The fingerprint of the student that guides a segment, frozen now where the segment is new."""
        if rows.start not in self._guides:
            anew = len(self._guides) % self._config.replay.freeze_every == 0
            self._guides[rows.start] = freeze().name if anew else list(self._guides.values())[-1]
            told = [{"first_row": first, "student": student} for first, student in self._guides.items()]
            write_json(self._folder / GUIDES, told)
        return self._guides[rows.start]

    def _guided_by(self, student: str) -> Drawer:
        """With the energy of a frozen student in its guidance. Labels and filter do not know of it."""
        if self._guided is None or self._guided[0] != student:
            sampler, name = self._job.config.sampler, f"{self._folder / SNAPSHOTS / student}@{student}"
            if sampler.guidance is None:
                raise RuntimeError("a student in an energy that does not guide")
            guidance = replace(sampler.guidance, student=name, student_weight=self._student_weight, student_after=0)
            made = self._job.loaded.make_sampler(replace(sampler, guidance=guidance), None)
            self._guided = student, replace(self._drawer, sampler=made)
        return self._guided[1]

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
