"""Loads a Stable-Diffusion-shaped pipeline: built-in name, local folder or hub id; safetensors only."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from prism_fast.config import resolve_device
from prism_fast.errors import UserError
from prism_fast.pipeline.components import load_components, quiet
from prism_fast.pipeline.configuration import read_configuration, settings_of
from prism_fast.pipeline.hub import hub_errors, is_hub_id, not_fetched, why_unreachable
from prism_fast.pipeline.weights import fingerprint
from prism_fast.registry import unknown

_log = logging.getLogger(__name__)

BUILT_IN = {"fashion": "fashion/pipeline"}
"""Built-in names and their folders in ``prism_fast/zoo``."""

_INDEX = "model_index.json"
_CLASS_NAME = "StableDiffusionPipeline"
_XL_CLASS_NAME = "StableDiffusionXLPipeline"
_NETWORKS = ("unet", "vae", "text_encoder")
_XL_NETWORKS = (*_NETWORKS, "text_encoder_2")
_TEXT_SETTINGS = ("hidden_act", "layer_norm_eps", "num_attention_heads", "use_attention_mask")


def load_pipeline(name: str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> Any:
    """A ``StableDiffusionPipeline`` or ``StableDiffusionXLPipeline`` in eval mode, without gradients.

    The safety checker is never loaded (it replaces images by black ones): a notice is logged where the pipeline has
    one. In fp16 the VAE stays in fp32, because KL decoders overflow there; it takes fp16 latents all the same, so
    that the pipeline can be called.

    Args:
        name: ``fashion``, a local folder in diffusers format, or a hub id ``org/name``.
        device: of the networks.
        dtype: of the networks.

    Raises:
        UserError: no such pipeline, not a Stable Diffusion 1.x/2.x or SDXL pipeline, weights only pickled, or a
            component that is missing, damaged, or whose weights are not exactly those of its configuration.
    """
    folder = _resolve(name)
    index = read_configuration(folder / _INDEX, f"pipeline {name!r}")
    _check_index(name, index)
    second = index["_class_name"] == _XL_CLASS_NAME
    pipe = _assemble(folder, load_components(folder, index, second), second)
    if (index.get("safety_checker") or (None,))[0]:
        _log.warning("pipeline %s: its safety checker is not loaded; check images before you publish them", name)
    _place(pipe, resolve_device(str(device)), dtype)
    return pipe


def _assemble(folder: Path, components: dict[str, Any], xl: bool) -> Any:
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    if xl:
        left_out = dict.fromkeys(("feature_extractor", "image_encoder"))
        with quiet():
            return StableDiffusionXLPipeline.from_pretrained(str(folder), **components, **left_out)
    left_out = dict.fromkeys(("safety_checker", "feature_extractor", "image_encoder"))
    with quiet():
        return StableDiffusionPipeline.from_pretrained(
            str(folder), **components, **left_out, requires_safety_checker=False
        )


def pipeline_fingerprint(pipe: Any) -> str:
    """16 hex digits that change with any weight, dtype or setting that decides an image; the same on every device."""
    xl = is_xl(pipe)
    tensors = {
        f"{network}.{name}": tensor
        for network in (_XL_NETWORKS if xl else _NETWORKS)
        for name, tensor in getattr(pipe, network).state_dict().items()
    }
    settings = {
        "unet": settings_of(pipe.unet.config),
        "vae": settings_of(pipe.vae.config),
        "text_encoder": _text_settings(pipe.text_encoder),
        # Which scheduler values are only defaults decides what another scheduler takes over from this one.
        "scheduler": settings_of(pipe.scheduler.config)
        | {"defaults": sorted(pipe.scheduler.config.get("_use_default_values", []))},
        "tokenizer": [pipe.tokenizer.get_vocab(), pipe.tokenizer.model_max_length],
    }
    if xl:
        settings |= {
            "text_encoder_2": _text_settings(pipe.text_encoder_2),
            "tokenizer_2": [pipe.tokenizer_2.get_vocab(), pipe.tokenizer_2.model_max_length],
            "zeros_for_empty_prompt": pipe.config.force_zeros_for_empty_prompt,
        }
    return fingerprint(tensors, settings)


def is_xl(pipe: Any) -> bool:
    """Whether a supported pipeline is an SDXL."""
    return type(pipe).__name__ == _XL_CLASS_NAME


def latent_shape(pipe: Any) -> tuple[int, int, int]:
    """(C, h, w) of the pipeline's own latents."""
    size = pipe.unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    return int(pipe.unet.config.in_channels), int(height), int(width)


