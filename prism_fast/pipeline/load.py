"""Loads a Stable-Diffusion-shaped pipeline: built-in name, local folder or hub id; safetensors only."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from prism_fast.config import resolve_device
from prism_fast.errors import UserError
from prism_fast.pipeline.weights import fingerprint, require_safetensors
from prism_fast.registry import unknown

_log = logging.getLogger(__name__)

BUILT_IN = {"fashion": "fashion/pipeline"}
"""Built-in names and their folders in ``prism_fast/zoo``."""

_CLASS_NAME = "StableDiffusionPipeline"
_NETWORKS = ("unet", "vae", "text_encoder")
_TEXT_SETTINGS = ("hidden_act", "layer_norm_eps", "num_attention_heads", "use_attention_mask")


def load_pipeline(name: str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> Any:
    """A ``StableDiffusionPipeline`` in eval mode, without gradients, on ``device`` in ``dtype``.

    The safety checker is never loaded (it replaces images by black ones): a notice is logged where the pipeline has
    one. In fp16 the VAE stays in fp32, because KL decoders overflow there.

    Args:
        name: ``fashion``, a local folder in diffusers format, or a hub id ``org/name``.

    Raises:
        UserError: no such pipeline, not a Stable Diffusion 1.x/2.x pipeline, or weights missing or only pickled.
    """
    from diffusers import StableDiffusionPipeline

    source = _resolve(name)
    with _no_progress_bars():
        try:
            index = StableDiffusionPipeline.load_config(source)
            _check_index(name, index)
            pipe = StableDiffusionPipeline.from_pretrained(
                source, use_safetensors=True, safety_checker=None, feature_extractor=None, requires_safety_checker=False
            )
        except UserError:
            raise
        except (OSError, ValueError) as error:
            raise UserError(
                f"cannot load the pipeline {name!r} ({error}): give a built-in name ({', '.join(BUILT_IN)}), a local "
                "folder saved with save_pretrained(..., safe_serialization=True), or a hub id with safetensors weights"
            ) from error
    if index.get("safety_checker", (None,))[0]:
        _log.warning("pipeline %s: its safety checker is not loaded; check images before you publish them", name)
    _place(pipe, resolve_device(str(device)), dtype)
    return pipe


def pipeline_fingerprint(pipe: Any) -> str:
    """16 hex digits that change with any weight, dtype or setting that decides an image; the same on every device."""
    tensors = {
        f"{network}.{name}": tensor
        for network in _NETWORKS
        for name, tensor in getattr(pipe, network).state_dict().items()
    }
    text = pipe.text_encoder.config
    settings = {
        "unet": _settings(pipe.unet.config),
        "vae": _settings(pipe.vae.config),
        "text_encoder": {key: getattr(text, key, None) for key in _TEXT_SETTINGS},
        # Which scheduler values are only defaults decides what another scheduler takes over from this one.
        "scheduler": _settings(pipe.scheduler.config)
        | {"defaults": sorted(pipe.scheduler.config.get("_use_default_values", []))},
        "tokenizer": [pipe.tokenizer.get_vocab(), pipe.tokenizer.model_max_length],
    }
    return fingerprint(tensors, settings)


def latent_shape(pipe: Any) -> tuple[int, int, int]:
    """(C, h, w) of the pipeline's own latents."""
    size = pipe.unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    return int(pipe.unet.config.in_channels), int(height), int(width)


def _settings(config: Any) -> dict[str, Any]:
    return {key: value for key, value in dict(config).items() if not key.startswith("_")}


def _resolve(name: str) -> str:
    """A folder that holds a pipeline, or a hub id."""
    if name in BUILT_IN:
        folder = Path(__file__).parents[1] / "zoo" / BUILT_IN[name]
        if not (folder / "model_index.json").is_file():
            raise UserError(f"the built-in pipeline {name!r} is not in {folder}: train it with prism_fast/zoo/train.py")
        return str(folder)
    folder = Path(name).expanduser()
    if folder.is_file():
        raise UserError(
            f"pipeline {name!r} is a file: convert it with StableDiffusionPipeline.from_single_file(FILE)"
            ".save_pretrained(FOLDER) and give the folder"
        )
    if folder.is_dir():
        _check_folder(folder)
        return str(folder)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return name
    if "/" in name or name.startswith("."):
        raise UserError(f"no such pipeline folder: {name!r}")
    raise UserError(unknown("pipeline", name, BUILT_IN) + ", or a local folder, or a hub id org/name")


def _check_folder(folder: Path) -> None:
    index = folder / "model_index.json"
    if not index.is_file():
        raise UserError(f"{folder} has no model_index.json: give a folder in diffusers format (save_pretrained)")
    try:
        components = json.loads(index.read_text())
    except ValueError as error:
        raise UserError(f"{index} is not valid JSON ({error}): save the pipeline again") from error
    _check_index(str(folder), components)
    for network in _NETWORKS:
        require_safetensors(folder / network, "pipeline component")


def _check_index(name: str, index: Any) -> None:
    found = index.get("_class_name") if isinstance(index, dict) else None
    if found != _CLASS_NAME:
        raise UserError(f"pipeline {name!r} is a {found}: only {_CLASS_NAME} (Stable Diffusion 1.x, 2.x) is supported")


def _place(pipe: Any, device: torch.device, dtype: torch.dtype) -> None:
    for network in _NETWORKS:
        module = getattr(pipe, network)
        module.to(device=device, dtype=torch.float32 if network == "vae" and dtype == torch.float16 else dtype)
        module.eval().requires_grad_(False)
    pipe.set_progress_bar_config(disable=True)


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Loading shows no bars of its own; the libraries' settings are put back."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    enabled = [log for log in (diffusers_logging, transformers_logging) if log.is_progress_bar_enabled()]
    for log in enabled:
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log in enabled:
            log.enable_progress_bar()
