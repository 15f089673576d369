"""How every benchmark measures and what it writes: times of repeated calls, the measured peak, rows that say where."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from bench.checkout import git

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, kw_only=True)
class Times:
    """Seconds of one call: the 20th, 50th and 80th percentile of the repetitions."""

    p20: float
    p50: float
    p80: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """One operation at one size, beside what it competes with.

    Args:
        op: its name, and in ``backend`` which kernel ran.
        shape: of its largest input, "MxBxK".
        moved_bytes: what must be read and written once.
        seconds_p20: and p50, p80: of one call.
        ratio_to_eager: median seconds of the eager expression over the operation's. Above 1 it is faster.
        ratio_to_compiled: the same for torch.compile of the expression.
        public: the best public kernel for it where its package is installed; ``ratio_to_public`` is the same for it.
        gb_per_s: moved_bytes / seconds_p50, in 10⁹ bytes.
        share_of_peak: that over the measured copy of the same number of bytes.
    """

    op: str
    backend: str
    shape: str
    dtype: str
    moved_bytes: int
    seconds_p20: float
    seconds_p50: float
    seconds_p80: float
    ratio_to_eager: float
    ratio_to_compiled: float
    public: str | None
    ratio_to_public: float | None
    gb_per_s: float
    share_of_peak: float


def measure(
    call: Callable[[], object], device: torch.device, *, budget_s: float = 2.0, least: int = 20, capture: bool = True
) -> Times:
    """Times of ``call``, warmed up, for about ``budget_s`` and at least ``least`` (two or more) repetitions.

    On CUDA by events around the replay of a captured graph, as the sampling loop runs it (launching from Python takes
    longer than a small kernel does), the L2 cache flushed before each; on the CPU, and for what cannot be captured, by
    the clock, caches as the call left them.
    """
    once = _cuda_timer(call, device) if device.type == "cuda" and capture else _clock_timer(call, device)
    seconds: list[float] = []
    end = time.perf_counter() + budget_s
    while len(seconds) < least or (time.perf_counter() < end and len(seconds) < 2000):
        seconds.append(once())
    return percentiles(seconds)


def percentiles(seconds: list[float]) -> Times:
    fifths = statistics.quantiles(seconds, n=5, method="inclusive")
    return Times(p20=fifths[0], p50=statistics.median(seconds), p80=fifths[3])


def wait(device: torch.device) -> None:
    """Until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _clock_timer(call: Callable[[], object], device: torch.device) -> Callable[[], float]:
    for _ in range(3):
        call()

    def once() -> float:
        wait(device)
        begin = time.perf_counter()
        call()
        wait(device)
        return time.perf_counter() - begin

    return once


def _cuda_timer(call: Callable[[], object], device: torch.device) -> Callable[[], float]:
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):  # what a first call sets up cannot be captured
        for _ in range(3):
            call()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    flush = torch.empty(256 << 20, dtype=torch.int8, device=device)  # larger than any L2
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def once() -> float:
        flush.zero_()
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3

    return once


def copy_seconds(moved_bytes: int, device: torch.device) -> float:
    """Median seconds of one copy that moves as many bytes: half of them read, half written."""
    # ones: pages of zeros that nobody has written are all one page of memory, and that stays in the cache
    source = torch.ones(max(1, moved_bytes // 2), dtype=torch.int8, device=device)
    target = torch.zeros_like(source)
    return measure(lambda: target.copy_(source), device, budget_s=1.0).p50


def environment(device: torch.device) -> dict[str, object]:
    """What a number depends on besides the code: device, threads, versions, commit and whether its tree was clean.

    Commit and state are None in a copy without its repository.
    """

    hardware: dict[str, object]
    if device.type == "cuda":
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]
        name = torch.cuda.get_device_name(device)
        hardware = {"device": name, "driver": driver, "cuda": torch.version.cuda, "triton": version("triton")}
    else:
        capability = torch.backends.cpu.get_cpu_capability()
        hardware = {"device": f"{_processor()} {capability}", "threads": torch.get_num_threads()}
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    # what is measured decides, not what is written beside it
    dirty = git("status", "--porcelain", "--", "..", ":!../bench/results", ":!../docs")
    return {**hardware, **versions, "commit": git("rev-parse", "HEAD"), "clean": None if dirty is None else not dirty}


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def append(rows: Sequence[Any], where: dict[str, object], path: Path) -> None:
    """Adds the rows (dataclasses) to a file of one JSON object a line; never overwrites."""
    path.parent.mkdir(parents=True, exist_ok=True)
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    with path.open("a", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps({**asdict(row), **where, "time": when}) + "\n")
