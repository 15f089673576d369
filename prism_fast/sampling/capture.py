"""Functions of no arguments that read and write buffers, run as CUDA graphs where there is CUDA."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor


class Captured:
    """A dictionary of captured graphs in one memory pool, each made when its key is first asked for.

    A function must read and write nothing but ``state`` and constants; what it allocates lives in the pool.

    Args:
        state: the buffers; the runs that warm a function up leave them as they were.
        enabled: capture; otherwise functions are just called.
    """

    def __init__(self, state: Sequence[Tensor], enabled: bool) -> None:
        self._state = list(state)
        self._enabled = enabled
        self._graphs: dict[Hashable, Any] = {}
        self._pool: Any = None

    def __len__(self) -> int:
        return len(self._graphs)

    def run(self, key: Hashable, function: Callable[[], None]) -> None:
        """Calls ``function``, or replays the graph that was captured of it under ``key``."""
        if not self._enabled:
            function()
            return
        if key not in self._graphs:
            self._graphs[key] = self._capture(function)
        self._graphs[key].replay()

    def _capture(self, function: Callable[[], None]) -> Any:
        before = [tensor.clone() for tensor in self._state]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # compilation, autotuning and lazy tables cannot be captured
            for _ in range(3):
                function()
                self._restore(before)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        with torch.cuda.graph(graph, pool=self._pool):
            function()
        self._restore(before)
        return graph

    def _restore(self, before: Sequence[Tensor]) -> None:
        for tensor, kept in zip(self._state, before, strict=True):
            tensor.copy_(kept)
