"""Workers as actors of a Ray cluster: an existing one, or one that is started here and ends with the run.

The driver claims the folder and draws the pilot; every actor loads its own models and makes one shard a call. A GPU
is Ray's to give: an actor sees the one that it was given. Nothing of an existing cluster is changed.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from prism_fast.config import without_usage_statistics
from prism_fast.engine.dispatch import Dispatch
from prism_fast.engine.outcome import Outcome, attempt
from prism_fast.errors import UserError
from prism_fast.synthesis.interruption import StopRequest
from prism_fast.synthesis.work import Work, WorkerFactory
from prism_fast.synthesis.worker import Worker

OBJECT_STORE_BYTES = 80 * 2**20
"""Of a cluster started here: statistics of shards are all that goes through it. The least that Ray takes is 75 MiB."""

_CONTROL = "control"
"""The actor's thread for what it is asked while it works."""

_POLL_S = 0.5
_KNOCK_S = 10.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The engine.

    Args:
        address: of an existing cluster, as ``ray start --head`` prints it, or ``auto``; None starts one here.
        workers: how many actors; None: as many as the cluster has GPUs, or on the CPU has room for.
    """

    address: str | None = None
    workers: int | None = None

    def __call__(self, work: Work) -> None:
        """Makes shards.

        Raises:
            Interrupted: a stop was asked for; every worker has ended its batch.
            UserError: no such cluster, or it has no room; the run cannot go on, or workers are lost again and again.
        """
        work.let_go()
        dispatch = Dispatch(work)
        with _connected(self, work):
            crew = _Crew(dispatch=dispatch, factory=work.elsewhere, resources=_resources(work))
            try:
                crew.hire(min(_room(self, work), len(work.shards)))
                while crew.members:
                    crew.tend()
            finally:
                crew.dismiss()
        dispatch.close()


@contextmanager
def _connected(engine: Cluster, work: Work) -> Iterator[None]:
    """Connects to a cluster, or starts one; signals go on meaning what they meant.

    Raises:
        UserError: there is none, or it cannot be started.
    """
    if ray.is_initialized():
        yield  # the program that called us has a connection, which is its own to end
        return
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        if engine.address is None:
            without_usage_statistics()
            own = {"num_cpus": engine.workers * work.threads} if engine.workers and work.device == "cpu" else {}
            ray.init(
                address="local",
                object_store_memory=OBJECT_STORE_BYTES,
                include_dashboard=False,
                logging_level="WARNING",
                **own,
            )
        else:
            _knock(engine.address)
            ray.init(address=engine.address, logging_level="WARNING")
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        where = "start Ray here" if engine.address is None else f"reach the Ray cluster {engine.address!r}"
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"cannot {where} ({first}): see `ray status` (a cluster with tokens needs RAY_AUTH_MODE=token here too), "
            "or leave --address out to start one"
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():  # Ray puts its own in their place
                signal.signal(number, handler)
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Finds in seconds that nobody listens: Ray itself takes minutes.

    Raises:
        ConnectionError: nobody does.
    """
    found = re.fullmatch(r"([^:/]+):(\d+)", address)
    if found is None:
        return
    try:
        socket.create_connection((found[1], int(found[2])), _KNOCK_S).close()
    except OSError as error:
        raise ConnectionError(f"nobody listens there: {error.strerror or error}") from error


def _resources(work: Work) -> dict[str, float]:
    """What one actor takes of a machine."""
    return {"num_gpus": 1.0} if work.device == "cuda" else {"num_cpus": float(work.threads)}


