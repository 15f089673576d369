"""Which pipelines and guidance the drop-in takes over, and why not the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from prism_fast.config import DTYPES, resolve_device, resolve_dtype
from prism_fast.errors import UserError
from prism_fast.pipeline.decoder import check_autoencoder
from prism_fast.sampling.config import GuidanceConfig
from prism_fast.sampling.schedules import own_scheduler

_CLASSES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
_NETWORKS = ("unet", "vae", "text_encoder", "text_encoder_2")


def adopt(pipe: Any, dtype: str | None) -> Any:
    """``pipe``, or the pipeline of that name, on CUDA where there is one.

    Args:
        pipe: a pipeline or a name for ``load_pipeline``.
        dtype: that it has to have; None: its own (fp32 for a name).

    Raises:
        UserError: it is not supported, or in another precision.
    """
    if isinstance(pipe, str):
        from prism_fast.pipeline.load import load_pipeline

        pipe = load_pipeline(pipe, resolve_device("auto"), resolve_dtype(dtype or "float32"))
    check_adopted(pipe)
    check_dtype(pipe, dtype)
    return pipe


def check_dtype(pipe: Any, dtype: str | None) -> None:
    """
    Raises:
        UserError: the pipeline is in another precision than ``dtype``.
    """
    if dtype is not None and pipe.unet.dtype != resolve_dtype(dtype):
        raise UserError(
            f"config: dtype is {dtype}, the pipeline is in {pipe.unet.dtype}: leave dtype out or convert it"
        )


def check_adopted(pipe: Any) -> None:
    """
    Raises:
        UserError: the pipeline, or what was loaded into it, is not supported.
    """
    kind = type(pipe).__name__
    if kind not in _CLASSES:
        raise UserError(
            f"a {kind} is not supported: prism_fast.compile takes a {' or '.join(_CLASSES)} (text to image, without "
            "ControlNet, inpainting or a first image), or the name of one"
        )
    parts = [part for name in _NETWORKS if (part := getattr(pipe, name, None)) is not None]
    if any(hasattr(part, "_hf_hook") for part in parts) or getattr(pipe, "hf_device_map", None):
        raise UserError("the pipeline is offloaded or spread over devices: move it whole, as in pipe.to('cuda')")
    if len({part.device for part in parts}) > 1:
        raise UserError("the pipeline's networks are on different devices: move it whole, as in pipe.to('cuda')")
    if str(pipe.unet.dtype).removeprefix("torch.") not in DTYPES:
        raise UserError(f"the pipeline is in {pipe.unet.dtype}; supported are {', '.join(DTYPES)}")
    if getattr(pipe.unet, "encoder_hid_proj", None) is not None or pipe.unet.config.get("encoder_hid_dim_type"):
        raise UserError("IP-adapters are not supported: unload it with pipe.unload_ip_adapter(); LoRA is supported")
    check_autoencoder(pipe)
    own_scheduler(pipe.scheduler)


def adopt_guidance(guidance: GuidanceConfig | Mapping[str, Any] | None, teacher: object) -> GuidanceConfig | None:
    """The guidance that ``compile`` was asked for.

    Raises:
        UserError: no teacher to guide, unknown options, or a gate that wants a pilot.
    """
    if teacher is None:
        if guidance is not None:
            raise UserError("guidance needs a teacher: give one, or leave guidance out")
        return None
    if not isinstance(guidance, GuidanceConfig):
        options = {"gate": "none"} | dict(guidance or {})
        known = [field.name for field in fields(GuidanceConfig)]
        unknown = [name for name in options if name not in known]
        if unknown:
            raise UserError(f"guidance: no such option as {', '.join(unknown)}; there are {', '.join(known)}")
        guidance = GuidanceConfig(**options)
    if guidance.gate == "pilot":
        raise UserError("guidance.gate: pilot needs the pilot that synthesize runs: set gate: none")
    return guidance
