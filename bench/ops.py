"""Every operation against eager torch and torch.compile of the same expression: verified first, then timed.

    python -m bench.ops --device cpu --threads 2 [--op logit_energy] [--json FILE]

Rows are appended to bench/results/ops-<device>.jsonl or to FILE. GB/s are 10⁹ bytes a second of what has to be read and
written once; the share is that of one copy which moves as many bytes on the same device. On the CPU, operations without
a native kernel are left out: they are plain torch there and would race against themselves. Wants a quiet machine.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

from bench.case import Case, Outputs
from bench.record import RESULTS, Row, append, copy_seconds, environment, measure

OPS = (
    "logit_energy",
    "resample_normalize",
    "predict_x0",
    "image_norms",
    "guided_step",
    "group_norm_silu",
    "energy_head",
)
"""Each has a file of cases in bench/cases/."""


def cases(name: str, device: torch.device) -> Iterator[Case]:
    """Those of one operation, made when they are asked for."""
    made: Iterator[Case] = importlib.import_module(f"bench.cases.{name}").cases(device)
    return (case for case in made if case.backend != "plain torch")


def run(case: Case, device: torch.device, budget_s: float) -> Row:
    """Times each side for about ``budget_s``.

    Raises:
        AssertionError: operation, expression and compiled expression do not agree.
    """
    torch._dynamo.reset()
    compiled = torch.compile(case.expression, fullgraph=True, dynamic=False)

    def once(function: Callable[..., Outputs]) -> Outputs:
        """From the same inputs: some operations work in place."""
        copies = [x.clone() if isinstance(x, torch.Tensor) else x for x in case.arguments]
        return function(*copies)

    want = once(case.expression)
    case.verify(once(case.op), want)
    case.verify(once(compiled), want)
    seconds = {
        side: measure(partial(function, *case.arguments), device, budget_s=budget_s)
        for side, function in (("op", case.op), ("eager", case.expression), ("compiled", compiled))
    }
    op = seconds["op"]
    public = measure(partial(case.public[1], *case.arguments), device, budget_s=budget_s) if case.public else None
    return Row(
        op=case.name,
        backend=case.backend,
        shape="x".join(map(str, case.shape)),
        dtype=str(case.dtype).removeprefix("torch."),
        moved_bytes=case.moved_bytes,
        seconds_p20=op.p20,
        seconds_p50=op.p50,
        seconds_p80=op.p80,
        ratio_to_eager=seconds["eager"].p50 / op.p50,
        ratio_to_compiled=seconds["compiled"].p50 / op.p50,
        public=case.public[0] if case.public else None,
        ratio_to_public=public.p50 / op.p50 if public else None,
        gb_per_s=case.moved_bytes / op.p50 / 1e9,
        share_of_peak=copy_seconds(case.moved_bytes, device) / op.p50,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--op", choices=OPS, action="append", help="default: all")
    parser.add_argument("--threads", type=int, default=None, help="of the CPU; default: torch's own choice")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each of a case's rivals (default: 2)")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="where the rows are appended")
    options = parser.parse_args()
    device = torch.device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    where = environment(device)
    path = options.json or RESULTS / f"ops-{device.type}.jsonl"
    print(" ".join(f"{key}={value}" for key, value in where.items()))
    columns = f"{'op':27} {'backend':15} {'shape':>16} {'dtype':>9} {'ms':>9} {'GB/s':>7} {'peak':>6}"
    print(columns, f"{'eager':>7} {'compiled':>8} {'public':>7}")
    for name in options.op or OPS:
        for case in cases(name, device):
            row = run(case, device, options.seconds)
            sizes = f"{row.op:27} {row.backend:15} {row.shape:>16} {row.dtype:>9} {row.seconds_p50 * 1e3:9.3f}"
            ratios = f"{row.ratio_to_eager:6.2f}x {row.ratio_to_compiled:7.2f}x"
            if row.ratio_to_public:
                ratios += f" {row.ratio_to_public:6.2f}x ({row.public})"
            print(sizes, f"{row.gb_per_s:7.2f} {row.share_of_peak:6.0%}", ratios, flush=True)
            append([row], where, path)


if __name__ == "__main__":
    main()
