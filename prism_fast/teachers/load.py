"""Loads a teacher: built-in name, local folder in timm's format, hub id or timm name; safetensors only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from prism_fast.config import resolve_device
from prism_fast.errors import UserError
from prism_fast.pipeline.weights import require_safetensors
from prism_fast.registry import unknown
from prism_fast.teachers.eager import EagerTeacher

BUILT_IN = {"fashion": "fashion/teacher", "fashion-judge": "fashion/judge"}
"""Built-in names and their folders in ``prism_fast/zoo``."""

_WEIGHTS = "model.safetensors"


def load_teacher(name: str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> EagerTeacher:
    """A classifier ready to guide or to judge.

    Args:
        name: ``fashion``, ``fashion-judge``, a local folder (``config.json`` and ``model.safetensors``, as timm's
            ``local-dir:`` has them), ``hf-hub:ORG/NAME``, or a timm model name with pretrained weights.
        device: where the network runs.
        dtype: what it computes in.

    Raises:
        UserError: no such teacher, weights missing or only pickled, or a config.json that does not fit them.
    """
    folder = _folder(name)
    if not (folder / "config.json").is_file():
        raise UserError(f"teacher folder {folder} has no config.json: save the model in timm's local-dir format")
    require_safetensors(folder, "teacher")
    if not (folder / _WEIGHTS).is_file():
        raise UserError(f"teacher folder {folder} has no {_WEIGHTS}: rename its safetensors file to that")
    return _from_folder(folder, resolve_device(str(device)), dtype)


def _folder(name: str) -> Path:
    if name in BUILT_IN:
        folder = Path(__file__).parents[1] / "zoo" / BUILT_IN[name]
        if not folder.is_dir():
            raise UserError(f"the built-in teacher {name!r} is not in {folder}: train it with prism_fast/zoo/train.py")
        return folder
    if name.startswith("hf-hub:"):
        return _download(name.removeprefix("hf-hub:"))
    folder = Path(name.removeprefix("local-dir:")).expanduser()
    if folder.is_dir():
        return folder
    if name.startswith(("local-dir:", ".")) or "/" in name:
        raise UserError(f"no such teacher folder: {name!r} (for the hub write hf-hub:ORG/NAME)")
    return _download(_hub_id(name))


def _hub_id(name: str) -> str:
    """The hub repository of a timm model name's pretrained weights."""
    import timm

    if not timm.is_model(name):
        raise UserError(unknown("teacher", name, BUILT_IN) + ", or a local folder, hf-hub:ORG/NAME or a timm model")
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        raise UserError(f"teacher {name!r}: {error}") from error
    if config is None or not config.hf_hub_id:
        raise UserError(f"timm's {name!r} has no pretrained weights on the hub: give a folder or another model")
    return str(config.hf_hub_id)


def _download(hub_id: str) -> Path:
    """Fetches only the two files that are read; pickled weights are never downloaded."""
    from huggingface_hub import snapshot_download

    repository, _, revision = hub_id.partition("@")
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=["config.json", _WEIGHTS]))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot fetch the teacher {hub_id!r} from the hub ({error}): give a local folder") from error


def _from_folder(folder: Path, device: torch.device, dtype: torch.dtype) -> EagerTeacher:
    import timm
    from safetensors import SafetensorError

    try:
        saved: dict[str, Any] = json.loads((folder / "config.json").read_text())
        # timm picks among the weight files of a local-dir itself, and old versions prefer pickled ones: name the file.
        named = {"source": "", "file": str(folder / _WEIGHTS), "custom_load": False}
        model = timm.create_model(f"local-dir:{folder}", pretrained=True, pretrained_cfg_overlay=named)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        # RuntimeError is what torch and timm raise for unknown architectures and weights of other shapes
        raise UserError(f"cannot load the teacher in {folder}: {error}; check config.json and {_WEIGHTS}") from error
    settings: dict[str, Any] = model.pretrained_cfg
    channels, height, width = settings["input_size"]
    if channels != 3:
        raise UserError(f"teacher in {folder} takes {channels} channels; images have 3")
    return EagerTeacher(
        model,
        mean=settings["mean"],
        std=settings["std"],
        input_size=(int(height), int(width)),
        num_classes=int(model.num_classes),
        interpolation=str(settings.get("interpolation") or "bilinear"),
        label_names=saved.get("label_names") or settings.get("label_names"),
        device=device,
        dtype=dtype,
    )