def _text_settings(encoder: Any) -> dict[str, Any]:
    return {key: getattr(encoder.config, key, None) for key in _TEXT_SETTINGS}


def _resolve(name: str) -> Path:
    """The folder that holds a pipeline; a hub id is fetched."""
    if name in BUILT_IN:
        folder = Path(__file__).parents[1] / "zoo" / BUILT_IN[name]
        if not (folder / _INDEX).is_file():
            raise UserError(f"the built-in pipeline {name!r} is not in {folder}: train it with prism_fast/zoo/train.py")
        return folder
    folder = Path(name).expanduser()
    if folder.is_file():
        raise UserError(
            f"pipeline {name!r} is a file: convert it with StableDiffusionPipeline.from_single_file(FILE)"
            ".save_pretrained(FOLDER) and give the folder"
        )
    if folder.is_dir():
        if not (folder / _INDEX).is_file():
            raise UserError(f"{folder} has no {_INDEX}: give a folder in diffusers format (save_pretrained)")
        return folder
    if is_hub_id(name):
        return _fetch(name)
    if "/" in name or name.startswith("."):
        raise UserError(f"no such pipeline folder: {name!r}")
    raise UserError(unknown("pipeline", name, BUILT_IN) + ", or a local folder, or a hub id org/name")


def _fetch(name: str) -> Path:
    """The local copy of a pipeline on the hub; only the files that are read, and no pickled weights."""
    import diffusers
    from huggingface_hub import hf_hub_download

    reason = why_unreachable(name)
    local = reason is not None  # what is in the cache still serves
    try:
        index = Path(hf_hub_download(name, _INDEX, local_files_only=local))
        # Before anything else of an unknown repository: other pipelines may bring code of their own
        kind = _check_index(name, read_configuration(index, f"pipeline {name!r}"))
        left_out = {} if kind == _XL_CLASS_NAME else {"safety_checker": None, "feature_extractor": None}
        return Path(getattr(diffusers, kind).download(name, use_safetensors=True, local_files_only=local, **left_out))
    except UserError:
        raise
    except hub_errors() as error:
        raise not_fetched("pipeline", name, reason, error) from error


def _check_index(name: str, index: dict[str, Any]) -> str:
    """The pipeline's class."""
    found = index.get("_class_name")
    if found in (_CLASS_NAME, _XL_CLASS_NAME):
        return str(found)
    raise UserError(
        f"pipeline {name!r} is a {found}: supported are {_CLASS_NAME} (Stable Diffusion 1.x, 2.x) and "
        f"{_XL_CLASS_NAME} (SDXL)"
    )


def _place(pipe: Any, device: torch.device, dtype: torch.dtype) -> None:
    for network in _XL_NETWORKS:
        module = getattr(pipe, network, None)
        if module is None:
            continue
        module.to(device=device, dtype=torch.float32 if network == "vae" and dtype == torch.float16 else dtype)
        module.eval().requires_grad_(False)
    if dtype == torch.float16:
        first = pipe.vae.decoder.conv_in if pipe.vae.post_quant_conv is None else pipe.vae.post_quant_conv
        first.register_forward_pre_hook(_converted)  # diffusers hands its VAE whatever the UNet makes
    pipe.set_progress_bar_config(disable=True)


def _converted(layer: torch.nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Inputs in the precision of the layer's weights."""
    return (inputs[0].to(next(layer.parameters()).dtype), *inputs[1:])
