"""Weights that torch pickled, made into a folder that ``load_teacher`` takes: ``prism-fast teacher import``."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from prism_fast.config import make_own_folder, unwritable
from prism_fast.errors import UserError
from prism_fast.pipeline.weights import check_state, in_short, load_errors, write_tensors
from prism_fast.registry import unknown
from prism_fast.teachers.own import WEIGHTS_FILE
from prism_fast.teachers.pickled import StateDict, read_pickled
from prism_fast.teachers.settings import SETTINGS_FILE

_TEMPLATE = """\
# How the network wants its images. Fill in what was used when it was trained, then:
#   --teacher package.module:factory --weights {folder}
input_size:             # [height, width] in pixels; the whole image is resized to it, without a crop
mean:                   # of each channel, in units of images from 0 to 1: [0.485, 0.456, 0.406]
std:                    # [0.229, 0.224, 0.225]
interpolation: bilinear # or bicubic
channels: 3             # 1 for a network of grey images: it sees the luma, and mean and std are one number each
activation: none        # the network returns logits; one that ends in a softmax or a sigmoid is refused
# classes:              # in the order of the network's outputs
#   0: {{name: jumper, gloss: a knitted pullover with long sleeves}}
#   1: coat
"""


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What an import has made.

    Attributes:
        folder: holds ``model.safetensors``, and ``config.json`` or a ``teacher.yaml`` to fill in.
        state: what was read.
        input_size: (height, width) that timm has for the architecture; None without one.
        num_classes: K of the architecture's head; None without one.
    """

    folder: Path
    state: StateDict
    input_size: tuple[int, int] | None = None
    num_classes: int | None = None


def import_teacher(source: Path, out: Path, architecture: str | None = None) -> Imported:
    """Reads the tensors of a pickled file, as data only, and writes the folder ``out``, whole or not at all.

    Args:
        source: a file of ``torch.save``: a state dict, alone or under one of ``pickled.WRAPPERS``.
        out: a folder that is not there yet, or empty.
        architecture: timm's name of the network; with it ``load_teacher(out)`` works at once, with timm's input size,
            mean and deviation of that name: correct them in ``config.json`` where training used others.

    Raises:
        UserError: the file cannot be read as tensors, ``out`` holds something, or the weights are not the
            architecture's; nothing was written.
    """
    state = read_pickled(source)
    config = _timm_config(architecture, state.tensors, source) if architecture is not None else None
    make_own_folder(out, "imported weights")
    with _filling(out) as staged:
        write_tensors(state.tensors, staged / WEIGHTS_FILE, {"format": "pt"})
        with (staged / WEIGHTS_FILE).open("rb") as stream:
            os.fsync(stream.fileno())
        if config is not None:
            (staged / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        else:
            (staged / SETTINGS_FILE).write_text(_TEMPLATE.format(folder=out))
    if config is None:
        return Imported(folder=out, state=state)
    _, height, width = config["pretrained_cfg"]["input_size"]
    return Imported(folder=out, state=state, input_size=(height, width), num_classes=config["num_classes"])


@contextmanager
def _filling(out: Path) -> Iterator[Path]:
    """A folder to write to that takes the place of the empty ``out`` at the end; a full one is never replaced."""
    try:
        with tempfile.TemporaryDirectory(dir=out.absolute().parent, prefix=f".{out.name}-") as temporary:
            staged = Path(temporary) / "new"
            staged.mkdir()
            yield staged
            os.rename(staged, out)
    except OSError as error:
        raise unwritable(out, error) from error


def _timm_config(architecture: str, tensors: Mapping[str, Tensor], source: Path) -> dict[str, Any]:
    """``config.json`` in timm's local-dir format; the weights fit the architecture exactly."""
    import timm

    if not timm.is_model(architecture):
        raise UserError(unknown("timm architecture", architecture, timm.list_models()))
    settings = timm.get_pretrained_cfg(architecture)
    if settings is None:
        raise UserError(f"timm has no input size for {architecture!r}: give another name, or none and a teacher.yaml")
    classes = _classes(settings.classifier, tensors, f"{source} as {architecture!r}")
    try:
        model: Any = timm.create_model(architecture, pretrained=False, num_classes=classes)
    except load_errors() as error:
        raise UserError(f"timm cannot make {architecture!r} with {classes} classes ({in_short(error)})") from error
    check_state(tensors, model.state_dict(), f"{source} as {architecture!r}")
    return {
        "architecture": architecture,
        "num_classes": classes,
        "pretrained_cfg": {
            "input_size": list(settings.input_size),
            "interpolation": settings.interpolation if settings.interpolation == "bicubic" else "bilinear",
            "mean": list(settings.mean),
            "std": list(settings.std),
            "num_classes": classes,
            "first_conv": settings.first_conv,
            "classifier": settings.classifier,
        },
    }


def _classes(classifier: Any, tensors: Mapping[str, Tensor], what: str) -> int:
    """How many, by the shape of the head's weights; a network with several heads has as many in each."""
    head = classifier if isinstance(classifier, str) else next(iter(classifier or ()), "")
    weight = tensors.get(f"{head}.weight")
    if weight is None or not weight.ndim:
        raise UserError(f"{what}: it has no {head}.weight, the head of that architecture")
    return int(weight.shape[0])
