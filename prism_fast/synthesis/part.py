"""A part of a set, for machines that share it without talking to each other."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from prism_fast.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Part:
    """Every shard whose number is ``number`` modulo ``of``; all parts together are the set.

    Args:
        number: 0 <= number < of.
        of: how many parts there are.
    """

    number: int = 0
    of: int = 1

    @classmethod
    def parse(cls, text: str) -> Self:
        """``2/8`` is the third of eight parts.

        Raises:
            UserError: anything else.
        """
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        if found is None or not int(found[1]) < int(found[2]):
            raise UserError(f"--part is {text!r}: give number/parts, the first of eight is 0/8, the last 7/8")
        return cls(number=int(found[1]), of=int(found[2]))

    def __contains__(self, shard: int) -> bool:
        return shard % self.of == self.number


NO_SHARDS = Part(number=-1)
"""Of a run that draws the pilot and claims the folder, and nothing else."""
