"""How a set that does not fit in memory is read."""

from __future__ import annotations

from dataclasses import dataclass

from prism_fast.config import MAX_COUNT, MAX_SIDE, cores, ranks_here, require, require_whole
from prism_fast.registry import Registry

READERS = Registry(
    "loader", {"dali": "prism_fast.data.dali:DaliReader", "torch": "prism_fast.data.torch_loader:TorchReader"}
)
LOADERS = ("auto", *READERS.names())
"""What can be asked for."""

_MOST_WORKERS = 8


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """How shards are streamed.

    Attributes:
        crop_size: side in pixels of the square views that are read; None: height and width of the set's first image.
        workers: processes (torch) or threads (DALI) that read and decode; 0 is the training process itself (torch);
            None: as many as there are cores, shared among the machine's ranks, at most 8.
        window: shards whose images are mixed with each other in an epoch's order. More mix better; fewer read a disk
            with less seeking.
        max_corrupt: largest share of images that may be undecodable, in [0, 1].
    """

    crop_size: int | None = None
    workers: int | None = None
    window: int = 16
    max_corrupt: float = 0.001

    def __post_init__(self) -> None:
        require_whole(self, "crop_size", 1, MAX_SIDE)
        require_whole(self, "workers", 0, 1024)
        require_whole(self, "window", 1, MAX_COUNT)
        require(0 <= self.max_corrupt <= 1, "max_corrupt", self.max_corrupt, "a share")

    def workers_here(self) -> int:
        """:attr:`workers`, or what they are on this machine."""
        if self.workers is not None:
            return self.workers
        return min(max(1, cores() // ranks_here()), _MOST_WORKERS)
