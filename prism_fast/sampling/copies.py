"""Networks that the fast levels own: copies in another layout or precision, renewed when the originals change."""

from __future__ import annotations

import copy
from typing import Any

import torch

from prism_fast.sampling.config import SamplerConfig
from prism_fast.sampling.state import State, state_of


def is_compiled(config: SamplerConfig, device: torch.device) -> bool:
    """Whether the networks of a configuration are compiled."""
    return config.compile == "on" or (config.compile == "auto" and device.type == "cuda")


def copies_for(config: SamplerConfig, device: torch.device) -> Copies:
    """In channels-last layout on CUDA where the networks are compiled.

    Not compiled, Stable Diffusion 1.5 was slower in that layout on an H100 (bench/results/throughput-cuda.jsonl: exact
    beside same-schedule), probably because torch's group norm copies such inputs.
    """
    return Copies(device.type == "cuda" and is_compiled(config, device))


class Copies:
    """One copy for each part of a pipeline, shared by the samplers of that pipeline.

    Args:
        channels_last: copy into that layout; otherwise copies share their originals' weights where the precision does.
    """

    def __init__(self, channels_last: bool) -> None:
        self._channels_last = channels_last
        self._made: dict[str, tuple[State, Any]] = {}

    @property
    def layout(self) -> torch.memory_format:
        """Of weights that are not their originals'."""
        return torch.channels_last if self._channels_last else torch.contiguous_format

    def of(self, part: str, network: Any, dtype: torch.dtype | None = None) -> Any:
        """A copy of ``network`` as it is now, whose modules may be changed.

        Args:
            part: what it is for (``unet``); the copy of another network under this name is dropped.
            network: left as it is.
            dtype: None: its own.
        """
        state = self.state(network, dtype)
        if part not in self._made or self._made[part][0] != state:
            shared = [] if self._owns(network, dtype) else [*network.parameters(), *network.buffers()]
            made = copy.deepcopy(network, {id(tensor): tensor for tensor in shared})
            made = made if dtype is None else made.to(dtype=dtype)
            self._made[part] = state, made.to(memory_format=self.layout) if self._channels_last else made
        return self._made[part][1]

    def state(self, network: Any, dtype: torch.dtype | None = None) -> State:
        """Changes whenever a copy of ``network`` has to be made again. Arguments are those of :meth:`of`."""
        return State((dtype,)) + state_of(network, contents=self._owns(network, dtype))

    def _owns(self, network: Any, dtype: torch.dtype | None) -> bool:
        """Whether a copy has weights of its own."""
        return self._channels_last or (dtype is not None and dtype != network.dtype)


def decoding_network(pipe: Any, copies: Copies) -> Any:
    """A copy of the pipeline's autoencoder."""
    return copies.of("vae", pipe.vae, decoding_dtype(pipe.vae))


def decoding_dtype(vae: Any) -> torch.dtype | None:
    """fp32 for an autoencoder that overflows in fp16, as its configuration says; None: its own."""
    overflows = vae.dtype == torch.float16 and getattr(vae.config, "force_upcast", False)
    return torch.float32 if overflows else None