def _room(engine: Cluster, work: Work) -> int:
    """How many actors.

    Raises:
        UserError: the cluster has no room for them.
    """
    kind, each = ("GPU", 1) if work.device == "cuda" else ("CPU", work.threads)
    has = [int(node["Resources"].get(kind, 0)) for node in ray.nodes() if node["Alive"]]
    room = sum(here // each for here in has)
    wanted = room if engine.workers is None else engine.workers
    if not 1 <= wanted <= room:
        raise UserError(
            f"the Ray cluster has {sum(has)} {kind}s, room for {room} workers of {each}; {max(1, wanted)} were asked "
            "for: start more nodes, give fewer --workers, or set fewer threads with OMP_NUM_THREADS"
        )
    return wanted


@dataclass(kw_only=True)
class _Member:
    """One actor, as the driver sees it: ``call`` is what it is at, ``rows`` the question how far it is."""

    number: int
    actor: Any
    call: Any
    rows: Any = None
    loaded: bool = False
    told: bool = False


@dataclass(kw_only=True)
class _Crew:
    """The actors that are alive."""

    dispatch: Dispatch
    factory: WorkerFactory
    resources: dict[str, float]
    members: list[_Member] = field(default_factory=list)
    hired: int = 0
    asked_s: float = 0.0

    def hire(self, count: int) -> None:
        """Starts actors."""
        for _ in range(count):
            kind: Any = ray.remote(concurrency_groups={_CONTROL: 1}, max_restarts=0, **self.resources)(_Actor)
            actor = kind.remote(self.factory)
            self.members.append(_Member(number=self.hired, actor=actor, call=actor.begin.remote()))
            self.hired += 1

    def tend(self) -> None:
        """One round: gives, asks, and listens."""
        reason = self.dispatch.stopping
        for member in list(self.members):
            self._tell(member, reason)
        if time.monotonic() - self.asked_s > _POLL_S:
            self.asked_s = time.monotonic()
            for member in self.members:
                if member.loaded and member.rows is None:
                    member.rows = member.actor.rows.options(concurrency_group=_CONTROL).remote()
        calls = [ref for member in self.members for ref in (member.call, member.rows) if ref is not None]
        if calls and ray.wait(calls, num_returns=1, timeout=_POLL_S)[0]:
            ready, _ = ray.wait(calls, num_returns=len(calls), timeout=0)
            for member in list(self.members):
                self._listen(member, ready)
        elif self.members and not calls:
            time.sleep(_POLL_S)

    def dismiss(self) -> None:
        """Nobody is left behind, whatever happened."""
        for member in list(self.members):
            self._let_go(member)

    def _tell(self, member: _Member, reason: str | None) -> None:
        if reason is not None and not member.told:
            member.told = True
            if member.loaded and member.call is not None:
                member.actor.stop.options(concurrency_group=_CONTROL).remote(reason)
            else:
                self._let_go(member)  # it has nothing on the disk
        elif member.call is None and (shard := self.dispatch.give(member.number)) is not None:
            member.call = member.actor.make.remote(shard)
        elif member.call is None and not self.dispatch.waiting and not self.dispatch.held:
            self._let_go(member)

    def _let_go(self, member: _Member) -> None:
        self.members.remove(member)
        with suppress(RayError):
            ray.kill(member.actor)

    def _listen(self, member: _Member, ready: list[Any]) -> None:
        try:
            if member.rows in ready:
                rows, member.rows = ray.get(member.rows), None
                self.dispatch.rows(member.number, rows)
            if member.call in ready:
                outcome, member.call = ray.get(member.call), None
                member.loaded = True
                self.dispatch.ended(member.number, outcome)
                if member.told:
                    self._let_go(member)
        except RayError as error:
            self._let_go(member)
            if isinstance(error, RayTaskError):
                self.dispatch.fail(f"a worker failed: {error.cause!r}")
            self.dispatch.lost(member.number, f"with {type(error).__name__}")
            if self.dispatch.waiting:
                self.hire(1)


class _Counter:
    """A bar that keeps what the driver asks for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows = 0

    def update(self, n: int = 1) -> None:
        with self._lock:
            self._rows += n

    def note(self, text: str) -> None:
        pass

    def take(self) -> int:
        """Rows since it was asked last."""
        with self._lock:
            rows, self._rows = self._rows, 0
            return rows


class _Actor:
    """A worker on some machine. What it does and what it is asked meanwhile run in two threads."""

    def __init__(self, factory: WorkerFactory) -> None:
        self._factory = factory
        self._stop, self._bar = StopRequest(), _Counter()
        self._worker: Worker | None = None

    def begin(self) -> Outcome:
        """Loads the models."""
        try:
            self._worker = self._factory(self._stop, self._bar)
        except UserError as error:
            return Outcome(kind="refused", text=f"{error} (worker on {os.uname().nodename})")
        return Outcome(kind="ready")

    def make(self, shard: int) -> Outcome:
        """One shard."""
        if self._worker is None:
            return Outcome(kind="refused", text="a worker was given a shard before it had begun")
        outcome = attempt(self._worker, shard)
        self._bar.take()  # the shard's end says it all
        return outcome

    def rows(self) -> int:
        """Rows done since it was asked last."""
        return self._bar.take()

    def stop(self, reason: str) -> None:
        """Ends the shard in progress after its batch."""
        self._stop.reason = self._stop.reason or reason
