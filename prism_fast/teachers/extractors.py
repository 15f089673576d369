"""What gives the features that sets are compared in: a classifier's last layer but one, or Inception's."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from prism_fast.config import cache_dir, resolve_device
from prism_fast.errors import UserError
from prism_fast.pipeline.weights import find_checkpoint, fingerprint, in_short, load_errors
from prism_fast.teachers.base import Teacher
from prism_fast.teachers.eager import EagerTeacher
from prism_fast.teachers.ensemble import EnsembleTeacher
from prism_fast.teachers.load import load_teacher

INCEPTION = "inception"
_NAME, _LAYER = "inception-v3-compat", "2048"
_HOW = (
    "fetch weights-inception-2015-12-05-6726825d.pth of torch-fidelity's releases and run "
    "prism-fast teacher import weights-inception-2015-12-05-6726825d.pth --out FOLDER"
)


class Extractor(Protocol):
    """Images to features; every :class:`~prism_fast.teachers.base.Teacher` is one.

    Attributes:
        fingerprint: 16 hex digits of weights and settings.
    """

    fingerprint: str

    def features(self, images: Tensor) -> Tensor:
        """Features [B,D] of images [B,3,H,W] in [0,1], any size."""
        ...


def load_extractor(name: str, device: str | torch.device = "cpu") -> Extractor:
    """An extractor by its name.

    Args:
        name: a classifier as :func:`~prism_fast.teachers.load.load_teacher` takes it (``imagenet``: EfficientNet-Lite0,
            1,280 numbers), ``inception@FOLDER``, or ``inception`` for the folder ``inception`` in the cache.
        device: where it runs.

    Raises:
        UserError: no such extractor, or its weights are not there.
    """
    kind, _, folder = name.partition("@")
    if kind == INCEPTION:
        return Inception(Path(folder) if folder else cache_dir() / INCEPTION, device)
    return load_observer(name, device)


def load_observer(name: str, device: str | torch.device = "cpu") -> Teacher:
    """A classifier that looks at images and guides nothing.

    The same as :func:`~prism_fast.teachers.load.load_teacher` gives, but for rounding: convolutions have their channels
    last, by which a CPU is up to twice as fast.

    Args:
        name: as ``load_teacher`` takes it.
        device: where it runs.

    Raises:
        UserError: as ``load_teacher``.
    """
    teacher = load_teacher(name, device)
    for member in teacher.members if isinstance(teacher, EnsembleTeacher) else (teacher,):
        if isinstance(member, EagerTeacher):
            member.model.to(memory_format=torch.channels_last)
    return teacher


class Inception:
    """The network of FID: torch-fidelity's InceptionV3 of 2015, features of 2,048 numbers, of images as 8-bit values.

    Args:
        folder: with the weights as safetensors.
        device: where it runs.

    Raises:
        UserError: the weights are missing, or others than expected.
    """

    def __init__(self, folder: Path, device: str | torch.device = "cpu") -> None:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        what = f"extractor {INCEPTION!r} in {folder}"
        if not folder.is_dir():
            raise UserError(f"the weights of extractor {INCEPTION!r} are not in {folder}: {_HOW}")
        tensors = find_checkpoint(folder, "model", what).tensors()
        # It loads what torch pickled and nothing else: give it a pickle made here, of tensors that were none.
        pickled = io.BytesIO()
        torch.save(tensors, pickled)
        pickled.seek(0)
        try:
            network = FeatureExtractorInceptionV3(_NAME, [_LAYER], feature_extractor_weights_path=pickled)
        except load_errors() as error:
            raise UserError(f"cannot load the {what} ({in_short(error)}): {_HOW}") from error
        self.fingerprint = fingerprint(network.state_dict(), [_NAME, _LAYER])
        self._device = resolve_device(str(device))
        self._network = network.to(self._device)

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Features fp32 [B,2048]; the network's own resize to 299 pixels is TensorFlow's of that year."""
        pixels = images.to(self._device).mul(255).round().clamp(0, 255).to(torch.uint8)
        found: Tensor = self._network(pixels)[0]
        return found
