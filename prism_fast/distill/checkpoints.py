"""What a run leaves on disk: the student in timm's folder format, and the training state for resuming. No pickles."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prism_fast.config import replacing, save_yaml, unwritable
from prism_fast.distill.students import StudentSpec
from prism_fast.errors import UserError
from prism_fast.pipeline.weights import write_tensors
from prism_fast.teachers.own import is_own
from prism_fast.teachers.settings import SETTINGS_FILE

_FORMAT = 1


def save_student(model: nn.Module, spec: StudentSpec, folder: Path, class_names: Sequence[str] | None = None) -> None:
    """Writes ``config.json`` and ``model.safetensors`` as timm does: ``timm.create_model(f"local-dir:{folder}")``.

    A student of a user's module gets the ``teacher.yaml`` of such networks in place of the former.

    The folder appears whole or not at all; one that exists is replaced.

    Raises:
        UserError: the place cannot be written.
    """
    size = spec.input_size
    config = {
        "architecture": spec.architecture,
        "num_classes": spec.num_classes,
        **({"label_names": list(class_names)} if class_names is not None else {}),
        "model_args": dict(spec.model_args),
        "pretrained_cfg": {
            "input_size": [3, size, size],
            "interpolation": "bilinear",
            "mean": list(spec.mean),
            "std": list(spec.std),
            "num_classes": spec.num_classes,
        },
    }
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
            staged = Path(temporary) / "new"
            staged.mkdir()
            write_tensors(model.state_dict(), staged / "model.safetensors", {"format": "pt"})
            if is_own(spec.architecture):
                save_yaml(_own_settings(spec, class_names), staged / SETTINGS_FILE)
            else:
                (staged / "config.json").write_text(json.dumps(config, indent=2) + "\n")
            if folder.exists():
                os.replace(folder, Path(temporary) / "old")
            os.replace(staged, folder)
    except OSError as error:
        raise unwritable(folder, error) from error


def freeze_student(model: nn.Module, spec: StudentSpec, folder: Path, class_names: Sequence[str] | None) -> Path:
    """Writes a student as :func:`save_student` does, into a folder in ``folder`` that its fingerprint names.

    The fingerprint is the one by which an energy names it, see :func:`prism_fast.sampling.energy.load_student`.

    Raises:
        UserError: the place cannot be written.
    """
    from prism_fast.sampling.energy import load_student

    staged = folder / ".new"
    save_student(model, spec, staged, class_names)
    named = folder / load_student(str(staged)).fingerprint
    try:
        if named.exists():  # the same student: a run that was killed has frozen it before
            shutil.rmtree(staged)
        else:
            os.replace(staged, named)
    except OSError as error:
        raise unwritable(named, error) from error
    return named


def _own_settings(spec: StudentSpec, class_names: Sequence[str] | None) -> dict[str, Any]:
    """What :class:`~prism_fast.teachers.settings.TeacherSettings` reads."""
    known = {"num_classes": spec.num_classes} if class_names is None else {"classes": list(class_names)}
    size = [spec.input_size, spec.input_size]
    return {"input_size": size, "mean": list(spec.mean), "std": list(spec.std), **known}


def save_state(path: Path, parts: Mapping[str, Mapping[str, Any]], record: Mapping[str, Any]) -> None:
    """One file, replaced atomically: the tensors of some state dicts, and everything else as JSON in its header.

    Args:
        parts: name to state dict; values are tensors, JSON values, or dicts and lists of these.
        record: JSON values (step, identity, history).

    Raises:
        UserError: the place cannot be written; an older file is as it was.
    """
    tensors: dict[str, Tensor] = {}
    skeleton = {name: _flatten(state, name, tensors) for name, state in parts.items()}
    header = {"format": _FORMAT, "record": record, "parts": skeleton}
    with replacing(path) as staged:
        write_tensors(tensors, staged, {"state": json.dumps(header)})
        with staged.open("rb") as stream:
            os.fsync(stream.fileno())


def load_state(path: Path) -> tuple[dict[str, dict[Any, Any]], dict[str, Any]]:
    """What :func:`save_state` wrote: (parts, record), tensors on the CPU.

    Raises:
        UserError: the file is damaged or not of this format.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as stream:
            header = json.loads((stream.metadata() or {})["state"])
            tensors = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, KeyError, json.JSONDecodeError, OSError) as error:
        raise UserError(f"{path} is not a training state ({error}): move it away to start again") from error
    if header["format"] != _FORMAT:
        raise UserError(f"{path} is a training state of format {header['format']}, not {_FORMAT}: move it away")
    return {name: _rebuild(node, tensors) for name, node in header["parts"].items()}, header["record"]


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Gives an optimizer its saved state, in the memory layout that it had.

    Files hold contiguous tensors. Beside channels-last weights an optimizer that takes norms (LAMB) would sum those in
    another order, and the last bits would differ from those of a run that was not interrupted.
    """
    optimizer.load_state_dict(state)
    for weight, kept in optimizer.state.items():
        for name, value in kept.items():
            if isinstance(value, Tensor) and value.shape == weight.shape:
                kept[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value)


def _flatten(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """``value`` as JSON, its tensors moved to ``tensors``. Dicts become lists of pairs: keys may be integers."""
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"dict": [[key, _flatten(item, f"{name}/{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return {"list": [_flatten(item, f"{name}/{i}", tensors) for i, item in enumerate(value)]}
    if value is None or isinstance(value, str | int | float | bool):
        return {"value": value}
    raise TypeError(f"a training state cannot hold a {type(value).__name__} ({name})")


def _rebuild(node: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    if "tensor" in node:
        return tensors[node["tensor"]]
    if "dict" in node:
        return {key: _rebuild(item, tensors) for key, item in node["dict"]}
    if "list" in node:
        return [_rebuild(item, tensors) for item in node["list"]]
    return node["value"]
