"""What networks are like now, so that a later look says whether anything was changed that decides an image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from prism_fast.sampling.transfer import marked, to_host

_SAMPLES = 64
"""Values of each weight that are compared one by one, spread over it."""

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_PLAIN = bool, int, float, complex, str, bytes, type(None), type, torch.dtype, torch.device
_AS_THEY_ARE = frozenset({*_PLAIN, FunctionType, MethodType, BuiltinFunctionType, partial})

_IGNORED = frozenset(vars(nn.Module())) - {"training"} | {"_output_capturing_hooks_installed"}
"""Attributes that every module has and that say nothing about its output, and one that transformers sets in a call."""


class Contents:
    """The norm of every weight and :data:`_SAMPLES` of its values; only a comparison waits for the device.

    Norms are fp32, so that a write to a few elements of a large weight shows where it moves the norm by 1e-7 of it. The
    samples show what leaves norms alone.

    Args:
        weights: those of other types than floating point are left out.
    """

    def __init__(self, weights: Iterable[Tensor]) -> None:
        weights = [weight.detach() for weight in weights if weight.dtype in _FLOATS and weight.numel()]
        self._values, self._wait = torch.empty(0), marked(torch.device("cpu"))
        if weights:
            norms = torch.stack(torch._foreach_norm(weights, 2, dtype=torch.float32))
            samples = torch.cat([_sample(weight) for weight in weights]).float()
            self._values, self._wait = to_host(torch.cat([norms, samples])), marked(norms.device)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Contents) and self._bytes() == other._bytes()

    __hash__ = None  # type: ignore[assignment]

    def _bytes(self) -> bytes:
        self._wait()
        return self._values.numpy().tobytes()  # a weight that is not a number equals itself


@dataclass(frozen=True)
class State:
    """Equals another one if nothing was changed in between.

    Attributes:
        seen: what the host knows.
        contents: what only the device knows, of networks whose weights somebody else has copied.
    """

    seen: tuple[object, ...] = ()
    contents: tuple[Contents, ...] = ()

    def __add__(self, other: State) -> State:
        return State(self.seen + other.seen, self.contents + other.contents)


def state_of(*networks: Any, contents: bool) -> State:
    """Changes with a weight, and with any setting of a module: an adapter's, FreeU, an attention processor.

    Args:
        networks: None is left out.
        contents: look into the weights too (:class:`Contents`): what is written through ``weight.data`` shows nowhere
            else. Whoever shares the weights need not; who has copied them, or kept something computed with them, must.
    """
    state: list[object] = []
    found: list[Contents] = []
    for network in networks:
        if network is None:
            continue
        weights: list[Tensor] = []
        state.append(id(network))
        for module in network.modules():
            own = _own_weights(module)
            state += _settings(module)
            state += map(_place, own)
            weights += own
        if contents:
            found.append(Contents(weights))
    return State(tuple(state), tuple(found))


def text_state(pipe: Any) -> State:
    """The state of a pipeline's text encoders, whose embeddings are kept."""
    encoders = pipe.text_encoder, getattr(pipe, "text_encoder_2", None)
    return State(tuple(encoder is None for encoder in encoders)) + state_of(*encoders, contents=True)


def _own_weights(module: nn.Module) -> list[Tensor]:
    return [weight for weight in (*module._parameters.values(), *module._buffers.values()) if weight is not None]


def _place(weight: Tensor) -> tuple[int, int, int]:
    """Which tensor it is, where, and how often it was written to where torch can see it."""
    return id(weight), weight.data_ptr(), 0 if weight.is_inference() else weight._version


def _sample(weight: Tensor) -> Tensor:
    count = min(weight.numel(), _SAMPLES)
    dense = weight.is_contiguous() or weight.is_contiguous(memory_format=_layout(weight))
    flat = weight if dense else weight.contiguous()
    return flat.as_strided((count,), (flat.numel() // count,))  # in the order of memory


def _layout(weight: Tensor) -> torch.memory_format:
    return torch.channels_last if weight.dim() == 4 else torch.contiguous_format


def _settings(module: nn.Module) -> list[object]:
    state: list[object] = [type(module)]
    for name, value in vars(module).items():
        if name not in _IGNORED:
            state += name, _described(value)
            if name == "processor":
                state.append(_described(vars(value)))
    return state


def _described(value: object) -> object:
    """Something that equals what ``value`` is described as later, if and only if it means the same.

    Of an object that is none of the plain kinds its class.
    """
    kind = type(value)
    if kind in _AS_THEY_ARE:
        return value
    if isinstance(value, Tensor):
        return _place(value)
    if isinstance(value, list | tuple):
        return [_described(one) for one in value]
    if isinstance(value, set | frozenset):
        return {one for one in value if type(one) in _AS_THEY_ARE}
    if isinstance(value, Mapping):
        return [(key, _described(one)) for key, one in value.items()]
    return kind
