"""Verifies a whole set: :func:`verify`."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from prism_fast.config import cores
from prism_fast.data.manifest import Manifest, read_set
from prism_fast.errors import UserError
from prism_fast.progress import ProgressFactory
from prism_fast.progress import progress as show_progress
from prism_fast.synthesis.place import local_folder
from prism_fast.synthesis.publish import temporary_name
from prism_fast.synthesis.shards import INFO_FILE, SET_FILES, SHARD_FILES, shard_name
from prism_fast.verification.claims import Claims, check_end, claims_of
from prism_fast.verification.fault import Fault, Faults
from prism_fast.verification.shard import ShardVerdict, check_shard

WORTH_A_PROCESS = 1 << 28
"""Bytes for which one more process is started where their number is not given: it takes a second to start."""

_SHARD_FILE = re.compile(rf"shard-(\d{{6}})\.({'|'.join(SHARD_FILES)})\Z", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """What was found in a set.

    Args:
        folder: of the set.
        planned: shards that the set will have; 0 where ``_info.json`` cannot be read.
        published: shards that are there.
        images: in those whose statistics could be read.
        size_bytes: read.
        seconds: that it took.
        deep: whether images were decoded.
        faults: all of them: the set's own first, then shard by shard.
        damaged: shards with faults; a complete set's lost ones too.
        missing: shards that are still to be made. No fault.
        foreign: names in the folder that are no file of a set. No fault; nothing touches them.
        archives: SHA-256 of each shard's archive, as its statistics say.
    """

    folder: Path
    planned: int
    published: int
    images: int
    size_bytes: int
    seconds: float
    deep: bool
    faults: tuple[Fault, ...]
    damaged: tuple[int, ...]
    missing: tuple[int, ...]
    foreign: tuple[str, ...]
    archives: dict[int, str]

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong with what is there."""
        return not self.faults


def verify(
    folder: str | Path, *, deep: bool = False, workers: int | None = None, progress: ProgressFactory = show_progress
) -> VerifyReport:
    """Checks every file of a set. Nothing is written, extracted, unpickled or followed.

    Args:
        folder: of the set.
        deep: decode every image too.
        workers: processes; None: one for each :data:`WORTH_A_PROCESS`, at most one a core.
        progress: how progress is shown.

    Raises:
        UserError: no folder of this machine, or one without an ``_info.json``. What is wrong with a set is reported.
    """
    folder, begin = local_folder(folder), time.monotonic()
    faults = Faults()
    if not folder.is_dir() or not os.path.lexists(folder / INFO_FILE):
        read_set(folder)  # says what is missing
    try:
        said = read_set(folder)
    except UserError as error:
        faults.add(INFO_FILE, str(error).replace(f"{folder / INFO_FILE}", INFO_FILE))
        return VerifyReport(
            folder=folder, planned=0, published=0, images=0, size_bytes=0, seconds=time.monotonic() - begin, deep=deep,
            faults=faults.all(), damaged=(), missing=(), foreign=(), archives={},
        )  # fmt: skip
    claims = claims_of(folder, said, faults)
    listing = _Listing(folder, said.planned)
    _check_set_files(listing, faults)
    verdicts = _check_shards(claims, deep, listing, workers, progress)
    images = {verdict.shard: verdict.images for verdict in verdicts if verdict.images is not None}
    lost = _lost(said, listing, faults)
    check_end(said, images, faults)
    return VerifyReport(
        folder=folder,
        planned=said.planned,
        published=len(listing.published),
        images=sum(images.values()),
        size_bytes=sum(verdict.size_bytes for verdict in verdicts),
        seconds=time.monotonic() - begin,
        deep=deep,
        faults=(*faults.all(), *(fault for verdict in verdicts for fault in verdict.faults)),
        damaged=tuple(sorted({*lost, *(verdict.shard for verdict in verdicts if verdict.faults)})),
        missing=tuple(sorted(set(listing.absent) - set(lost))),
        foreign=listing.foreign,
        archives={v.shard: v.archive_sha256 for v in verdicts if v.archive_sha256 is not None},
    )


class _Listing:
    """What lies in a folder.

    Attributes:
        published: shards whose ``.json`` is there.
        absent: the others.
        irregular: the set's own files that are no regular files.
        foreign: all other names, sorted; leftovers of stopped runs are not among them.
    """

    def __init__(self, folder: Path, planned: int) -> None:
        published, foreign = set(), []
        self.irregular: list[str] = []
        self.archive_bytes: dict[int, int] = {}
        own = {*SET_FILES, *(temporary_name(Path(name)).name for name in SET_FILES)}
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                found = _SHARD_FILE.match(name) or _SHARD_FILE.match(name.removeprefix(".").removesuffix(".tmp"))
                if name in own:
                    if not entry.is_file(follow_symlinks=False):
                        self.irregular.append(name)
                elif found is None or int(found[1]) >= planned or name not in _names(found):
                    foreign.append(name)
                elif name == found[0] and found[2] == "json":
                    published.add(int(found[1]))
                elif name == found[0] and found[2] == "tar":
                    self.archive_bytes[int(found[1])] = entry.stat(follow_symlinks=False).st_size
        self.published = sorted(published)
        self.absent = [shard for shard in range(planned) if shard not in published]
        self.foreign = tuple(sorted(foreign))


def _names(found: re.Match[str]) -> tuple[str, str]:
    return found[0], temporary_name(Path(found[0])).name


def _check_set_files(listing: _Listing, faults: Faults) -> None:
    for name in sorted(listing.irregular):
        faults.add(name, "it is no regular file")


def _lost(said: Manifest, listing: _Listing, faults: Faults) -> list[int]:
    """Shards that are not there although the set was complete."""
    if said.info.get("complete") is not True:
        return []
    for shard in listing.absent:
        faults.add(shard_name(shard, "json"), "the shard is missing from a set that was complete", shard=shard)
    return listing.absent


def _check_shards(
    claims: Claims, deep: bool, listing: _Listing, workers: int | None, progress: ProgressFactory
) -> list[ShardVerdict]:
    """Verdicts on all published shards, in order."""
    shards = listing.published
    sizes = {shard: listing.archive_bytes.get(shard, 0) for shard in shards}
    total = sum(sizes.values())
    wanted = min(cores(), 1 + total // WORTH_A_PROCESS) if workers is None else workers
    check = partial(check_shard, claims, deep)
    verdicts, done = [], 0
    with progress(_megabytes(total), "MB", "verify", 0) as bar:
        for verdict in _all(check, shards, min(wanted, len(shards))):
            before, done = done, done + sizes[verdict.shard]
            bar.update(_megabytes(done) - _megabytes(before))
            verdicts.append(verdict)
    return sorted(verdicts, key=lambda verdict: verdict.shard)


def _all(check: partial[ShardVerdict], shards: Sequence[int], processes: int) -> Iterator[ShardVerdict]:
    """Verdicts as they come."""
    if processes <= 1:
        yield from map(check, shards)
        return
    with _pool(processes) as pool:
        waiting = [pool.submit(check, shard) for shard in shards]
        for finished in as_completed(waiting):
            yield finished.result()


@contextmanager
def _pool(processes: int) -> Iterator[ProcessPoolExecutor]:
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, context, initializer=_leave_signals_to_the_parent)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _leave_signals_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _megabytes(size: int) -> int:
    return -(-size // 10**6)
