"""Which loader reads a set."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

from prism_fast.data.crops import Fetched, Request
from prism_fast.data.loader_config import READERS
from prism_fast.errors import UserError

if TYPE_CHECKING:
    import torch

_log = logging.getLogger(__name__)


class Reader(Protocol):
    """Reads crops of a set, as :class:`prism_fast.data.torch_loader.TorchReader` does."""

    def read(self, plan: Callable[[int], Request], first: int) -> Iterator[Fetched]: ...


def dali_is_installed() -> bool:
    """Whether it can be imported, as far as that is known without doing it."""
    return importlib.util.find_spec("nvidia") is not None and importlib.util.find_spec("nvidia.dali") is not None


def choose_loader(name: str, device: torch.device) -> str:
    """The loader to take: ``name``, or for ``auto`` DALI on CUDA where it is installed, else torch.

    Raises:
        UserError: no such loader, or it is not installed.
    """
    installed = dali_is_installed()
    if name == "auto":
        if device.type == "cuda" and installed:
            chosen, why = "dali", "it decodes on the GPU"
        elif device.type == "cuda":
            chosen, why = "torch", "DALI would decode on the GPU, but is not installed: pip install 'prism_fast[dali]'"
        else:
            chosen, why = "torch", f"the device is {device}"
        _log.info("images are loaded by %s: %s", chosen, why)
        return chosen
    if name == "dali" and not installed:
        raise UserError("the loader dali is not installed: pip install 'prism_fast[dali]', or take the loader torch")
    READERS.load(name)
    return name
