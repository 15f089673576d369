"""Tensors out of files that torch pickled: read as data, no code of theirs is run."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError  # noqa: TID251  only its name: torch raises it for what is not tensors
from typing import Any

import torch
from torch import Tensor

from prism_fast.errors import UserError
from prism_fast.pipeline.weights import in_short, load_errors

WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which training scripts keep a state dict, beside optimizers and counters; the first one there is taken."""

_PREFIXES = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put before every name."""


@dataclass(frozen=True, kw_only=True)
class StateDict:
    """The tensors of a file.

    Attributes:
        tensors: by name, dense, on the CPU; tied ones share their memory.
        wrapper: the key of the file under which they were; empty for a plain state dict.
        left_out: the file's other keys, sorted.
    """

    tensors: dict[str, Tensor]
    wrapper: str = ""
    left_out: tuple[str, ...] = ()


def read_pickled(path: Path) -> StateDict:
    """The state dict in a file of ``torch.save``.

    Raises:
        UserError: missing, damaged, or holds other things than tensors.
    """
    try:
        # weights_only: an unpickler that makes tensors and plain containers, and refuses everything else.
        content = torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251
    except FileNotFoundError as error:
        raise UserError(f"no such file: {path}") from error
    except UnpicklingError as error:
        raise UserError(
            f"{path} is damaged, or holds other things than tensors, which only running its code could read: "
            "save the state dict where the model was made, torch.save(model.state_dict(), FILE)"
        ) from error
    except load_errors() + (EOFError, struct.error) as error:
        raise UserError(f"cannot read {path} ({in_short(error)}): save or download it again") from error
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}, not a state dict: {_CURE}")
    return _state_dict(content, path)


_CURE = "save model.state_dict(), alone or under one of " + ", ".join(WRAPPERS)


def _state_dict(content: Mapping[Any, Any], path: Path) -> StateDict:
    wrapper = next((key for key in WRAPPERS if isinstance(content.get(key), Mapping)), "")
    state: Mapping[Any, Any] = content[wrapper] if wrapper else content
    if not state:
        raise UserError(f"{path} holds no tensor: {_CURE}")
    for name, value in state.items():
        where = f"{path}: {wrapper and wrapper + ', '}{name!r}"
        if not isinstance(name, str):
            raise UserError(f"{where} is no name of a tensor: {_CURE}")
        if not isinstance(value, Tensor):
            raise UserError(f"{where} is of type {type(value).__name__}, not a tensor: {_CURE}")
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            raise UserError(f"{where} is not a plain dense tensor: save the weights dense and unquantised")
    tensors = {name: value.detach() for name, value in state.items()}
    left_out = tuple(sorted(str(key) for key in content if key != wrapper)) if wrapper else ()
    return StateDict(tensors=_without_prefix(tensors), wrapper=wrapper, left_out=left_out)


def _without_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) and name != prefix for name in tensors):
            return _without_prefix({name.removeprefix(prefix): tensor for name, tensor in tensors.items()})
    return tensors
