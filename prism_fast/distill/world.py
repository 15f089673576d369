"""The ranks that train together: what torchrun started, or this process alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from prism_fast.config import torchrun_place
from prism_fast.errors import UserError
from prism_fast.pipeline.weights import in_short

_LOST_SIGNS = (
    "gloo",
    "NCCL",
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Timed out waiting",
    "timed out after",
    "Socket Timeout",
)
"""How torch says that another rank does not answer: mostly in errors without a type of their own."""


@dataclass(frozen=True, kw_only=True)
class World:
    """Which of how many ranks this process is; ``local_rank`` counts those of one machine. Alone, nothing is sent.

    Whatever is collective here goes over the CPU: it fails at once where a rank has ended, a GPU's queue does not.
    """

    rank: int = 0
    ranks: int = 1
    local_rank: int = 0

    @property
    def writes(self) -> bool:
        """Whether this rank writes the run's files: the first."""
        return self.rank == 0

    def device(self, name: str, resolved: torch.device) -> torch.device:
        """The rank's own device; ``name`` is what was asked for and ``resolved`` what that means alone.

        Raises:
            UserError: several ranks were given one CUDA device, or there are too few.
        """
        if self.ranks == 1 or resolved.type != "cuda":
            return resolved
        if resolved.index is not None and name not in ("auto", "cuda"):
            raise UserError(f"{self.ranks} ranks cannot share {name!r}: use --device cuda, each takes its own")
        if self.local_rank >= torch.cuda.device_count():
            raise UserError(
                f"rank {self.rank} has no CUDA device of its own: torch sees {torch.cuda.device_count()}; "
                "lower --nproc-per-node"
            )
        return torch.device("cuda", self.local_rank)

    def any(self, flag: bool) -> bool:
        """Whether it is so on some rank. Waits for all of them."""
        if self.ranks == 1:
            return flag
        found = torch.tensor(int(flag))
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return bool(found)

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the ranks, on the CPU."""
        values = values.cpu()
        if self.ranks > 1:
            dist.all_reduce(values)
            values /= self.ranks
        return values

    def gather(self, values: Tensor) -> Tensor:
        """The rows [B, ...] of all ranks, in their order, where each has as many; on the device of ``values``."""
        if self.ranks == 1:
            return values
        own = values.cpu().contiguous()
        found = [torch.empty_like(own) for _ in range(self.ranks)]
        dist.all_gather(found, own)
        return torch.cat(found).to(values.device)

    def gather_json(self, value: Any) -> list[Any]:
        """A JSON value of every rank, by rank."""
        if self.ranks == 1:
            return [value]
        text = torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8)
        sizes = self.gather(torch.tensor([len(text)]))
        padded = torch.zeros(1, int(sizes.max()), dtype=torch.uint8)
        padded[0, : len(text)] = text
        rows = self.gather(padded)
        return [json.loads(bytes(row[:size].tolist())) for row, size in zip(rows, sizes.tolist(), strict=True)]


ALONE = World()


def this_world() -> World:
    """What torchrun says about this process, or :data:`ALONE`.

    Raises:
        UserError: torchrun's variables contradict each other.
    """
    rank, ranks, local_rank = torchrun_place()
    return World(rank=rank, ranks=ranks, local_rank=local_rank)


def own_random_numbers(device: torch.device) -> AbstractContextManager[None]:
    """Leaves the global generators as they were. Those of other GPUs, which other ranks may use, are not touched."""
    own: AbstractContextManager[None] = torch.random.fork_rng([device] if device.type == "cuda" else [])
    return own


@contextmanager
def joined(world: World, device: torch.device, timeout_s: float) -> Iterator[None]:
    """Inside, the ranks of ``world`` can talk. One that ends ends them all: with an error, never by waiting for ever.

    A process group that is there already is used and left.

    Raises:
        UserError: another rank ended, or did not answer for ``timeout_s``.
    """
    if world.ranks == 1:
        yield
        return
    own = not dist.is_initialized()
    try:
        if own:
            if device.type == "cuda":
                torch.cuda.set_device(device)
            backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
        yield
    except RuntimeError as error:
        if not _lost(error):
            raise
        raise UserError(
            f"rank {world.rank}: another of the {world.ranks} ranks ended, or did not answer for {timeout_s:g} s "
            f"({in_short(error)}): look for its own message; the same torchrun command continues from the last "
            "checkpoint"
        ) from error
    finally:
        if own and dist.is_initialized():
            dist.destroy_process_group()


def _lost(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or any(sign in str(error) for sign in _LOST_SIGNS)
