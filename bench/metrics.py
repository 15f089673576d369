"""Seconds and memory of precision, recall, density and coverage of large sets.

    python bench/metrics.py [--rows 50000] [--features 1280] [--distances float32] [--device cpu] [--json FILE]

N random features against as many others. Before anything is timed, the four figures of the first 2,000 must be those of
the package ``prdc`` in fp64, which holds all distances at once; its seconds for these stand beside ours. Memory is the
process's peak on the CPU and the allocator's on CUDA, features included; above ``--limit-gb`` the command fails. Rows
are appended to bench/results/metrics-<device>.jsonl.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if __package__ in (None, ""):  # a script's folder is on the path, its parent is not
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import Tensor

from bench.command import Parser, write
from bench.record import environment, wait
from prism_fast.config import check_new_file, resolve_device
from prism_fast.errors import UserError
from prism_fast.metrics.prdc import DENSITY_NEIGHBOURS, NEIGHBOURS, PRDC, prdc

CHECKED = 2000
DTYPES = ("float32", "float64")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One size.

    Args:
        rows, features: N of each of the two sets, and D.
        distances: their dtype.
        seconds: of all four figures.
        pairs_per_s: distances a second, N² between the sets and N² within each.
        peak_gb: 10⁹ bytes, of the whole process or of the device.
        checked: N of the comparison with the package prdc.
        seconds_checked: of ours for these; ``seconds_package`` of the package's, in fp64.
    """

    rows: int
    features: int
    distances: str
    seconds: float
    pairs_per_s: float
    peak_gb: float
    checked: int
    seconds_checked: float
    seconds_package: float


def points(rows: int, features: int, seed: int, device: torch.device) -> Tensor:
    """Features fp32 [N,D] that are drawn from a normal distribution."""
    return torch.randn(rows, features, generator=torch.Generator().manual_seed(seed)).to(device)


def check(real: Tensor, generated: Tensor) -> tuple[float, float]:
    """Seconds of ours and of the package for the same figures.

    Raises:
        UserError: the package is missing, or figures differ.
    """
    try:
        from prdc import compute_prdc
    except ImportError as error:
        raise UserError("nothing to compare with: pip install prdc") from error
    begin = time.perf_counter()
    ours = prdc(real, generated, neighbours=DENSITY_NEIGHBOURS)  # the package has one k for all four
    wait(real.device)
    middle = time.perf_counter()
    theirs = compute_prdc(
        real_features=real.double().cpu().numpy(), fake_features=generated.double().cpu().numpy(),
        nearest_k=DENSITY_NEIGHBOURS,
    )  # fmt: skip
    end = time.perf_counter()
    for name in PRDC:
        if abs(getattr(ours, name) - theirs[name]) > 1e-12:
            raise UserError(f"{name} is {getattr(ours, name)}, the package prdc has {theirs[name]}")
    return middle - begin, end - middle


def run(rows: int, features: int, distances: str, device: torch.device) -> Row:
    """Checks, then measures.

    Raises:
        UserError: figures that differ from the package's.
    """
    real, generated = points(rows, features, 0, device), points(rows, features, 1, device)
    few = min(CHECKED, rows)
    ours, package = check(real[:few], generated[:few])
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    begin = time.perf_counter()
    prdc(real, generated, neighbours=NEIGHBOURS, dtype=getattr(torch, distances))
    wait(device)
    seconds = time.perf_counter() - begin
    peak = (
        torch.cuda.max_memory_allocated(device)
        if device.type == "cuda"
        else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    )
    return Row(
        rows=rows, features=features, distances=distances, seconds=seconds, pairs_per_s=3 * rows**2 / seconds,
        peak_gb=peak / 1e9, checked=few, seconds_checked=ours, seconds_package=package,
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 1 where the memory is above the limit."""
    parser = Parser("bench/metrics.py", __doc__)
    parser.add_argument("--rows", type=int, default=50_000, help="N of each set")
    parser.add_argument("--features", type=int, default=1280, help="numbers of an image")
    parser.add_argument("--distances", choices=DTYPES, default="float32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--limit-gb", type=float, default=4.0, help="peak memory that is allowed, 10⁹ bytes")
    parser.add_argument("--json", type=Path, help="also write the row to this file")
    options = parser.parse_args(arguments)
    try:
        if options.json:
            check_new_file(options.json)
        device = resolve_device(options.device)
        found = run(options.rows, options.features, options.distances, device)
        write([found], environment(device), options, "metrics")
    except UserError as error:
        parser.error(str(error))
    print(
        f"{found.rows:,} against {found.rows:,} of {found.features} in {found.distances}: {found.seconds:.1f} s, "
        f"peak {found.peak_gb:.2f} GB; {found.checked:,}: {found.seconds_checked:.2f} s, package prdc "
        f"{found.seconds_package:.2f} s"
    )
    return int(found.peak_gb > options.limit_gb)


if __name__ == "__main__":
    sys.exit(main())
