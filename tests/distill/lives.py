"""Training processes that are really killed: forks of the test, so that each costs no new import of torch."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from prism_fast.errors import UserError

# The first backward pass of a process decides whether autograd has threads, with which it could not be forked any more.
# After a plain one it has none; after one of torch.compile, which some test may have made, it would.
torch.ones(1, requires_grad=True).backward()

REFUSED = 2
"""Exit status of a child that ended with a UserError, as the command line's."""


def fork(life: Callable[[], None], said: str | None = None, **environment: str) -> int:
    """Starts a child that runs ``life`` and nothing of the test's own; returns its process id.

    Args:
        said: file that gets the message of a UserError.
        environment: variables of the child.
    """
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.environ.update(environment)
        life()
        status = 0
    except UserError as error:
        if said is not None:
            with open(said, "w") as file:
                file.write(str(error))
        status = REFUSED
    finally:
        if status == 1:
            traceback.print_exc(file=sys.stderr)
            sys.stderr.flush()
        os._exit(status)


def ended(child: int, wait_s: float = 60.0) -> int:
    """Exit status of a child, negative where a signal ended it; one that does not end is killed, and that fails."""
    end = time.monotonic() + wait_s
    while time.monotonic() < end:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise AssertionError(f"a training process did not end within {wait_s:g} s")


def rank_variables(rank: int, ranks: int, port: int) -> dict[str, str]:
    """What torchrun sets."""
    told = {"RANK": rank, "WORLD_SIZE": ranks, "LOCAL_RANK": rank, "MASTER_PORT": port}
    return {**{name: str(value) for name, value in told.items()}, "MASTER_ADDR": "127.0.0.1"}


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def after(images: int, act: Callable[[], Any]) -> Any:
    """A progress that does something once so many images of this process are done."""

    class Bar:
        def __init__(self) -> None:
            self.done = 0

        def update(self, n: int = 1) -> None:
            self.done += n
            if self.done >= images:
                act()

        def note(self, text: str) -> None:
            pass

    @contextmanager
    def progress(total: int, unit: str = "", label: str = "", done: int = 0) -> Iterator[Bar]:
        yield Bar()

    return progress


def kill_me() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
