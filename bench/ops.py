"""Every operation against eager torch and torch.compile of the same expression: verified first, then timed.

    python -m bench.ops --device cpu --threads 2 [--op logit_energy] [--json FILE]

Rows are appended to bench/results/ops-<device>.jsonl or to FILE. GB/s are 10⁹ bytes a second of what has to be read and
written once; the share is that of one copy which moves as many bytes on the same device. Run it from a quiet machine.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bench.record import RESULTS, Row, append, copy_seconds, environment, measure

Outputs = tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One operation at one size.

    Args:
        shape, dtype: of the largest input.
        arguments: of both callables, on the device.
        op: the operation.
        expression: the same in plain torch as one would write it by hand; eager, and what torch.compile gets.
        verify: raises where the outputs of the operation are not those of the expression.
        moved_bytes: inputs and outputs, once each.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    arguments: tuple[object, ...]
    op: Callable[..., Outputs]
    expression: Callable[..., Outputs]
    verify: Callable[[Outputs, Outputs], None]
    moved_bytes: int
    backend: str


def bytes_of(*tensors: Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def logit_energy_expression(logits: Tensor, targets: Tensor, t: float, wf: float, wc: float, k: int) -> Outputs:
    """All outputs of logit_energy by hand: topk instead of a stable sort, p_y − 1 and 1 − Σ as they cancel."""
    f = logits.float().mean(0) if logits.ndim == 3 else logits.float()
    log_p = f.log_softmax(-1)
    p = log_p.exp()
    target = f.gather(-1, targets[:, None])[:, 0]
    free = -t * (f / t).logsumexp(-1)
    cross_entropy = -log_p.gather(-1, targets[:, None])[:, 0]
    entropy = -(p * log_p).sum(-1)
    top, indices = p.topk(max(2, k), dim=-1)
    one_hot = torch.nn.functional.one_hot(targets, f.shape[-1])
    cotangent = wc * (p - one_hot) - wf * (f / t).softmax(-1)
    if logits.ndim == 3:
        cotangent = (cotangent / logits.shape[0]).expand(logits.shape)
    stats = [wf * free + wc * cross_entropy, free, -target, cross_entropy, entropy, top[:, 0], top[:, 0] - top[:, 1]]
    probabilities = top[:, :k]
    cotangent = cotangent.to(logits.dtype).contiguous()
    return torch.stack(stats), cotangent, indices[:, :k], probabilities, 1 - probabilities.sum(-1)


def verify_logit_energy(got: Outputs, want: Outputs) -> None:
    tolerance = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}[got[1].dtype]
    for place in (0, 1, 3, 4):  # not the indices: topk leaves the order of equals open
        torch.testing.assert_close(got[place], want[place], atol=tolerance, rtol=tolerance)


def logit_energy_cases(device: torch.device) -> Iterator[Case]:
    from prism_fast.ops import logit_energy as module

    native = torch._C._dispatch_has_kernel_for_dispatch_key("prism_fast::logit_energy", device.type.upper())
    backend = "csrc" if module.NATIVE and native else "triton" if device.type == "cuda" else "plain torch"
    sizes = [(4096, 1000), (64, 1000), (3, 4096, 1000), (256, 21841)]
    for shape in sizes:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            logits = (torch.randn(shape) * 4).to(device, dtype)
            targets = torch.randint(shape[-1], shape[-2:-1]).to(device)
            arguments = (logits, targets, 2.0, 1.0, 0.7, 5)
            outputs = torch.ops.prism_fast.logit_energy(*arguments)
            yield Case(
                shape=shape,
                dtype=dtype,
                arguments=arguments,
                op=torch.ops.prism_fast.logit_energy,
                expression=logit_energy_expression,
                verify=verify_logit_energy,
                moved_bytes=bytes_of(logits, targets, *outputs),
                backend=backend,
            )


OPS: dict[str, Callable[[torch.device], Iterator[Case]]] = {"logit_energy": logit_energy_cases}
"""Cases of every operation, made when they are asked for."""


def run(name: str, case: Case, device: torch.device) -> Row:
    torch._dynamo.reset()
    compiled = torch.compile(case.expression, fullgraph=True, dynamic=False)
    case.verify(case.op(*case.arguments), case.expression(*case.arguments))
    case.verify(compiled(*case.arguments), case.expression(*case.arguments))
    op = measure(lambda: case.op(*case.arguments), device)
    eager = measure(lambda: case.expression(*case.arguments), device)
    fused = measure(lambda: compiled(*case.arguments), device)
    return Row(
        op=name,
        backend=case.backend,
        shape="x".join(map(str, case.shape)),
        dtype=str(case.dtype).removeprefix("torch."),
        moved_bytes=case.moved_bytes,
        seconds_p20=op.p20,
        seconds_p50=op.p50,
        seconds_p80=op.p80,
        ratio_to_eager=eager.p50 / op.p50,
        ratio_to_compiled=fused.p50 / op.p50,
        gb_per_s=case.moved_bytes / op.p50 / 1e9,
        share_of_peak=copy_seconds(case.moved_bytes, device) / op.p50,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--op", choices=sorted(OPS), action="append", help="default: all")
    parser.add_argument("--threads", type=int, default=None, help="of the CPU; default: torch's own choice")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="where the rows are appended")
    options = parser.parse_args()
    device = torch.device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    where = environment(device)
    path = options.json or RESULTS / f"ops-{device.type}.jsonl"
    print(" ".join(f"{key}={value}" for key, value in where.items()))
    print("op             backend               shape     dtype        ms    GB/s   peak   eager compiled")
    for name in options.op or sorted(OPS):
        for case in OPS[name](device):
            row = run(name, case, device)
            sizes = f"{row.op:14} {row.backend:12} {row.shape:>14} {row.dtype:>9} {row.seconds_p50 * 1e3:9.3f}"
            rates = f"{row.gb_per_s:7.2f} {row.share_of_peak:6.0%}"
            print(sizes, rates, f"{row.ratio_to_eager:6.2f}x {row.ratio_to_compiled:7.2f}x", flush=True)
            append([row], where, path)


if __name__ == "__main__":
    main()
