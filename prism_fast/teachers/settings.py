"""``teacher.yaml``: what a network's weights do not say. Light to import: no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prism_fast.errors import UserError
from prism_fast.recipes.fields import build, lay_over, read_fields, unknown_field

SETTINGS_FILE = "teacher.yaml"

_CLASS_FIELDS = ["name", "gloss"]
_NO_LOGITS = {
    "sigmoid": "a sigmoid answers each class by itself, and a multi-label teacher has no energy over classes",
    "softmax": "the energy is made of logits: have the network return what goes into its softmax",
    "log_softmax": "the energy is made of logits: have the network return what goes into its log-softmax",
}


@dataclass(frozen=True, kw_only=True)
class ClassName:
    """A class: its name, and which sense of that name is meant; the gloss may be empty."""

    name: str
    gloss: str = ""


@dataclass(frozen=True, kw_only=True)
class TeacherSettings:
    """What ``teacher.yaml`` says.

    Attributes:
        input_size: [height, width] in pixels that the network wants; a number for a square.
        mean: of each channel, in [0, 1] units; a number where there is one channel.
        std: of each channel.
        interpolation: of the resize to ``input_size``: ``bilinear`` or ``bicubic``.
        channels: 3, or 1 for a network of grey images, which sees the luma.
        activation: what ends the network; only ``none`` can guide.
        multi_label: whether an image can have several classes; such a teacher is refused.
        num_classes: K, where ``classes`` does not tell.
        classes: the classes in order; in the file a list, or index to name, or index to name and gloss.
    """

    input_size: Any = None
    mean: Any = None
    std: Any = None
    interpolation: str = "bilinear"
    channels: int = 3
    activation: str = "none"
    multi_label: bool = False
    num_classes: int | None = None
    classes: Any = None

    def __post_init__(self) -> None:
        lacking = [name for name in ("input_size", "mean", "std") if getattr(self, name) is None]
        if lacking:
            raise UserError(f"{', '.join(lacking)} missing: say how images were prepared when the network was trained")
        if self.activation != "none":
            reason = _NO_LOGITS.get(self.activation, "it must be none: the network has to return logits")
            raise UserError(f"activation is {self.activation!r}; {reason}")
        if self.multi_label:
            raise UserError("multi_label is true; a multi-label teacher has no energy over classes")
        if self.channels not in (1, 3):
            raise UserError(f"channels is {self.channels}; it must be 3, or 1 for a network of grey images")
        if self.interpolation not in ("bilinear", "bicubic"):
            raise UserError(f"interpolation is {self.interpolation!r}; it must be bilinear or bicubic")
        size = [self.input_size] * 2 if type(self.input_size) is int else self.input_size
        if not isinstance(size, list | tuple) or len(size) != 2 or not all(type(n) is int and n > 0 for n in size):
            raise UserError(f"input_size is {self.input_size!r}; it must be [height, width] in pixels")
        object.__setattr__(self, "input_size", tuple(size))
        for name in ("mean", "std"):
            object.__setattr__(self, name, _per_channel(name, getattr(self, name), self.channels))
        if self.classes is not None:
            object.__setattr__(self, "classes", _classes(self.classes))
            self._count(len(self.classes))
        if self.num_classes is not None and self.num_classes < 2:
            raise UserError(f"{self.num_classes} class: one output is a sigmoid's, and a teacher tells classes apart")

    def _count(self, classes: int) -> None:
        if self.num_classes not in (None, classes):
            raise UserError(f"num_classes is {self.num_classes}, but classes has {classes}: leave num_classes out")
        object.__setattr__(self, "num_classes", classes)


def read_settings(path: Path) -> TeacherSettings:
    """The settings in a YAML file.

    Raises:
        UserError: missing, not YAML, an unknown setting, or a value that cannot be used.
    """
    fields = lay_over(TeacherSettings, {}, read_fields(path), str(path))
    try:
        return build(TeacherSettings, fields)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _per_channel(name: str, values: Any, channels: int) -> tuple[float, ...]:
    """Three numbers, also where there is one channel."""
    given = [values] if isinstance(values, int | float) and channels == 1 else values
    numbers = isinstance(given, list | tuple) and all(
        isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in given
    )
    if not numbers or len(given) != channels:
        wanted = "three numbers" if channels == 3 else "one number"
        raise UserError(f"{name} is {values!r}; it must be {wanted}, in units of images from 0 to 1")
    if name == "std" and not all(v > 0 for v in given):
        raise UserError(f"std is {values!r}; it must be positive")
    return tuple(float(v) for v in given) * (3 // channels)


def _classes(entries: Any) -> tuple[ClassName, ...]:
    if isinstance(entries, list | tuple):
        entries = dict(enumerate(entries))
    if not isinstance(entries, Mapping) or not entries:
        raise UserError("classes must be index: name, or index: {name: ..., gloss: ...}, or a list")
    wrong = next((key for key in entries if type(key) is not int), None)
    if wrong is not None:
        raise UserError(f"classes has the index {wrong!r}; indices are whole numbers from 0")
    missing = sorted(set(range(len(entries))) - set(entries))
    if missing:
        raise UserError(
            f"classes has {len(entries)} entries, but none of index {missing[0]}: count from 0 without gaps"
        )
    return tuple(_class(index, entries[index]) for index in range(len(entries)))


def _class(index: int, entry: Any) -> ClassName:
    if isinstance(entry, ClassName):
        return entry
    fields = entry if isinstance(entry, Mapping) else {"name": entry}
    for field in fields:
        if field not in _CLASS_FIELDS:
            raise UserError(f"class {index}: {unknown_field(str(field), _CLASS_FIELDS)}")
    for field in _CLASS_FIELDS:
        value = fields.get(field, "")
        if not isinstance(value, str):  # YAML reads a bare yes, no or 1 as something else
            raise UserError(f"class {index}: its {field} is {value!r}, not text: put it in quotes")
    if not fields.get("name", "").strip():
        raise UserError(f"class {index} has no name")
    return ClassName(**fields)
