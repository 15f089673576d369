"""A program, run with TRITON_INTERPRET=1: the Triton kernel of logit_energy on CPU tensors against fp64.

The interpreter is chosen when a kernel is imported, so it needs a process of its own.
test_logit_energy_triton.py starts it.
"""

from __future__ import annotations

import os
import sys

import torch
from torch import Tensor

from prism_fast.kernels.logit_energy import logit_energy_triton
from prism_fast.ops.logit_energy import _empty_outputs
from tests.ops.logit_energy_cases import Arguments, compare, draw


def by_triton(logits: Tensor, targets: Tensor, *rest: float) -> tuple[Tensor, ...]:
    """Into memory that holds something else, so that what is not written shows."""
    outputs = _empty_outputs(logits, int(rest[3]))
    for output in outputs:
        output.fill_(-77)
    logit_energy_triton(logits.contiguous(), targets, *rest[:3], outputs)
    return outputs


def main(seed: int) -> None:
    assert os.environ["TRITON_INTERPRET"] == "1"
    torch.manual_seed(seed)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for shape in ((16, 2), (12, 31), (3, 12, 97)):
            for temperature in (1.0, 2.5):
                compare(by_triton, draw(shape, dtype, temperature=temperature, topk=2))
    compare(by_triton, draw((3, 4103), topk=2, temperature=0.5))  # more than one tile
    compare(by_triton, draw((8, 9), topk=9))
    certain = draw((16, 50), spread=30.0)
    compare(by_triton, certain._replace(targets=certain.logits.argmax(-1)))
    compare(by_triton, draw((6, 40), weights=(0.0, 1.0)))
    equal = by_triton(*draw((6, 40), weights=(1.0, 1.0)))
    assert (equal[1] == 0).sum() == 6 * 39

    special = draw((2, 12, 37), topk=4)
    logits = special.logits
    logits[0, 1, 3], logits[1, 2, 36], logits[0, 3], logits[0, 4, 5] = torch.nan, torch.inf, -torch.inf, -torch.inf
    special.targets[6], special.targets[7] = -1, 37  # no classes: NaN, and nothing is read there
    compare(by_triton, special)
    few = draw((2, 70), topk=5)
    few.logits.fill_(-torch.inf)[:, 40] = 1.0
    assert by_triton(*few)[2].tolist() == [[40, 0, 1, 2, 3]] * 2

    ties = Arguments(torch.randint(3, (5, 77)).float(), torch.zeros(5, dtype=torch.int64), topk=20)
    want = ties.logits.sort(dim=-1, descending=True, stable=True).indices[:, :20]
    assert torch.equal(by_triton(*ties)[2], want)
    assert by_triton(torch.empty(0, 5), torch.empty(0, dtype=torch.int64), 1.0, 1.0, 1.0, 2)[2].shape == (0, 2)


if __name__ == "__main__":
    main(int(sys.argv[1]))
