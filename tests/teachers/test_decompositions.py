"""Every rule against fp64 autograd through torch's own operator, as it comes out of a trace."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from prism_fast.energy.terms import Outputs
from prism_fast.errors import UserError
from prism_fast.teachers import decompositions
from prism_fast.teachers.decompositions import RULES, Switches, convolution_input_gradient, overlap_add, windows
from prism_fast.teachers.traced import Forward, Network, operator_name, trace

SIZE = (13, 11)


class _Function(torch.nn.Module):
    """A function of images and one matrix of weights as a network."""

    def __init__(self, function: Callable[..., Tensor], seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = torch.nn.Parameter(torch.randn(6, 3, 3, 3, generator=generator))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.weight).flatten(1)


def _attention(x: Tensor, w: Tensor, **options: Any) -> Tensor:
    tokens = x.flatten(2).transpose(1, 2).unsqueeze(1)  # [B, 1, 143, 3]
    return F.scaled_dot_product_attention(tokens, tokens * 2 + 1, tokens.square(), **options)


def _sum_of_product(a: Tensor, b: Tensor, c: Tensor | float = 1.0) -> Tensor:
    return a[:, :1] * b[:, :1] + c


def _mixed(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], -1)[:, : 4 * 35].reshape(-1, 4, 35)


CASES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "conv2d": lambda x, w: F.conv2d(x, w),
    "conv2d with bias and padding": lambda x, w: F.conv2d(x, w, w[:, 0, 0, 0], padding=1),
    "conv2d, wide padding": lambda x, w: F.conv2d(x, w, padding=(4, 3)),
    "conv2d, stride 2": lambda x, w: F.conv2d(x, w, stride=2, padding=1),
    "conv2d, stride 3, no padding": lambda x, w: F.conv2d(x, w, stride=3),
    "conv2d, unequal strides": lambda x, w: F.conv2d(x, w, stride=(2, 3), padding=(0, 2)),
    "conv2d, stride beyond the kernel": lambda x, w: F.conv2d(x, w[:, :, :1, :2], stride=4),
    "conv2d, patches": lambda x, w: F.conv2d(x, w, stride=(3, 3), padding=(1, 2)),
    "conv2d, padding in words": lambda x, w: (
        F.conv2d(x, w, padding="same", dilation=3) + F.conv2d(F.pad(x, (1, 1, 1, 1)), w, padding="valid")
    ),
    "conv2d, dilated": lambda x, w: F.conv2d(x, w, dilation=2, padding=1),
    "conv2d, depthwise": lambda x, w: F.conv2d(x, w[:, :1], groups=3, padding=1, stride=2),
    "conv2d, one by one": lambda x, w: F.conv2d(x, w[:, :, :1, :1], stride=2),
    "linear": lambda x, w: F.linear(x, w.flatten()[:22].view(2, 11), w[0, 0, 0, :2]),
    "matmul of two": lambda x, w: x @ x.transpose(-2, -1),
    "matmul, broadcast": lambda x, w: w[0, 0, :, :1].T.expand(3, 3) @ x.transpose(1, 2),
    "addmm": lambda x, w: torch.addmm(w[0, 0, 0], x.flatten(1), w.flatten().repeat(8)[: 429 * 3].view(429, 3)),
    "bmm": lambda x, w: torch.bmm(x[:, 0], x[:, 1].transpose(1, 2)),
    "attention": _attention,
    "attention, scaled": lambda x, w: _attention(x, w, scale=0.3),
    "attention, masked": lambda x, w: _attention(x, w, attn_mask=w.flatten()[:143].view(1, 143)),
    "slice with a step": lambda x, w: torch.cat(
        [x[:, :, 1::2].flatten(1), x[..., ::3].flatten(1), x[:, :, 2:9:4, 1:8:2].flatten(1)], 1
    ),
    "relu": lambda x, w: F.relu(x),
    "relu6": lambda x, w: F.relu6(4 * x),
    "hardtanh": lambda x, w: F.hardtanh(2 * x),
    "clamp": lambda x, w: x.clamp(-0.5, 0.7),
    "clamp from below": lambda x, w: x.clamp(min=0.2),
    "leaky_relu": lambda x, w: F.leaky_relu(x, 0.2),
    "elu": lambda x, w: F.elu(x, 1.3),
    "selu": lambda x, w: F.selu(x),
    "sigmoid": lambda x, w: torch.sigmoid(x),
    "tanh": lambda x, w: torch.tanh(x),
    "mish": lambda x, w: F.mish(3 * x),
    "silu": lambda x, w: F.silu(x),
    "hardsigmoid": lambda x, w: F.hardsigmoid(4 * x),
    "hardswish": lambda x, w: F.hardswish(4 * x),
    "gelu": lambda x, w: F.gelu(2 * x),
    "gelu by tanh": lambda x, w: F.gelu(2 * x, approximate="tanh"),
    "softmax": lambda x, w: F.softmax(x, 1),
    "layer_norm": lambda x, w: F.layer_norm(x, (11,), w.flatten()[:11], w.flatten()[11:22]),
    "layer_norm of two axes": lambda x, w: F.layer_norm(x, SIZE),
    "group_norm": lambda x, w: F.group_norm(F.conv2d(x, w), 3, w[:, 0, 0, 0], w[:, 0, 0, 1]),
    "batch_norm alone": lambda x, w: F.batch_norm(
        x, w[0, 0, 0], w[0, 0, 1].square() + 0.5, w[0, 0, 2], w[0, 1, 0], eps=1e-3
    ),
    "max_pool2d": lambda x, w: F.max_pool2d(x, 2),
    "max_pool2d, overlapping": lambda x, w: F.max_pool2d(x, 3, 2, 1),
    "max_pool2d, ceil": lambda x, w: F.max_pool2d(x, 3, 2, 0, ceil_mode=True),
    "max_pool2d, gaps": lambda x, w: F.max_pool2d(x, (2, 1), (3, 2)),
    "max_pool2d of ties": lambda x, w: F.max_pool2d(F.relu(x), 3, 2, 1),
    "avg_pool2d": lambda x, w: F.avg_pool2d(x, 2),
    "avg_pool2d, padded": lambda x, w: F.avg_pool2d(x, 3, 2, 1),
    "avg_pool2d, padding not counted": lambda x, w: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "avg_pool2d, ceil": lambda x, w: F.avg_pool2d(x, (3, 2), 2, (1, 0), ceil_mode=True, count_include_pad=False),
    "avg_pool2d, ceil, padding counted": lambda x, w: F.avg_pool2d(x, (3, 2), 2, (1, 1), ceil_mode=True),
    "avg_pool2d, divisor": lambda x, w: F.avg_pool2d(x, 2, divisor_override=3),
    "adaptive_avg_pool2d": lambda x, w: F.adaptive_avg_pool2d(x, 1),
    "adaptive_avg_pool2d, uneven": lambda x, w: F.adaptive_avg_pool2d(x, (5, 4)),
    "adaptive_avg_pool2d, enlarging": lambda x, w: F.adaptive_avg_pool2d(x, (20, 12)),
    "mean": lambda x, w: x.mean((2, 3)),
    "mean, kept": lambda x, w: x * x.mean((1, 3), keepdim=True),
    "sum": lambda x, w: x.sum((-1, 1)),
    "add": lambda x, w: torch.add(x, x.mean((2, 3), keepdim=True), alpha=0.3) + 2,
    "add to a weight": lambda x, w: w[0, 0, 0].view(3, 1, 1) + x,
    "sub": lambda x, w: torch.sub(x.square(), x[:, :1], alpha=2),
    "rsub": lambda x, w: 1 - x,
    "neg": lambda x, w: -x,
    "mul": lambda x, w: x * x[:, 1:2] * w[0, 0, 0].view(3, 1, 1) * 3,
    "div": lambda x, w: x / (x[:, :1].square() + 1),
    "pow": lambda x, w: x**3,
    "exp, sqrt, rsqrt": lambda x, w: torch.exp(x).sqrt() + (x.square() + 1).rsqrt(),
    "views": lambda x, w: x.view(x.shape[0], 3, 11, 13).permute(2, 0, 1, 3).transpose(0, 1).unsqueeze(1).squeeze(1),
    "expand": lambda x, w: x.mean(1, keepdim=True).expand(-1, 5, -1, -1) * x[:, :1],
    "select": lambda x, w: x[:, 1] * x[:, -1],
    "slice": lambda x, w: x[:, :, 2:-3, 4:] * 2,
    "cat": lambda x, w: torch.cat([x, x.square(), x[:, :1] * w[0, 0, 0, 0]], 1),
    "pad": lambda x, w: F.pad(x, (1, 2, 0, 3), value=0.5).square(),
    "pad, cropping": lambda x, w: F.pad(x, (-1, 2, 1, -3)).square(),
    "roll": lambda x, w: torch.roll(x, (2, -3), (2, 3)) * x,
    "unbind": lambda x, w: _sum_of_product(*x.unbind(1)),
    "split": lambda x, w: _sum_of_product(*x.split([2, 1], 1)),
    "chunk": lambda x, w: _sum_of_product(*_mixed(x).chunk(2, 1)),
    "dropout": lambda x, w: F.dropout(x, 0.5, training=False) * x,
}

TRUTHS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "hardsigmoid": lambda x, w: F.relu6(4 * x + 3) / 6,  # torch's own backward has 1/6 in single precision
}


@cache
def _traced(name: str, seed: int) -> Forward:
    return trace(_Function(CASES[name], seed).double().eval().requires_grad_(False), SIZE)


@pytest.mark.parametrize("name", CASES)
def test_result_and_pullback_are_those_of_autograd(name: str, seed: int) -> None:
    truth = _Function(TRUTHS.get(name, CASES[name]), seed).double().eval().requires_grad_(False)
    network = Network(_traced(name, seed), torch.float64)
    for batch in (3, 1):  # the trace was made of two
        generator = torch.Generator().manual_seed(seed + batch)
        images = torch.randn(batch, 3, *SIZE, generator=generator, dtype=torch.float64)
        leaf = images.clone().requires_grad_()
        expected = truth(leaf)
        cotangent = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
        (wanted,) = torch.autograd.grad(expected, leaf, cotangent)
        expected = expected.detach()
        with torch.no_grad():
            outputs, pull = network.pulled(images)
            result, found = outputs.logits, pull(Outputs(logits=cotangent))
        assert result.shape == expected.shape
        assert float((result - expected).norm()) <= 1e-12 * float(expected.norm())
        assert found.shape == wanted.shape
        assert float((found - wanted).norm()) <= 1e-12 * float(wanted.norm())


def test_every_rule_has_a_case(seed: int) -> None:
    """Rules whose operator no trace of this version contains are named: another version's may."""
    met = {operator_name(node) for name in CASES for node in _traced(name, seed).active if node.op == "call_function"}
    not_here = {
        "_softmax", "_to_copy", "batch_norm", "chunk", "constant_pad_nd", "contiguous", "dropout", "lift_fresh_copy",
        "mm", "reshape", "split", "to",
    }  # fmt: skip
    assert set(RULES) - met <= {f"aten::{name}" for name in not_here}


