"""What became of one attempt at a shard, in words that go from a worker to whoever gave it the shard."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from prism_fast.errors import UserError
from prism_fast.synthesis.interruption import Interrupted
from prism_fast.synthesis.worker import Worker


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One attempt.

    Args:
        kind: ``ready``: nothing was attempted yet; ``done``: published; ``busy``: another live run is making it;
            ``stopped``: a stop was asked for, nothing of it is left; ``refused``: the run cannot go on.
        stats: of a published shard.
        text: why it was refused.
    """

    kind: Literal["ready", "done", "busy", "stopped", "refused"]
    stats: dict[str, Any] = field(default_factory=dict)
    text: str = ""


def attempt(worker: Worker, shard: int) -> Outcome:
    """Has ``worker`` make a shard."""
    try:
        stats = worker.make(shard)
    except Interrupted:
        return Outcome(kind="stopped")
    except UserError as error:
        return Outcome(kind="refused", text=str(error))
    return Outcome(kind="busy") if stats is None else Outcome(kind="done", stats=stats)
