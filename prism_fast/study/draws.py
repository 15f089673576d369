"""The sets of a study: drawn once, and read again only by what still has to look at images."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from prism_fast.config import canonical, content_hash
from prism_fast.data.sources import load_source_models
from prism_fast.errors import UserError
from prism_fast.progress import ProgressFactory
from prism_fast.recipes.fields import Fields
from prism_fast.records import write_json
from prism_fast.study.methods import Method, synthesis_config
from prism_fast.study.preparations import Request
from prism_fast.study.sharing import locked
from prism_fast.study.sources import Chosen, ShardSource, Source
from prism_fast.study.stages import Stages, read_record
from prism_fast.study.study_config import StudyConfig
from prism_fast.synthesis.job import synthesize

_RECORD = "set.json"
AGAIN = "; other images since: "
"""In the name of a set's machine, before that which drew other images in their place."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A method's images of one seed.

    Attributes:
        identity: changes with any image.
        count: how many.
        machine: says which drew them, the first of them where there are several; and which drew others in their place
            since.
        seconds: by part, of this many images.
        read: the sets, whose first ``count`` images these are; draws what is not there any more.
    """

    identity: str
    count: int
    machine: Callable[[], str]
    seconds: dict[str, float]
    read: Callable[[], tuple[ShardSource, ...]]

    def images(self) -> Source:
        """The images, with their classes; each is decoded when it is asked for."""
        return Chosen(self.read(), torch.arange(self.count))

    def energies(self) -> list[float]:
        """The teacher's energy of each image, as it was stored."""
        every = [energy for one in self.read() for energy in one.energies]
        return every[: self.count]

    def first(self, count: int) -> Drawn:
        """The first of these images."""
        part = {name: spent * count / self.count for name, spent in self.seconds.items()}
        return replace(self, count=count, seconds=part)

    def with_more(self, further: Drawn) -> Drawn:
        """These images and after them others."""
        return Drawn(
            identity=content_hash([self.identity, further.identity]),
            count=self.count + further.count,
            machine=self.machine,
            seconds={name: spent + further.seconds[name] for name, spent in self.seconds.items()},
            read=lambda: (*self.read(), *further.read()),
        )


class Draws:
    """Draws sets.

    What is known of a finished one lies beside its shards, in ``set.json``, and is enough for the tables: a study goes
    on without the shards of what it has measured.

    Args:
        config: of the study.
        out: its folder.
        stages: where seconds are counted.
        bars: progress.
        made_with: what else a set that is taken up again has to agree in: weights, versions.
        machine: on which sets are drawn now.
    """

    def __init__(
        self,
        config: StudyConfig,
        out: Path,
        stages: Stages,
        bars: ProgressFactory,
        made_with: dict[str, Any],
        machine: str,
    ) -> None:
        self._config, self._out, self._stages, self._bars, self._made_with = config, out, stages, bars, made_with
        self._machine = machine

    def draw(self, stage: str, method: Method, chosen: Fields, images: int, seed: int, folder: Path) -> Drawn:
        """A set.

        Args:
            stage: its name.
            method: whose.
            chosen: fields of its trial.
            images: how many.
            seed: of the set, and of what is made before it.
            folder: the set's own.
        """
        config = synthesis_config(self._config, method, chosen=chosen, images=images, seed=seed)
        made_of = canonical(replace(config, device="auto"))  # the same set, wherever it is drawn
        before = method.prepare.made_of if method.prepare else None
        settings = content_hash([self._made_with, made_of, before])
        record = folder / _RECORD
        kept = read_record(record)
        made: list[ShardSource] = []

        def read() -> tuple[ShardSource, ...]:
            if not made:
                prepared = self._prepared(method, seed)
                config = synthesis_config(
                    self._config, method, chosen=chosen, images=images, seed=seed, prepared=prepared
                )
                with self._stages.stage(stage):
                    synthesize(config, folder / "shards", progress=self._bars, load=load_source_models)
                one = ShardSource(folder / "shards")
                if len(one) < images:
                    raise UserError(
                        f"{folder}: {images - len(one)} of {images} rows have no image, all their draws were rejected: "
                        "raise filter.attempts"
                    )
                if kept.get("settings") == settings and one.set.fingerprint != kept["identity"]:
                    _log.warning("%s: not the images that its figures are of", folder)
                    kept["machine"] = f"{kept['machine'].partition(AGAIN)[0]}{AGAIN}{self._machine}"
                    write_json(record, kept)
                made.append(one)
            return tuple(made)

        if kept.get("settings") != settings:
            (one,) = read()
            kept = {"settings": settings, "identity": one.set.fingerprint, "images": len(one), "machine": self._machine}
            write_json(record, kept)
        seconds = {"sampling": self._stages.seconds(stage)}
        if method.prepare is not None:
            seconds["preparation"] = self._stages.seconds(_preparing(method, seed))
        return Drawn(
            identity=kept["identity"],
            count=kept["images"],
            machine=lambda: str(kept["machine"]),
            seconds=seconds,
            read=read,
        )

    def _prepared(self, method: Method, seed: int) -> Fields:
        """What sets of this seed are made from, once for all of them; another run that makes it is waited for."""
        if method.prepare is None:
            return {}
        name = _preparing(method, seed)
        request = Request(
            study=self._config,
            folder=self._out / "prepared" / method.name / f"seed-{seed}",
            seed=seed,
            config=partial(synthesis_config, self._config, method, chosen={}),
            bars=self._bars,
        )
        with locked(self._out / "locks" / f"{name}.lock"), self._stages.stage(name):
            return method.prepare.make(request)


def _preparing(method: Method, seed: int) -> str:
    return f"{method.name} seed {seed}: prepare"
