"""``prism-fast invert``: a folder of inverted images for each class, group by group; nothing is made twice."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prism_fast.config import canonical, environment, make_own_folder, replacing, resolve_device, unwritable
from prism_fast.errors import UserError
from prism_fast.inversion.config import InversionConfig
from prism_fast.inversion.group import group_rows, invert_group
from prism_fast.inversion.record import RECORD_FILE, check_same, read_record
from prism_fast.progress import Bar, ProgressFactory
from prism_fast.progress import progress as show_progress
from prism_fast.synthesis.images import encode_image
from prism_fast.synthesis.interruption import StopRequest, stop_on_signals
from prism_fast.teachers.eager import EagerTeacher
from prism_fast.teachers.load import load_teacher


@dataclass(frozen=True, kw_only=True)
class InversionReport:
    """What a run left behind.

    Args:
        out: the folder.
        images: in it.
        classes: K.
        agreement: share of the images that the teacher takes for their class.
        seconds: that all groups took, those of earlier runs included.
        made: images that this run made.
    """

    out: Path
    images: int
    classes: int
    agreement: float
    seconds: float
    made: int


def invert(config: InversionConfig, out: str | Path, progress: ProgressFactory = show_progress) -> InversionReport:
    """Makes the images, or those that are still missing; SIGTERM and Ctrl-C end it after the step in progress.

    Row r shows class r mod K, so that a group has images of all classes. A group that is stopped, or of which a file is
    gone, begins again, and ends with the same bytes.

    Raises:
        UserError: the teacher cannot be loaded or has no batch norm, or ``out`` holds something else. Nothing was
            written then.
        Interrupted: a signal stopped it.
    """
    device = resolve_device(config.device)
    teacher = load_teacher(config.teacher, device)
    if not isinstance(teacher, EagerTeacher) or not teacher.batch_norms():
        raise UserError(
            f"teacher {config.teacher!r} has no batch-norm layer with running statistics, which images are inverted "
            "from: take one network that has some, as ResNets do"
        )
    height, width = teacher.input_size
    if config.rotation_weight and height != width:
        raise UserError(f"images of {width}x{height} pixels cannot be rotated: set rotation_weight to 0")
    folder = Path(out).expanduser()
    made_from = {
        "config": {name: value for name, value in canonical(config).items() if name not in ("device", "teacher")},
        "teacher": teacher.fingerprint,
        "environment": environment(device, "float32"),
    }
    with stop_on_signals() as stop:
        return _Run(config, teacher, folder, _begun(folder, made_from), stop).run(progress)


def _begun(folder: Path, made_from: dict[str, Any]) -> dict[str, Any]:
    """The record of a folder: its own, or a new one of nothing yet."""
    found = read_record(folder)
    if found is not None:
        check_same(folder, found, made_from)
        return found
    make_own_folder(folder, "this inversion")
    return {"format_version": 1, **made_from, "complete": False, "groups": {}}


@dataclass(frozen=True)
class _Run:
    config: InversionConfig
    teacher: EagerTeacher
    folder: Path
    record: dict[str, Any]
    stop: StopRequest

    def run(self, progress: ProgressFactory) -> InversionReport:
        config, groups = self.config, self.record["groups"]
        rows = group_rows(config.per_class * self.teacher.num_classes, config.batch)
        for number in groups.keys() - {str(number) for number, part in enumerate(rows) if self._there(part)}:
            del groups[number]
        missing = [number for number in range(len(rows)) if str(number) not in groups]
        done = (len(rows) - len(missing)) * config.steps
        self._save(complete=not missing)
        with progress(len(rows) * config.steps, "steps", "invert", done) as bar:
            for number in missing:
                self._make(number, rows[number], bar)
                self._save(complete=len(groups) == len(rows))
        images = sum(len(part) for part in rows)
        return InversionReport(
            out=self.folder,
            images=images,
            classes=self.teacher.num_classes,
            agreement=sum(group["agreed"] for group in groups.values()) / images,
            seconds=sum(group["seconds"] for group in groups.values()),
            made=sum(len(rows[number]) for number in missing),
        )

    def _file(self, row: int) -> Path:
        return self.folder / f"{row % self.teacher.num_classes:04d}" / f"{row:06d}.png"

    def _there(self, rows: range) -> bool:
        return all(self._file(row).is_file() for row in rows)

    def _make(self, number: int, rows: range, bar: Bar) -> None:
        begin = time.monotonic()

        def tell(loss: float) -> None:
            bar.note(f"loss {loss:.3f}")
            bar.update()
            self.stop.check()

        classes = [row % self.teacher.num_classes for row in rows]
        found = invert_group(self.teacher, self.config, number, classes, tell)
        for row, image in zip(rows, found.images, strict=True):
            with replacing(self._file(row)) as temporary:
                temporary.write_bytes(encode_image(image.permute(1, 2, 0).numpy(), "png"))
        self.record["groups"][str(number)] = {
            "images": len(rows),
            "seconds": round(time.monotonic() - begin, 3),
            "agreed": found.agreed,
            "losses": found.losses,
        }

    def _save(self, complete: bool) -> None:
        self.record["complete"] = complete
        text = json.dumps(self.record, indent=1, allow_nan=False)
        try:
            with replacing(self.folder / RECORD_FILE) as temporary:
                temporary.write_text(text + "\n")
        except OSError as error:
            raise unwritable(self.folder, error) from error


def inversion_text(report: InversionReport) -> str:
    """The report in words."""
    return (
        f"{report.out}: {report.images} images of {report.classes} classes, {report.made} of them made now; "
        f"{report.seconds:.0f} s in all\n"
        f"the teacher takes {report.agreement:.1%} of them for their class\n"
        f"variations of them: prism-fast synthesize --recipe dda-sdedit --sampler.image_to_image.source {report.out}"
    )
