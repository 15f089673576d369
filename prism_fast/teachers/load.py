"""Loads a teacher: built-in name, local folder in timm's format, hub id, timm name, a user's own network, or several.

Weights are read from safetensors only, but for the built-in ``imagenet`` ones, whose packages hold a pickle: that is
read as tensors and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from prism_fast.config import resolve_device
from prism_fast.errors import UserError
from prism_fast.pipeline.configuration import read_configuration
from prism_fast.pipeline.hub import hub_errors, not_fetched, why_unreachable
from prism_fast.pipeline.weights import in_short, load_errors, require_safetensors, tensor_names
from prism_fast.registry import unknown
from prism_fast.teachers.answer import check_answer
from prism_fast.teachers.base import Teacher
from prism_fast.teachers.eager import EagerTeacher
from prism_fast.teachers.ensemble import EnsembleTeacher, ensemble_names
from prism_fast.teachers.imagenet import PACKAGED, load_packaged
from prism_fast.teachers.own import WEIGHTS_FILE, is_own, load_own, with_weights

BUILT_IN = {"fashion": "fashion/teacher", "fashion-judge": "fashion/judge", "fashion-second": "fashion/second"}
"""Built-in names and their folders in ``prism_fast/zoo``."""


def load_teacher(
    name: str,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    weights: str | Path | None = None,
    settings: str | Path | None = None,
) -> Teacher:
    """A classifier ready to guide or to judge, or an ensemble of several.

    Args:
        name: as :func:`load_classifier` takes it; several with ``+`` between them (``fashion+fashion-judge``) are an
            ensemble, whose energy is the members' mean, or with ``worst:`` before them the largest of theirs.
        device: where the networks run.
        dtype: what they compute in.
        weights: of ``package.module:factory``, where its name does not say them.
        settings: ``teacher.yaml`` of ``package.module:factory``, where it is not beside the weights.

    Raises:
        UserError: as :func:`load_classifier`, or members that do not know the same classes.
    """
    mode, members = ensemble_names(name)
    if mode is None:
        return load_classifier(name, device, dtype, weights=weights, settings=settings)
    if weights is not None or settings is not None:
        raise UserError(f"{name!r} are several: write each one's weights into its name, module:factory@WEIGHTS")
    return EnsembleTeacher([load_classifier(member, device, dtype) for member in members], mode)


def load_classifier(
    name: str,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    weights: str | Path | None = None,
    settings: str | Path | None = None,
) -> EagerTeacher:
    """One classifier.

    Args:
        name: ``fashion``, ``fashion-judge``, ``fashion-second``, ``imagenet``, ``imagenet-judge``, a local folder
            (``config.json`` and ``model.safetensors``, as timm's ``local-dir:`` has them), ``hf-hub:ORG/NAME``, a timm
            model name with pretrained weights, or ``package.module:factory@WEIGHTS``, see
            :func:`prism_fast.teachers.own.load_own`.
        device: where the network runs.
        dtype: what it computes in.
        weights: of ``package.module:factory``, where its name does not say them.
        settings: ``teacher.yaml`` of ``package.module:factory``, where it is not beside the weights.

    Raises:
        UserError: no such teacher, weights missing or only pickled, or settings that do not fit them.
    """
    if weights is not None:
        name = with_weights(name, str(weights))
    if is_own(name):
        return load_own(name, settings, resolve_device(str(device)), dtype)
    if settings is not None:
        raise UserError(f"teacher {name!r} brings its own settings: give them with a teacher module:factory only")
    if name in PACKAGED:
        return load_packaged(name, resolve_device(str(device)), dtype)
    folder = _folder(name)
    if not (folder / "config.json").is_file():
        raise UserError(f"teacher folder {folder} has no config.json: save the model in timm's local-dir format")
    require_safetensors(folder, "teacher", "convert them with prism-fast teacher import FILE --out FOLDER")
    if not (folder / WEIGHTS_FILE).is_file():
        raise UserError(f"teacher folder {folder} has no {WEIGHTS_FILE}: rename its safetensors file to that")
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
        raise UserError(
            unknown("teacher", name, [*BUILT_IN, *PACKAGED])
            + ", or a local folder, hf-hub:ORG/NAME, a timm model or module:factory@WEIGHTS"
        )
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
    reason = why_unreachable(repository, revision or None)
    try:
        return Path(
            snapshot_download(
                repository,
                revision=revision or None,
                allow_patterns=["config.json", WEIGHTS_FILE],
                local_files_only=reason is not None,  # what is in the cache still serves
            )
        )
    except hub_errors() as error:
        raise not_fetched("teacher", hub_id, reason, error) from error


def _from_folder(folder: Path, device: torch.device, dtype: torch.dtype) -> EagerTeacher:
    import timm

    what = f"teacher in {folder}"
    saved = read_configuration(folder / "config.json", what)
    _check_saved(saved, what)
    stored = tensor_names(folder / WEIGHTS_FILE, what)
    try:
        # timm picks among the weight files of a local-dir itself, and old versions prefer pickled ones: name the file.
        named = {"source": "", "file": str(folder / WEIGHTS_FILE), "custom_load": False}
        model = timm.create_model(f"local-dir:{folder}", pretrained=True, pretrained_cfg_overlay=named)
    except load_errors() as error:
        raise UserError(
            f"cannot load the {what} ({in_short(error)}): make config.json and {WEIGHTS_FILE} those of one model"
        ) from error
    settings: dict[str, Any] = model.pretrained_cfg
    _check_weights(model, stored, settings, what)
    size = _input_size(settings, what)
    frozen = model.eval().requires_grad_(False)
    check_answer(frozen, size, int(model.num_classes), what, "input_size and model_args in its config.json")
    try:
        return EagerTeacher(
            model,
            mean=settings["mean"],
            std=settings["std"],
            input_size=size,
            num_classes=int(model.num_classes),
            interpolation=str(settings.get("interpolation") or "bilinear"),
            label_names=saved.get("label_names") or settings.get("label_names"),
            device=device,
            dtype=dtype,
        )
    except UserError as error:
        raise UserError(f"{what}: {error}; correct its config.json") from error


def _check_saved(saved: Mapping[str, Any], what: str) -> None:
    """What timm takes for granted of a ``config.json``."""
    cure = "save the model in timm's local-dir format"
    if not isinstance(saved.get("architecture"), str):
        raise UserError(f"{what}: its config.json has no 'architecture', timm's name of the model; {cure}")
    for key in ("pretrained_cfg", "model_args"):
        if not isinstance(saved.get(key, {}), dict):
            raise UserError(f"{what}: {key} in its config.json is {saved[key]!r}, expected an object; {cure}")
    settings = saved.get("pretrained_cfg", saved)
    if "input_size" in settings:  # timm asserts, without a word
        _input_size(settings, what)
    labels = saved.get("label_names") or settings.get("label_names") or []
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise UserError(f"{what}: label_names in its config.json must be a list of texts; {cure}")


def _check_weights(model: Any, stored: set[str], settings: Mapping[str, Any], what: str) -> None:
    """Nothing of ``model`` was left at random: timm does so with a head of another number of classes."""
    if model.num_classes != settings["num_classes"]:
        raise UserError(
            f"{what}: model_args ask for {model.num_classes} classes, its weights have {settings['num_classes']}: "
            "give num_classes once, as the weights have it"
        )
    wanted = set(model.state_dict())
    missing = sorted(wanted - stored)
    if missing and stored <= wanted:  # else timm has renamed some, of an older layout
        raise UserError(
            f"{what}: {WEIGHTS_FILE} lacks {len(missing)} of {len(wanted)} tensors ({missing[0]}): save it again, whole"
        )


def _input_size(settings: Mapping[str, Any], what: str) -> tuple[int, int]:
    size = settings.get("input_size")
    if not isinstance(size, list | tuple) or len(size) != 3 or not all(type(n) is int and n > 0 for n in size):
        raise UserError(f"{what}: input_size is {size!r}, expected [3, height, width] in pixels; correct config.json")
    channels, height, width = size
    if channels != 3:
        raise UserError(f"{what} takes {channels} channels; images have 3")
    return height, width
