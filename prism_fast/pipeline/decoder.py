"""Latents to images, with a backward."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from prism_fast.errors import UserError
from prism_fast.ops.resample_filter import filter_matrix
from prism_fast.pipeline.components import load_network, quiet
from prism_fast.pipeline.configuration import read_configuration, settings_of
from prism_fast.pipeline.hub import fetch, is_hub_id
from prism_fast.pipeline.linear_fit import load_linear
from prism_fast.pipeline.load import is_xl
from prism_fast.pipeline.weights import fingerprint
from prism_fast.registry import unknown
from prism_fast.wide import wide

_TINY_CURE = (
    "set guidance.tiny to its folder or hub id (madebyollin/taesd for Stable Diffusion 1.x and 2.x, "
    "madebyollin/taesdxl for SDXL), or guidance.decoder to kl or kl@N"
)

DECODERS = ("kl", "tiny", "kl@PIXELS", "tiny@PIXELS", "linear")


class LatentDecoder(Protocol):
    """Latents to images.

    Attributes:
        name: as :func:`load_decoder` takes it.
        low: the value of ``raw`` that means black.
        high: the value of ``raw`` that means white.
    """

    name: str
    low: float
    high: float

    def raw(self, latents: Tensor) -> Tensor:
        """Images [B, 3, H, W] as the network gives them, in its dtype and not confined to [low, high].

        ``latents``: scaled [B, C, h, w] (unit variance). Differentiable. Images are independent.
        """
        ...


def decode(decoder: LatentDecoder, latents: Tensor) -> Tensor:
    """Images [B, 3, H, W] in [0, 1], at least fp32.

    Differentiable; clamped, so the derivative is zero where the decoder leaves [0, 1].
    """
    raw = decoder.raw(latents)
    raw = wide(raw)
    scale = 1.0 / (decoder.high - decoder.low)
    images: Tensor = (raw * scale - decoder.low * scale).clamp(0, 1)
    return images


class AutoencoderDecoder:
    """The decoder of a diffusers autoencoder (``AutoencoderKL`` or ``AutoencoderTiny``)."""

    low, high = -1.0, 1.0

    def __init__(self, autoencoder: Any, name: str = "kl") -> None:
        self.name = name
        self._autoencoder = autoencoder
        self._scale = float(autoencoder.config.scaling_factor)
        self._shift = float(getattr(autoencoder.config, "shift_factor", None) or 0.0)

    def raw(self, latents: Tensor) -> Tensor:
        unscaled = latents / self._scale
        if self._shift:
            unscaled = unscaled + self._shift
        images: Tensor = self._autoencoder.decode(unscaled.to(self._autoencoder.dtype), return_dict=False)[0]
        return images


class ResizedDecoder:
    """Another decoder on smaller latents: most of a decoder's work goes into pixels that the teacher never sees.

    Args:
        decoder: what decodes.
        size: (h, w) that the latents are resized to, antialiased bilinear.
        source: (h, w) of the latents.
        device: of the latents.
    """

    def __init__(
        self, decoder: LatentDecoder, size: tuple[int, int], source: tuple[int, int], device: torch.device
    ) -> None:
        self.name, self.low, self.high = decoder.name, decoder.low, decoder.high
        self._decoder = decoder
        # here once: a copy from the host cannot be captured
        self._rows, self._columns = (
            filter_matrix(before, after).to(device, torch.float32) for before, after in zip(source, size, strict=True)
        )

    def raw(self, latents: Tensor) -> Tensor:
        precise = wide(latents)
        return self._decoder.raw(self._rows.to(precise) @ precise @ self._columns.to(precise).T)


class LinearDecoder:
    """Colours as an affine map of the latents, one pixel for each latent pixel (``fit_linear``).

    Args:
        weight: fp32 [3, C].
        bias: fp32 [3], in [0, 1] units.
    """

    name, low, high = "linear", 0.0, 1.0

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self._weight, self._bias = weight, bias

    def raw(self, latents: Tensor) -> Tensor:
        precise = wide(latents)
        return torch.einsum("rc,bchw->brhw", self._weight.to(precise), precise) + self._bias.to(precise).view(
            1, 3, 1, 1
        )


def check_autoencoder(pipe: Any) -> None:
    """
    Raises:
        UserError: an SDXL's autoencoder shifts its latents, channel by channel.
    """
    if is_xl(pipe) and getattr(pipe.vae.config, "latents_mean", None) is not None:
        raise UserError("an autoencoder with latents_mean is not supported: take the SDXL's own")


def load_decoder(
    pipe: Any,
    name: str = "kl",
    tiny: str | Path | None = None,
    *,
    network: Any = None,
    size: tuple[int, int] | None = None,
    layout: torch.memory_format = torch.contiguous_format,
) -> LatentDecoder:
    """The decoder ``name`` of ``pipe``.

    Args:
        pipe: a loaded pipeline.
        name: ``kl`` (the pipeline's own) or ``tiny`` (an ``AutoencoderTiny``), with ``@PIXELS`` on resized latents; or
            ``linear`` (``prism-fast fit-decoder`` has to have fitted it).
        tiny: folder or hub id of the ``AutoencoderTiny``; by default ``vae_tiny`` in the pipeline's folder.
        network: in place of the pipeline's own autoencoder: a copy of it.
        size: (h, w) of the latents; None: the pipeline's own.
        layout: of a tiny decoder's weights.

    Raises:
        UserError: another name, or no tiny decoder there, or one of other latents, or not all of its weights, no fit,
            or a size that the latents do not divide into.
    """
    if name == "linear":
        return LinearDecoder(*(x.to(pipe.vae.device) for x in load_linear(pipe)))
    if not re.fullmatch(r"(kl|tiny)(@[1-9][0-9]*)?", name):
        raise UserError(unknown("decoder", name, DECODERS))
    kind, _, pixels = name.partition("@")
    own = pipe.vae if network is None else network
    network = own if kind == "kl" else _load_tiny(pipe, tiny).to(memory_format=layout)
    decoder = AutoencoderDecoder(network, name)
    return _resized(decoder, pipe, int(pixels), size) if pixels else decoder


def decoder_fingerprint(pipe: Any, name: str, tiny: str | Path | None = None) -> str | None:
    """16 hex digits of the weights behind a decoder; None for the pipeline's own, which are in its fingerprint.

    Arguments and errors are :func:`load_decoder`'s.
    """
    kind = name.partition("@")[0]
    if kind == "linear":
        weight, bias = load_linear(pipe)
        return fingerprint({"weight": weight, "bias": bias}, kind)
    if kind == "tiny":
        network = _load_tiny(pipe, tiny)
        return fingerprint(network.state_dict(), settings_of(network.config))
    return None


def _load_tiny(pipe: Any, tiny: str | Path | None) -> Any:
    from diffusers import AutoencoderTiny

    folder = _tiny_folder(pipe, tiny)
    kind = read_configuration(folder / "config.json", "tiny decoder").get("_class_name")
    if kind != AutoencoderTiny.__name__:
        raise UserError(f"the tiny decoder in {folder} is a {kind}, not an AutoencoderTiny: {_TINY_CURE}")
    with quiet():
        autoencoder = load_network(folder, AutoencoderTiny, "tiny decoder")
    theirs, ours = autoencoder.config.latent_channels, pipe.unet.config.in_channels
    if theirs != ours:
        raise UserError(f"the tiny decoder in {folder} has {theirs} latent channels, not {ours}: {_TINY_CURE}")
    return autoencoder.to(device=pipe.vae.device, dtype=pipe.vae.dtype).eval().requires_grad_(False)


def _tiny_folder(pipe: Any, tiny: str | Path | None) -> Path:
    if tiny is None:
        folder = Path(pipe.config.get("_name_or_path") or ".") / "vae_tiny"
    else:
        folder = Path(tiny).expanduser()
        if not folder.is_dir() and is_hub_id(str(tiny)):
            return _fetched_tiny(str(tiny))
    if not (folder / "config.json").is_file():
        raise UserError(f"no tiny decoder (AutoencoderTiny) in {folder}: {_TINY_CURE}")
    return folder


@cache  # the hub is asked once in a process, which so keeps to one revision
def _fetched_tiny(repository: str) -> Path:
    return fetch("tiny decoder", repository, ("config.json", "diffusion_pytorch_model*.safetensors*"))


def _resized(decoder: AutoencoderDecoder, pipe: Any, pixels: int, latents: tuple[int, int] | None) -> LatentDecoder:
    """``decoder`` with its longer side at ``pixels``."""
    size = pipe.unet.config.sample_size if latents is None else latents
    source = (size, size) if isinstance(size, int) else tuple(size)
    factor = int(pipe.vae_scale_factor)
    scaled = [Fraction(side * pixels, max(source) * factor) for side in source]
    if pixels > max(source) * factor or any(side.denominator > 1 for side in scaled):
        raise UserError(
            f"decoder {decoder.name}: {pixels} pixels do not fit latents of {source[0]}x{source[1]}: take a multiple "
            f"of {factor} up to {max(source) * factor}"
        )
    height, width = (int(side) for side in scaled)
    return ResizedDecoder(decoder, (height, width), (int(source[0]), int(source[1])), pipe.vae.device)


def rows_at_once(pipe: Any, size: Sequence[int], compute_batch: int) -> int:
    """Rows of one call of the final decoder: all on the CPU; on CUDA as many as a quarter of the memory holds.

    A divisor of ``compute_batch``, so that all calls have one shape, and by the device's whole memory, not by what is
    free: the shape decides the last bits.

    Args:
        pipe: a loaded pipeline.
        size: (h, w) of the latents.
        compute_batch: rows of a batch.
    """
    if pipe.vae.device.type != "cuda":
        return compute_batch
    channels, pixels = 2 * int(pipe.vae.config.block_out_channels[0]), size[0] * size[1] * pipe.vae_scale_factor**2
    bytes_of_row = 4 * channels * pixels * pipe.vae.dtype.itemsize  # about four such activations live at once
    fits = torch.cuda.get_device_properties(pipe.vae.device).total_memory // 4 // bytes_of_row
    return max(rows for rows in range(1, compute_batch + 1) if compute_batch % rows == 0 and rows <= max(fits, 1))


def to_uint8(images: Tensor) -> Tensor:
    """[0, 1] to 0..255, rounded half to even as diffusers does."""
    return (images * 255).round().to(torch.uint8)
