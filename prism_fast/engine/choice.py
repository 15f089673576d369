"""The engine that a command line asks for."""

from __future__ import annotations

from prism_fast.engine import local
from prism_fast.errors import UserError
from prism_fast.synthesis.work import Engine

ENGINES = ("local", "ray")


def check_workers(workers: int | None) -> None:
    """
    Raises:
        UserError: there would be none.
    """
    if workers is not None and workers < 1:
        raise UserError(f"--workers is {workers}: give a whole number from 1")


def choose_engine(name: str, device: str, workers: int | None, address: str | None) -> Engine:
    """An engine by name.

    Args:
        name: of :data:`ENGINES`.
        device: the configuration's.
        workers: how many; None: as many as there are GPUs, or room on a cluster.
        address: of a Ray cluster; None starts one on this machine.

    Raises:
        UserError: no such engine, not installed, or the numbers do not fit.
    """
    if name not in ENGINES:
        raise UserError(f"--engine must be one of {', '.join(ENGINES)}, not {name!r}")
    check_workers(workers)
    if name == "local":
        if address is not None:
            raise UserError("--address is of a Ray cluster: add --engine ray")
        return local.choose(device, workers)
    try:
        from prism_fast.engine.ray import Cluster
    except ModuleNotFoundError as error:
        raise UserError(f"Ray is not installed ({error}): pip install 'prism_fast[ray]'") from error
    return Cluster(address=address, workers=workers)
