"""Copies between host and device that wait for nothing.

A copy from or into ordinary memory waits until all that was queued before it is done; one with pinned memory is queued
itself. So the host prepares, compresses and stores other batches while a device still makes this one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def to_host(tensor: Tensor) -> Tensor:
    """The tensor on the CPU: from a CUDA device in pinned memory, where it is once the stream has come so far."""
    if tensor.device.type != "cuda":
        return tensor.cpu()
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on ``device``: on a CUDA device once the stream has come so far."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()  # torch keeps it until the copy is done
    return tensor.to(device, non_blocking=True)


def marked(device: torch.device) -> Callable[[], None]:
    """A wait for all that is queued on ``device`` now."""
    if device.type != "cuda":
        return lambda: None
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return event.synchronize
