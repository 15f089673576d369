"""A simulated run at scale: everything but the networks, on actors of Ray that import no torch.

    python -m bench.scale --rows 1281167 --classes 1000 --actors 32 --images-per-s 3000

The folder is a temporary one, which goes in the end. Rows are appended to ``bench/results/scale-cpu.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.checkout import git
from bench.simulated import CONFIG_HASH, SIDE, MemoryLog, Simulation
from prism_fast.config import cores
from prism_fast.progress import Bar, progress
from prism_fast.prompts.prompt_config import PromptConfig
from prism_fast.sampling.config import SamplerConfig
from prism_fast.synthesis.config import SynthesisConfig
from prism_fast.synthesis.interruption import stop_on_signals
from prism_fast.synthesis.shards import SHARD_FILES, read_stats, shard_name
from prism_fast.synthesis.tally import Tally
from prism_fast.synthesis.work import Work

RESULT = Path(__file__).parent / "results" / "scale-cpu.jsonl"
_WARM_SHARE = 0.25
"""Of its rows after which a process's memory has settled: libraries are loaded on first use."""


def simulate(
    rows: int, classes: int, actors: int, images_per_s: float, shard_size: int, batch: int, folder: Path
) -> dict[str, Any]:
    """Makes the set in ``folder`` and says how that went.

    Args:
        rows: of the set.
        classes: that they show in turn.
        actors: of Ray, each a process.
        images_per_s: of all samplers together, if nothing else took time.
        shard_size: rows of a shard.
        batch: rows of a batch.
        folder: an empty one.
    """
    from prism_fast.engine.ray import Cluster

    vocabulary, out, log = folder / "classes.json", folder / "set", folder / "log"
    vocabulary.write_text(json.dumps([f"thing number {number}" for number in range(classes)]))
    out.mkdir()
    log.mkdir()
    begin = time.monotonic()
    config = SynthesisConfig(
        vocabulary=str(vocabulary), images=rows, shard_size=shard_size, device="cpu",
        prompts=PromptConfig(per_class=20), sampler=SamplerConfig(compute_batch=batch),
    )  # fmt: skip
    simulation = Simulation(config=config, out=out, log=log, images_per_s=images_per_s / actors)
    shards = range(-(-rows // shard_size))
    tally = Tally(1.0)
    with stop_on_signals() as stop, progress(rows, "images", "simulate", 0) as bar:
        clock = _Clock(rows, bar, MemoryLog(log / "driver.jsonl", max(1, rows // 100)))
        work = Work(
            shards=shards, here=simulation, elsewhere=simulation, let_go=_nothing, device="cpu", threads=1,
            stop=stop, bar=clock, tally=tally,
        )  # fmt: skip
        Cluster(workers=actors)(work)
    made_s = time.monotonic() - begin
    begin = time.monotonic()
    found = [read_stats(out, shard, CONFIG_HASH) for shard in shards]
    listed_s = time.monotonic() - begin
    if sum(stats["images"] for stats in found if stats is not None) != rows or tally.total("images") != rows:
        raise RuntimeError("rows are missing")
    sizes = {kind: sum((out / shard_name(shard, kind)).stat().st_size for shard in shards) for kind in SHARD_FILES}
    return {
        "rows": rows, "classes": classes, "actors": actors, "shard_size": shard_size, "batch": batch,
        "image_side": SIDE, "shards": len(shards), "sampler_images_per_s": images_per_s,
        "images_per_s": clock.rate(),
        "seconds": made_s, "seconds_to_read_all_statistics": listed_s,
        "bytes": sizes, "bytes_a_row_beside_the_archive": (sizes["idx"] + sizes["parquet"]) / rows,
        "memory": {"driver": _memory(log / "driver.jsonl"), "actors": _memories(log)},
        "torch_in_actors": any(line["torch"] for path in _actor_logs(log) for line in _lines(path)),
    }  # fmt: skip


def _nothing() -> None:
    pass


class _Clock:
    """A bar that knows when which row came."""

    def __init__(self, total: int, bar: Bar, memory: MemoryLog) -> None:
        self._total, self._bar, self._memory = total, bar, memory
        self._marks = [(0, time.monotonic())]

    def rate(self) -> float:
        """Rows a second between the first and the last tenth: actors begin and end one after the other."""
        (low, begin), (high, end) = (self._at(share) for share in (0.1, 0.9))
        return (high - low) / (end - begin)

    def _at(self, share: float) -> tuple[int, float]:
        return next(mark for mark in self._marks if mark[0] >= share * self._total)

    def update(self, n: int = 1) -> None:
        self._marks.append((self._marks[-1][0] + n, time.monotonic()))
        self._bar.update(n)
        self._memory.add(n)

    def note(self, text: str) -> None:
        self._bar.note(text)


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _actor_logs(log: Path) -> list[Path]:
    return [path for path in sorted(log.glob("*.jsonl")) if path.stem != "driver"]


def _memory(path: Path) -> dict[str, int]:
    """Bytes when it had settled, in the end, and at most."""
    held = [line["bytes"] for line in _lines(path)]
    return {"settled": held[int(_WARM_SHARE * len(held))], "last": held[-1], "most": max(held)}


def _memories(log: Path) -> dict[str, int]:
    """The same of the actor that has grown most since it had settled."""
    return max((_memory(path) for path in _actor_logs(log)), key=lambda memory: memory["last"] - memory["settled"])


def environment() -> dict[str, object]:
    """What the numbers depend on; without torch, which this benchmark has no use for."""
    import ray

    return {
        "cores": cores(), "machine": platform.machine(), "python": platform.python_version(),
        "ray": ray.__version__, "commit": git("rev-parse", "HEAD"),
    }  # fmt: skip


def text(found: Mapping[str, Any]) -> str:
    """A few lines for people."""
    memory = found["memory"]
    grown = {name: (memory[name]["last"] - memory[name]["settled"]) / 2**20 for name in ("driver", "actors")}
    return (
        f"{found['rows']} rows in {found['shards']} shards by {found['actors']} actors: {found['images_per_s']:.0f} "
        f"images/s ({found['sampler_images_per_s']:.0f} if only the samplers took time), {found['seconds']:.0f} s\n"
        f"memory: driver {memory['driver']['last'] / 2**20:.0f} MiB ({grown['driver']:+.1f} since it had settled), "
        f"actor {memory['actors']['last'] / 2**20:.0f} MiB ({grown['actors']:+.1f} in the one that grew most)\n"
        f"statistics of all shards read in {found['seconds_to_read_all_statistics']:.2f} s; "
        f"torch in actors: {'yes' if found['torch_in_actors'] else 'no'}"
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--actors", type=int, default=8)
    parser.add_argument("--images-per-s", type=float, default=3000.0, help="of all samplers together")
    parser.add_argument("--shard-size", type=int, default=500)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--temporary", type=Path, default=None, help="where the temporary folder is made")
    parser.add_argument("--out", type=Path, default=RESULT, help="JSON lines to append to")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="prism-fast-scale-", dir=given.temporary) as folder:
        found = simulate(
            given.rows, given.classes, given.actors, given.images_per_s, given.shard_size, given.batch, Path(folder)
        )
    print(text(found))
    with given.out.open("a") as file:
        file.write(json.dumps({**found, **environment()}) + "\n")


if __name__ == "__main__":
    main()
