"""Several processes of this machine, each with its own models; the parent gives out shards and shows progress."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from prism_fast.config import use_gpu
from prism_fast.engine.dispatch import Dispatch
from prism_fast.engine.outcome import Outcome, attempt
from prism_fast.errors import UserError
from prism_fast.synthesis.interruption import StopRequest, stop_on_signals
from prism_fast.synthesis.work import Work, WorkerFactory

_POLL_S = 0.2
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_SPAWN = multiprocessing.get_context("spawn")  # CUDA does not survive a fork


@dataclass(frozen=True, kw_only=True)
class Processes:
    """The engine. A script that uses it starts its work under ``if __name__ == "__main__"``: workers import it again.

    Args:
        workers: how many processes.
        gpus: the one that each has, as CUDA_VISIBLE_DEVICES names them; empty on the CPU.
    """

    workers: int
    gpus: tuple[str, ...] = ()

    def __call__(self, work: Work) -> None:
        """Makes shards.

        Raises:
            Interrupted: a stop was asked for; every worker has ended its batch.
            UserError: the run cannot go on, or workers are lost again and again; what is published stays.
        """
        work.let_go()
        dispatch = Dispatch(work)
        crew = _Crew(engine=self, dispatch=dispatch, factory=work.elsewhere)
        try:
            crew.hire(min(self.workers, len(work.shards)))
            while crew.members:
                crew.tend()
        finally:
            crew.dismiss()
        dispatch.close()


@dataclass(kw_only=True)
class _Member:
    """One process, as its parent sees it."""

    number: int
    seat: int
    process: BaseProcess
    pipe: Connection
    loaded: bool = False
    ready: bool = False
    told: bool = False


@dataclass(kw_only=True)
class _Crew:
    """The processes that are alive."""

    engine: Processes
    dispatch: Dispatch
    factory: WorkerFactory
    members: list[_Member] = field(default_factory=list)
    hired: int = 0

    def hire(self, count: int) -> None:
        """Starts processes in seats that are free."""
        taken = {member.seat for member in self.members}
        for seat in [seat for seat in range(self.engine.workers) if seat not in taken][:count]:
            pipe, theirs = _SPAWN.Pipe()
            gpu = self.engine.gpus[seat] if self.engine.gpus else None
            process = _SPAWN.Process(target=_live, args=(self.factory, theirs, gpu))
            with _signals_blocked():  # the child unblocks them once it knows what to do
                process.start()
            theirs.close()
            self.members.append(_Member(number=self.hired, seat=seat, process=process, pipe=pipe))
            self.hired += 1

    def tend(self) -> None:
        """One round: listens, gives, and lets go who has nothing more to do."""
        reason = self.dispatch.stopping
        for member in self.members:
            self._tell(member, reason)
        for pipe in wait([member.pipe for member in self.members], _POLL_S):
            self._listen(next(member for member in self.members if member.pipe is pipe))

    def dismiss(self) -> None:
        """Nobody is left behind, whatever happened."""
        for member in self.members:
            member.process.kill()
        for member in self.members:
            member.process.join()

    def _tell(self, member: _Member, reason: str | None) -> None:
        if member.told:
            return
        if reason is not None:
            member.told = True
            if not member.loaded:
                member.process.kill()  # it has nothing on the disk yet
            self._send(member, reason)
        elif member.ready and (shard := self.dispatch.give(member.number)) is not None:
            self._send(member, shard)
            member.ready = False
        elif member.ready and not self.dispatch.waiting and not self.dispatch.held:
            member.told = True
            self._send(member, None)

    @staticmethod
    def _send(member: _Member, message: int | str | None) -> None:
        with suppress(OSError):  # it may be gone, which listening finds out
            member.pipe.send(message)

    def _listen(self, member: _Member) -> None:
        try:
            message = member.pipe.recv()
        except (EOFError, OSError):
            self._bury(member)
            return
        if isinstance(message, int):
            self.dispatch.rows(member.number, message)
        else:
            member.loaded = member.ready = True
            self.dispatch.ended(member.number, message)

    def _bury(self, member: _Member) -> None:
        member.process.join()
        member.pipe.close()
        self.members.remove(member)
        code = member.process.exitcode or 0
        if code > 0:
            self.dispatch.fail(f"a worker failed; its own message stands above (exit status {code})")
        if member.told and code == 0:
            return
        self.dispatch.lost(member.number, f"by {signal.Signals(-code).name}" if code < 0 else "by itself")
        if self.dispatch.waiting:
            self.hire(1)


def _live(factory: WorkerFactory, pipe: Connection, gpu: str | None) -> None:
    """A worker's whole life."""
    if gpu is not None:
        use_gpu(gpu)
    with stop_on_signals() as stop:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        orders: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        threading.Thread(target=_obey, args=(pipe, stop, orders), daemon=True).start()
        bar = _PipeBar(pipe)
        try:
            worker = factory(stop, bar)
        except UserError as error:
            pipe.send(Outcome(kind="refused", text=str(error)))
            return
        pipe.send(Outcome(kind="ready"))
        while (shard := orders.get()) is not None:
            outcome = attempt(worker, shard)
            pipe.send(outcome)
            if outcome.kind == "stopped":
                return  # a signal may have been for this process alone; the parent takes another one then


def _obey(pipe: Connection, stop: StopRequest, orders: queue.SimpleQueue[int | None]) -> None:
    """Takes the parent's orders, and ends this process at once where there is no parent any more."""
    while True:
        try:
            message = pipe.recv()
        except (EOFError, OSError):
            os._exit(1)
        if isinstance(message, str):
            stop.reason = stop.reason or message
            message = None
        orders.put(message)


class _PipeBar:
    """Tells the parent how many rows are done."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def update(self, n: int = 1) -> None:
        self._pipe.send(n)

    def note(self, text: str) -> None:
        pass


@contextmanager
def _signals_blocked() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
