"""Whole lives of synthesizing processes, for tests that kill them. Children start from a server that has torch."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from prism_fast.sampling.config import GuidanceConfig, SamplerConfig
from prism_fast.synthesis.config import SynthesisConfig
from prism_fast.synthesis.part import Part

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.synthesis.preload"])


def start(life: Callable[..., None], *args: Any) -> BaseProcess:
    """A child that runs ``life(*args)``."""
    process = _CONTEXT.Process(target=life, args=args)
    process.start()
    return process


def finish(process: BaseProcess, wait_s: float = 240.0) -> None:
    """Waits for a child that must end well."""
    process.join(wait_s)
    assert process.exitcode == 0, f"exit code {process.exitcode}"


def wait_until(true: Callable[[], bool], process: BaseProcess, wait_s: float = 240.0) -> None:
    """Until something is so, or the child has ended."""
    end = time.monotonic() + wait_s
    while not true() and process.is_alive():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def slow_doubles(
    vocabulary: Path, out: Path | str, log: Path, pause_s: float, black: float = 0.0, **sizes: int
) -> None:
    """Synthesizes with the doubles: a pause before each guided batch, its seeds into ``log``.

    With a share of ``black`` images there is a filter, which has them drawn again. ``sizes`` are fields of the
    configuration.
    """
    import torch

    from tests.synthesis import doubles

    def before(seeds: Sequence[int]) -> None:
        with log.open("a") as file:
            file.write("".join(f"{seed}\n" for seed in seeds))
        time.sleep(pause_s)

    torch.set_num_threads(1)
    config = (doubles.filtered if black else doubles.small_config)(vocabulary, **sizes)
    doubles.run(config, out, doubles.models(before, doubles.darkened(black) if black else None))


def slow_doubles_in_store(variables: Mapping[str, str], vocabulary: Path, out: str, log: Path, pause_s: float) -> None:
    """The same with output at a URL; ``variables`` of the environment say where that is, and let us in."""
    os.environ.update(variables)
    slow_doubles(vocabulary, out, log, pause_s)


def part_of_doubles(vocabulary: Path, out: Path, log: Path, part: Part) -> None:
    """Synthesizes one part with the doubles; a word into ``log`` for each batch."""
    import torch

    from tests.synthesis import doubles

    def make(config: SamplerConfig, gate: Any) -> doubles.SeedSampler:
        def before(_seeds: Sequence[int]) -> None:
            with log.open("a") as file:
                file.write("pilot\n" if config.guidance is None else "guided\n")
            time.sleep(0.1)

        return doubles.SeedSampler(config, gate, before)

    torch.set_num_threads(1)
    models = replace(doubles.models(), make_sampler=make)
    doubles.run(doubles.small_config(vocabulary), out, models, part=part)


def tiny_config(folder: Path) -> SynthesisConfig:
    """20 guided images in five shards, from the tiny pipeline and teacher that lie in ``folder``."""
    return SynthesisConfig(
        pipeline=str(folder / "pipeline"), teacher=str(folder / "teacher"), images=20, shard_size=4, pilot_images=1,
        device="cpu", sampler=SamplerConfig(steps=2, compute_batch=2, guidance=GuidanceConfig()),
    )  # fmt: skip


def tiny_models(folder: Path, out: Path) -> None:
    """Synthesizes with the real sampler and teacher; no real image can be found, nor the module that reads them."""
    import torch

    from prism_fast.progress import silent
    from prism_fast.synthesis.job import synthesize

    os.environ["PRISM_FAST_DATA"] = os.environ["PRISM_FAST_CACHE"] = str(folder / "nowhere")
    sys.modules["prism_fast.data.fashion_mnist"] = None  # type: ignore[assignment]  # importing it raises
    torch.set_num_threads(1)
    synthesize(tiny_config(folder), out, progress=silent)
