"""Weights on disk and in memory: only safetensors are read, and what was read has a fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prism_fast.errors import UserError

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def require_safetensors(folder: Path, what: str) -> None:
    """Checks that ``folder`` holds weights that can be read without running code.

    Args:
        folder: where the weights should be.
        what: what they belong to, for the message (``"teacher"``).

    Raises:
        UserError: no ``*.safetensors`` in the folder; the message tells how to convert pickled weights found there.
    """
    if any(folder.glob("*.safetensors")):
        return
    pickled = sorted(path.name for path in folder.glob("*") if path.suffix in PICKLE_SUFFIXES)
    if pickled:
        raise UserError(
            f"{what} {folder} has only pickled weights ({', '.join(pickled)}), and loading those runs code: "
            "convert them on a machine you trust with "
            "safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'model.safetensors')"
        )
    raise UserError(f"{what} {folder} has no *.safetensors weights: point to a complete folder or save it again")


def fingerprint(tensors: Mapping[str, Tensor], settings: Any) -> str:
    """16 hex digits of the SHA-256 of names, dtypes, shapes and bytes of ``tensors`` and of ``settings`` (JSON types).

    Independent of the device and of the order of ``tensors``; about 1 s for 1 GB.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