@pytest.mark.parametrize(
    ("what", "function"),
    [
        ("dilation", lambda x, w: F.conv2d(x, w, stride=2, dilation=2)),
        ("same, even", lambda x, w: F.conv2d(x, w[:, :, :2, :2], padding="same")),
        ("dilated pooling", lambda x, w: F.max_pool2d(x, 2, dilation=2)),
        ("reflect padding", lambda x, w: F.pad(x, (1, 1, 1, 1), mode="reflect")),
        ("causal", lambda x, w: _attention(x, w, is_causal=True)),
        ("exponent", lambda x, w: w[0, 0, 0].view(3, 1, 1).abs() ** x),
    ],
)
def test_what_a_rule_does_not_cover_is_refused_and_never_computed_wrong(what: str, function: Any) -> None:
    module = _Function(function, 0).double().eval().requires_grad_(False)
    images = torch.rand(2, 3, *SIZE, dtype=torch.float64)

    def gradient() -> None:
        outputs, pull = Network(trace(module, SIZE), torch.float64).pulled(images)
        pull(Outputs(logits=torch.ones_like(outputs.logits)))

    with pytest.raises((NotImplementedError, UserError)):
        gradient()


def test_an_operator_without_a_rule_is_named() -> None:
    module = _Function(lambda x, w: torch.cumsum(x, 2), 0).eval()
    with pytest.raises(UserError, match=r"aten::cumsum, which has no gradient rule.*eager or compiled"):
        trace(module, SIZE)


