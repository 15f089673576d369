"""What a benchmark of an operation consists of. The operations' own are in bench/cases/, one file each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Outputs = tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One operation at one size.

    Args:
        name: of the operation.
        shape, dtype: of the largest input.
        arguments: of all callables, on the device.
        op: the operation.
        expression: the same in plain torch as one would write it by hand; eager, and what torch.compile gets.
        verify: raises where the outputs of the operation are not those of the expression.
        moved_bytes: inputs and outputs, once each.
        backend: which kernel of the operation runs.
        public: the best public kernel for it, where its package is installed: name and callable. It may give less
            than the operation does; then its file says what is missing.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    arguments: tuple[object, ...]
    op: Callable[..., Outputs]
    expression: Callable[..., Outputs]
    verify: Callable[[Outputs, Outputs], None]
    moved_bytes: int
    backend: str
    public: tuple[str, Callable[..., object]] | None = None


def bytes_of(*tensors: Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def triton_or_torch(device: torch.device) -> str:
    """The back-end of operations without a native kernel."""
    return "triton" if device.type == "cuda" else "plain torch"


def agree(got: Outputs, want: Outputs) -> None:
    """Every output within a few roundings of its dtype. Looser than the tests: both sides err, at benchmark sizes."""
    for mine, theirs in zip(got, want, strict=True):
        tolerance = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}[mine.dtype]
        torch.testing.assert_close(mine, theirs, atol=tolerance, rtol=tolerance)
