"""Weights on disk and in memory: only whole safetensors files are read, and what was read has a fingerprint."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prism_fast.errors import UserError
from prism_fast.pipeline.configuration import read_configuration

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_MOST_CHARACTERS = 200


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The safetensors files of one model.

    Attributes:
        files: one, or the shards that an index file names.
        variant: ``fp16`` where only that variant is there; None otherwise.
    """

    files: tuple[Path, ...]
    variant: str | None = None

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by its name, on the CPU."""
        from safetensors.torch import load_file

        return {name: tensor for file in self.files for name, tensor in load_file(file).items()}


def find_checkpoint(folder: Path, stem: str, what: str) -> Checkpoint:
    """The weights in ``folder`` under the names that diffusers and transformers give them.

    Args:
        folder: where the weights should be.
        stem: ``model`` or ``diffusion_pytorch_model``.
        what: what they belong to, for the message.

    Raises:
        UserError: no such file, a shard is missing, or a file is cut or no safetensors file.
    """
    require_safetensors(folder, what)
    for variant in (None, "fp16"):
        middle = f".{variant}" if variant else ""
        single = folder / f"{stem}{middle}.safetensors"
        index = folder / f"{stem}.safetensors.index{middle}.json"
        if single.is_file():
            files: tuple[Path, ...] = (single,)
        elif index.is_file():
            files = _shards(index, what)
        else:
            continue
        for file in files:
            tensor_names(file, what)
        return Checkpoint(files=files, variant=variant)
    found = ", ".join(sorted(path.name for path in folder.glob("*.safetensors")))
    raise UserError(f"{what} {folder} has no {stem}.safetensors (but {found}): rename its weights to that")


def _shards(index: Path, what: str) -> tuple[Path, ...]:
    places = read_configuration(index, what).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise UserError(f"{what}: {index} maps no weights to files: save or download it again")
    files = tuple(index.parent / name for name in sorted(set(places.values())))
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise UserError(
            f"{what} {index.parent} lacks {len(missing)} of {len(files)} files that {index.name} names "
            f"({missing[0]}): save or download it again"
        )
    return files


def tensor_names(file: Path, what: str) -> set[str]:
    """The names in a safetensors file; opening it also checks that it is whole.

    Raises:
        UserError: it cannot be read, is cut, or is something else.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            return set(opened.keys())
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"cannot load the weights of {what}: {file} is cut or no safetensors file ({error}); "
            "save or download it again"
        ) from error


def check_state(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], what: str) -> None:
    """Checks that ``tensors`` are those of a network, all of them, in its shapes.

    Raises:
        UserError: the first that is missing, foreign or of another shape or kind.
    """
    missing, foreign = sorted(set(wanted) - set(tensors)), sorted(set(tensors) - set(wanted))
    if missing:
        raise UserError(f"{what} lacks {len(missing)} of the network's {len(wanted)} tensors (first: {missing[0]})")
    if foreign:
        raise UserError(f"{what} has {len(foreign)} tensors that the network has not (first: {foreign[0]})")
    for name, tensor in tensors.items():
        there = wanted[name]
        if tensor.shape != there.shape:
            shapes = f"{tuple(tensor.shape)}, the network has {tuple(there.shape)}"
            raise UserError(f"{what} has {name} of shape {shapes}")
        if tensor.is_floating_point() != there.is_floating_point():
            raise UserError(f"{what} has {name} in {tensor.dtype}, the network in {there.dtype}")


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file with the permissions of any new file; tied tensors become copies.

    Raises:
        OSError: the system refuses, as for Python's own files.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path.touch()
    mode = stat.S_IMODE(path.stat().st_mode)
    try:
        save_file(_plain(tensors), path, metadata=dict(metadata))
    except SafetensorError as error:
        system = re.search(r"\(os error (\d+)\)", str(error))
        if system is None:
            raise
        number = int(system.group(1))
        raise OSError(number, os.strerror(number)) from error
    path.chmod(mode)  # safetensors makes files that only their owner reads


def _plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Own contiguous CPU memory for each tensor: safetensors takes neither shared storage nor other layouts."""
    return {name: torch.clone(t.detach().cpu(), memory_format=torch.contiguous_format) for name, t in state.items()}


def load_errors() -> tuple[type[Exception], ...]:
    """What torch, diffusers, transformers and timm raise for files that do not fit: they check little."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    return (
        OSError,
        ValueError,
        TypeError,
        LookupError,
        ArithmeticError,
        AttributeError,
        AssertionError,
        RuntimeError,
        SafetensorError,
        StrictDataclassError,
    )


def in_short(error: BaseException) -> str:
    """A library's error as part of a line; some list every way in which a function can be called."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:_MOST_CHARACTERS]}{'...' if len(text) > _MOST_CHARACTERS else ''}"


_CONVERT = (
    "convert them on a machine you trust with "
    "safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'model.safetensors')"
)


def require_safetensors(folder: Path, what: str, convert: str = _CONVERT) -> None:
    """Checks that ``folder`` holds weights that can be read without running code.

    Args:
        folder: where the weights should be.
        what: what they belong to, for the message (``"teacher"``).
        convert: how to convert pickled weights, for the message.

    Raises:
        UserError: no ``*.safetensors`` in the folder; the message tells how to convert pickled weights found there.
    """
    if any(folder.glob("*.safetensors")):
        return
    pickled = sorted(path.name for path in folder.glob("*") if path.suffix in PICKLE_SUFFIXES)
    if pickled:
        raise UserError(
            f"{what} {folder} has only pickled weights ({', '.join(pickled)}), and loading those runs code: {convert}"
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
