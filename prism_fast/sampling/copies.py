"""Networks that the fast levels own: copies in another layout or precision, renewed when the originals change."""

from __future__ import annotations

import copy
from typing import Any

import torch


class Copies:
    """One copy for each part of a pipeline, shared by the samplers of that pipeline.

    Args:
        channels_last: copy into that layout; otherwise copies share their originals' weights where the precision does.
    """

    def __init__(self, channels_last: bool) -> None:
        self._channels_last = channels_last
        self._made: dict[str, tuple[list[object], Any]] = {}

    def of(self, part: str, network: Any, dtype: torch.dtype | None = None) -> Any:
        """A copy of ``network`` with its present weights, whose modules may be changed.

        Args:
            part: what it is for (``unet``); the copy of another network under this name is dropped.
            network: left as it is.
            dtype: None: its own.
        """
        other = dtype is not None and dtype != network.dtype
        state: list[object] = [id(network), dtype, *state_of(network)]
        if part not in self._made or self._made[part][0] != state:
            shared = [] if self._channels_last or other else [*network.parameters(), *network.buffers()]
            made = copy.deepcopy(network, {id(tensor): tensor for tensor in shared})
            made = made.to(dtype=dtype) if other else made
            self._made[part] = state, made.to(memory_format=torch.channels_last) if self._channels_last else made
        return self._made[part][1]


def decoding_network(pipe: Any, copies: Copies) -> Any:
    """The pipeline's autoencoder; a copy in fp32 of one that overflows in fp16, as its configuration says."""
    vae = pipe.vae
    overflows = vae.dtype == torch.float16 and getattr(vae.config, "force_upcast", False)
    return copies.of("vae", vae, torch.float32) if overflows else vae


def state_of(*networks: Any) -> list[object]:
    """Changes when a weight is replaced or written to, and with an adapter's scale, as LoRA, fusing and loading do."""
    state: list[object] = []
    for network in networks:
        if network is None:
            continue
        state += [(id(weight), weight._version) for weight in network.parameters()]
        for module in network.modules():
            scaling = getattr(module, "scaling", None)
            if isinstance(scaling, dict):  # a layer of peft
                state.append((id(module), tuple(scaling.items()), str(getattr(module, "active_adapters", None))))
                state.append(bool(getattr(module, "disable_adapters", False)))
    return state
