"""What another process needs to make shards of the same set. Light to import, and to send."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prism_fast.errors import UserError
from prism_fast.progress import Bar
from prism_fast.synthesis.config import SynthesisConfig
from prism_fast.synthesis.interruption import StopRequest
from prism_fast.synthesis.object_store import answering
from prism_fast.synthesis.place import Place
from prism_fast.synthesis.worker import Worker

if TYPE_CHECKING:
    from prism_fast.synthesis.models import ModelsLoader


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """A set whose folder is claimed; calling it gives a worker in the process that calls.

    Args:
        config: of the set, with its back-end resolved and a device that every worker has.
        out: the set's folder, absolute, or place in an object store.
        config_hash: of the set.
        base: the folder that names in ``config`` are relative to.
        threads: that a worker computes with on the CPU: they decide last bits.
        load: loads the models that ``config`` names; a function of a module, which other processes can import.
        remake: shards that are made although they are published.
    """

    config: SynthesisConfig
    out: Place
    config_hash: str
    base: Path
    threads: int
    load: ModelsLoader
    remake: frozenset[int] = frozenset()

    def __call__(self, stop: StopRequest, bar: Bar) -> Worker:
        """Loads models and makes the plan again.

        Raises:
            UserError: the folder cannot be seen from here or is another set's by now, the models cannot be loaded or
                are not the same, or this process computes in another environment.
        """
        import torch

        from prism_fast.synthesis.folder import check_place, read_info
        from prism_fast.synthesis.job import prepare
        from prism_fast.synthesis.thresholds import Thresholds

        if self.base.is_dir():
            os.chdir(self.base)
        if self.config.device == "cpu":
            torch.set_num_threads(self.threads)
        with answering():
            check_place(self.out)
            job = prepare(self.config, self.out, load=self.load)
            info = read_info(self.out, job.request)
        if info is None:
            raise UserError(f"a worker cannot see {self.out}: it must be a place that all machines see by this name")
        if info["config_hash"] != self.config_hash:
            raise UserError(f"{self.out} became another set while this one was made: choose another output folder")
        job.remake = self.remake
        return job.worker(Thresholds.from_facts(info), self.config_hash, stop, bar)
