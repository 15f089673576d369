"""Makes shards: draw, store, publish. :mod:`prism_fast.synthesis.job` is the whole job.

Light to import: torch comes with the sampler and the labeller, so that a process without them can do the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prism_fast.errors import UserError
from prism_fast.synthesis.drawer import Drawer, Drawn
from prism_fast.synthesis.place import Place
from prism_fast.synthesis.row_order import RowOrder
from prism_fast.synthesis.shards import Sample, ShardWriter, claim_shard, read_stats
from prism_fast.synthesis.tally import shard_stats


@dataclass(frozen=True, kw_only=True)
class Worker(Drawer):
    """Makes shards in this process, one at a time.

    Args:
        out: the set's folder, already claimed.
        remake: shards that are made although they are published.
    """

    out: Place
    remake: frozenset[int] = frozenset()

    def make(self, shard: int) -> dict[str, Any] | None:
        """Publishes a shard, or finds it published: the same bytes, whoever makes them.

        Args:
            shard: its number.

        Returns:
            Its statistics; None while another live run on this folder is making it.

        Raises:
            Interrupted: a stop was asked for; nothing of the shard is left.
            UserError: the disk is full.
        """
        self.stop.check()
        with writing(self.out):
            writer = claim_shard(self.out, shard)
            if writer is None:
                return None
            with writer:
                found = None
                if shard not in self.remake:
                    found = read_stats(self.out, shard, self.config_hash)  # another run was faster
                if found is None:
                    return self._fill(shard, writer)
        self.bar.update(found["rows"])
        return found

    def _fill(self, shard: int, writer: ShardWriter) -> dict[str, Any]:
        """Makes the rows of a claimed shard; no batch has rows of two shards."""
        rows = self.plan.rows(shard)
        order = RowOrder(writer, rows[0].index)

        def settle(record: dict[str, Any], drawn: Drawn | None) -> None:
            order.settle(record, None if drawn is None else self.stored(drawn.file, drawn.logits, record))

        drawn = self.draw(rows, settle)
        filtered = drawn.replaced if self.plan.config.filter is not None else None
        return writer.publish(shard_stats(shard, order.records, drawn.guidances, self.config_hash, filtered))

    def stored(self, image: bytes, logits: NDArray[np.float16], record: dict[str, Any]) -> Sample:
        """A row as its shard gets it: an image file, logits [K] and provenance."""
        config = self.plan.config
        return Sample(
            index=record["index"],
            image=image,
            extension=config.format,
            label=record["class_index"],
            logits=logits,
            record=record,
            top_k=config.soft_top_k,
        )


@contextmanager
def writing(out: Place) -> Iterator[None]:
    """A disk that is full or read-only is the user's to mend, not a bug."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write to {out}: {error}; what is published is whole, the same command continues"
        ) from error
