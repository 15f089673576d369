"""A folder of shards that other processes are still writing."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, cast

import torch
from torch.utils.data import Subset

from prism_fast.data.manifest import is_whole
from prism_fast.data.shards import ShardDataset, ShardSet
from prism_fast.distill.batches import Freeze
from prism_fast.distill.growing import Part, Silent
from prism_fast.distill.images import open_images
from prism_fast.distill.replay_config import ReplayConfig
from prism_fast.errors import UserError
from prism_fast.synthesis.config import MAX_IMAGES
from prism_fast.synthesis.folder import saved_info
from prism_fast.synthesis.interruption import StopRequest
from prism_fast.synthesis.place import local_folder
from prism_fast.synthesis.shards import CONFIG_FILE, INFO_FILE, shard_name

_log = logging.getLogger(__name__)
_POLL_S = 0.2


class FollowedSet:
    """The plan of a folder that ``prism-fast synthesize`` writes: :class:`~prism_fast.distill.growing.GrowingSet`.

    The plan is known once the folder has an ``_info.json``, for which this waits. It is the same whoever makes the
    shards, how many of them there are, and in which order shards appear.

    Args:
        path: the folder; it need not exist yet.
        replay: how large the window is, and how long nothing may change in the folder while something is waited for.
        ram_bytes: for the decoded images of a window; where they are larger, they are read as they are needed.

    Raises:
        UserError: no plan, or a damaged one.
    """

    def __init__(self, path: str | Path, replay: ReplayConfig, *, ram_bytes: int) -> None:
        self.path, self._timeout_s = local_folder(path), replay.timeout_s
        self._wait((self.path / INFO_FILE).exists, f"{self.path} has no {INFO_FILE}", StopRequest())
        info, request = saved_info(self.path)
        self._config_hash = info["config_hash"]
        self.rows, self._shard_size = self._whole(info, "images"), self._whole(info, "shard_size")
        self._ram_share = ram_bytes / min(self.rows, replay.window)
        about = ShardSet(self.path, only=())
        self.num_classes: int = about.num_classes
        self.class_names: tuple[str, ...] | None = about.class_names
        self.fingerprint = request.key

    def part(self, rows: range, stop: StopRequest, freeze: Freeze | None = None) -> Part:  # noqa: ARG002  made elsewhere
        """Some rows, once the shards that hold them are published.

        Raises:
            Interrupted: a stop was asked for meanwhile.
            Silent: nothing changed in the folder for ``timeout_s``.
            UserError: a damaged shard, or one of another set.
        """
        numbers = range(rows[0] // self._shard_size, rows[-1] // self._shard_size + 1)
        planned = -(-self.rows // self._shard_size)
        for number in numbers:
            path = self.path / shard_name(number, "json")
            self._wait(path.exists, f"{self.path} has no shard {number} of {planned} yet", stop)
        found = ShardSet(self.path, only=numbers)
        self._refuse_others(found)
        keys = torch.from_numpy(found.keys())
        if not all(number in numbers for number in (keys // self._shard_size).unique().tolist()):
            raise UserError(f"damaged {self.path}: shards {numbers[0]} to {numbers[-1]} hold rows of others")
        inside = ((keys >= rows.start) & (keys < rows.stop)).nonzero()[:, 0]
        if not len(inside):
            return Part(rows=keys[inside], source=None)
        source = open_images(
            Subset(cast("Any", ShardDataset(found)), inside.tolist()),
            self.num_classes,
            ram_bytes=int(self._ram_share * len(rows)),
            class_names=self.class_names,
        )
        return Part(rows=keys[inside], source=source)

    def state(self) -> None:
        """The folder has it all."""

    def restore(self, state: None) -> None:
        """Nothing to go back to."""

    def _whole(self, info: dict[str, Any], name: str) -> int:
        if not is_whole(info.get(name), 1, MAX_IMAGES):
            raise UserError(f"damaged {self.path / INFO_FILE}: {name} is {info.get(name)!r}, not a number of images")
        return int(info[name])

    def _refuse_others(self, found: ShardSet) -> None:
        there = {found.info.get("config_hash"), *(shard.config_hash for shard in found.shards)}
        if there != {self._config_hash}:
            raise UserError(
                f"{self.path} holds shards of another set than the one that is followed ({self._config_hash}): another "
                "run took its place; follow a folder that one run alone writes into, and give another output folder"
            )

    def _wait(self, there: Callable[[], bool], what: str, stop: StopRequest) -> None:
        """Until something is there.

        Raises:
            Interrupted: a stop was asked for.
            Silent: nothing changed in the folder for ``timeout_s``.
        """
        if there():
            return
        _log.info("%s: waiting for it", what)
        seen, since = _look(self.path), time.monotonic()
        while not there():
            stop.check()
            now = _look(self.path)
            if now != seen:
                seen, since = now, time.monotonic()
            elif time.monotonic() - since > self._timeout_s:
                raise Silent(
                    f"{what}, and nothing has changed there for {self._timeout_s:g} s: if the synthesis has ended, run "
                    f"its command again (prism-fast synthesize --config {self.path / CONFIG_FILE} --out {self.path}), "
                    "then this one, which continues; if it is only slow, raise replay.timeout_s"
                )
            time.sleep(_POLL_S)


def _look(folder: Path) -> Hashable:
    """What changes when somebody writes into a folder: how many files there are, and those that are being written."""
    try:
        with os.scandir(folder) as entries:
            names = list(entries)
        sizes = [(entry.name, entry.stat().st_size, entry.stat().st_mtime_ns) for entry in names if _unfinished(entry)]
    except FileNotFoundError:  # the folder, or a file that was renamed meanwhile: the next look tells
        return None
    return len(names), tuple(sorted(sizes))


def _unfinished(entry: os.DirEntry[str]) -> bool:
    return entry.name.startswith(".")
