"""What all ranks of a machine refuse alike is told once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prism_fast.errors import ToldElsewhere, UserError


@contextmanager
def refused_alike(local_rank: int) -> Iterator[None]:
    """What is refused inside, every rank of the machine refuses: the first of them tells.

    The others end with the same message for torchrun alone, which reports the rank that failed first. Nothing that
    depends on a rank's own share or device belongs in here.

    Raises:
        ToldElsewhere: a UserError was raised inside, and this is not the machine's first rank.
    """
    try:
        yield
    except UserError as error:
        if local_rank == 0 or isinstance(error, ToldElsewhere):
            raise
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(error)
        raise ToldElsewhere(str(error)) from error