def test_overlap_add_is_the_adjoint_of_windows(seed: int) -> None:
    """⟨windows(x), t⟩ = ⟨x, overlap_add(t)⟩ for strides below, at and above the kernel."""
    generator = torch.Generator().manual_seed(seed)
    for kernel, stride in (((3, 2), (1, 1)), ((3, 2), (2, 2)), ((2, 2), (2, 3)), ((1, 2), (3, 4))):
        x = torch.randn(2, 3, 12, 14, generator=generator, dtype=torch.float64)
        size = (12 - kernel[0]) // stride[0] + 1, (14 - kernel[1]) // stride[1] + 1
        taps = [
            torch.randn(2, 3, *size, generator=generator, dtype=torch.float64) for _ in range(kernel[0] * kernel[1])
        ]
        forward = sum(float((tap * t).sum()) for tap, t in zip(windows(x, kernel, stride, size), taps, strict=True))
        added = overlap_add(taps, kernel, stride)
        backward = float((decompositions.crop_or_pad(added, (0, 0), (12, 14)) * x).sum())
        assert forward == pytest.approx(backward, abs=1e-10)


def test_the_input_gradient_holds_no_zeros_between_strides() -> None:
    """A stride of s costs ⌈k/s⌉² taps for each of s² phases, and not (s·h)² pixels times k² taps."""
    weight = torch.rand(8, 3, 16, 16)
    calls = []
    plain = F.conv2d

    def counted(x: Tensor, w: Tensor, *args: Any, **options: Any) -> Tensor:
        calls.append((x.shape, w.shape))
        return plain(x, w, *args, **options)

    decompositions.F.conv2d = counted
    try:
        convolution_input_gradient(torch.rand(1, 8, 14, 14), weight, (224, 224), (16, 16), (0, 0), (1, 1), 1)
    finally:
        decompositions.F.conv2d = plain
    assert calls == [((1, 8, 14, 14), (3 * 256, 8, 1, 1))]


def test_switches_of_another_precision_are_imposed(seed: int) -> None:
    """On the far side of a kink the gradient is another; with the wide run's switches it is the wide one's."""
    module = _Function(lambda x, w: F.relu(F.max_pool2d(x * w[0, 0, 0].view(3, 1, 1), 2)), seed).eval()
    network = Network(trace(module.requires_grad_(False), SIZE), torch.float64)
    images = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    cotangent = torch.ones(2, 3 * 6 * 5, dtype=torch.float64)

    def gradient(x: Tensor) -> Tensor:
        _, pull = network.pulled(x)
        return pull(Outputs(logits=cotangent))

    switches = Switches()
    with torch.no_grad():
        with switches.noted():
            wanted = gradient(images)
        other = gradient(-images)
        with switches.imposed():
            imposed = gradient(-images)
    assert not torch.equal(other, wanted)
    assert torch.equal(imposed, wanted)
    assert Switches._current is None
