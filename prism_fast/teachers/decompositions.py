"""Operators of classifiers as pairs of a result and a pullback, in terms that ONNX and TensorRT have.

``RULES`` maps an ATen operator's name (``aten::conv2d``) to a function of that operator's arguments. It returns the
result and its pullback: cotangent of the result in, cotangents of the tensor arguments out, in their order (None for
those that take none). Nothing here calls autograd, scatters, or asks for an index, so one trace of rules forward and
pullbacks backward is a graph that a compiler for inference takes as it is. Weights enter a pullback as the tensors
that they are in the forward pass: a graph holds them once.

Sources: reverse accumulation as in Griewank and Walther 2008, ch. 3; the transposed convolution as a sub-pixel
convolution after Shi et al. 2016 (arXiv 1609.07009).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from prism_fast.wide import wide as _wide

Cotangents = tuple[Tensor | None, ...]
Pullback = Callable[[Tensor], Cotangents]
Rule = Callable[..., tuple[Any, Any]]
"""A result and its pullback; of a result in parts, a tuple of each."""

RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Enters a function into ``RULES`` for these operators."""

    def enter(function: Rule) -> Rule:
        RULES.update({f"aten::{name}": function for name in names})
        return function

    return enter


class Switches:
    """Which side of its kinks (activations, pooling) each element was on, noted in one run and imposed on another.

    The image gradient of a network of kinks jumps where an element crosses one. Two precisions may find it on two
    sides; the gradient with the other's switches tells whether that is all in which they differ::

        with switches.noted():
            wide_network(images)
        with switches.imposed():
            narrow_network(images)
    """

    _current: ClassVar[tuple[Switches, bool] | None] = None

    def __init__(self) -> None:
        self._masks: list[Tensor] = []
        self._next = 0

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Masks of what runs inside are kept, in order. Forward and pullback belong inside."""
        self._masks = []
        with self._as_current(False):
            yield

    @contextmanager
    def imposed(self) -> Iterator[None]:
        """What runs inside takes the masks that were noted."""
        self._next = 0
        with self._as_current(True):
            yield

    @contextmanager
    def _as_current(self, imposes: bool) -> Iterator[None]:
        Switches._current = (self, imposes)
        try:
            yield
        finally:
            Switches._current = None

    def _switch(self, mask: Tensor, imposes: bool) -> Tensor:
        if not imposes:
            self._masks.append(mask)
            return mask
        self._next += 1
        return self._masks[self._next - 1]

    @staticmethod
    def switch(mask: Tensor) -> Tensor:
        """``mask``, or what is imposed in its place."""
        if Switches._current is None:
            return mask
        switches, imposes = Switches._current
        return switches._switch(mask, imposes)


def _where(mask: Tensor, g: Tensor) -> Tensor:
    """g where its element's kink lets it through: as a product, which runtimes vectorise and fuse better than a choice.

    A cotangent that is not finite stays so behind a closed kink: the image is then dropped, as it is anyway.
    """
    return g * Switches.switch(mask).to(g.dtype)


def _pair(value: int | Sequence[int], default: int | None = None) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    values = list(value)
    if not values:  # an omitted stride of a pooling is the window
        if default is None:
            raise ValueError("one or two numbers")
        return default, default
    return (values[0], values[0]) if len(values) == 1 else (values[0], values[1])


def _unbroadcast(cotangent: Tensor, like: Tensor) -> Tensor:
    """Sum over the axes along which ``like`` was broadcast. Batch axes are compared as they are: they are equal."""
    extra = cotangent.dim() - like.dim()
    if extra:
        cotangent = cotangent.sum(list(range(extra)))
    axes = [
        axis
        for axis, (wide, narrow) in enumerate(zip(cotangent.shape, like.shape, strict=True))
        if isinstance(narrow, int) and narrow == 1 and not (isinstance(wide, int) and wide == 1)
    ]
    return cotangent.sum(axes, keepdim=True) if axes else cotangent


# Convolution


def interleave(phases: Tensor, stride: tuple[int, int]) -> Tensor:
    """[B, C·s_h·s_w, h, w] → [B, C, h·s_h, w·s_w]: pixel (i·s_h + a, j·s_w + b) is channel (c, a, b) at (i, j)."""
    down, right = stride
    if (down, right) == (1, 1):
        return phases
    if down == right:
        return F.pixel_shuffle(phases, down)
    batch, channels, height, width = phases.shape
    split = phases.reshape(batch, channels // (down * right), down, right, height, width)
    return split.permute(0, 1, 4, 2, 5, 3).reshape(batch, channels // (down * right), height * down, width * right)


def crop_or_pad(x: Tensor, start: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Window of ``size`` pixels from ``start`` (may be negative); zero outside ``x``."""
    (top, left), (height, width) = start, size
    pads = [-left, left + width - int(x.shape[3]), -top, top + height - int(x.shape[2])]
    return F.pad(x, pads) if any(pads) else x


def convolution_input_gradient(
    cotangent: Tensor,
    weight: Tensor,
    size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> Tensor:
    """d⟨g, w ⋆ x⟩/dx for y_i = Σ_a w_a x_{s·i − p + d·a}, as one plain convolution.

    Row u = s·q + r − p of the gradient is Σ_m w_{s·m + r} g_{q − m}: for every phase r ∈ [0, s) a convolution of g with
    each s-th tap of the flipped kernel. All phases are output channels of one convolution, then interleaved. Nothing
    is multiplied with the zeros between strides, unlike in a convolution of the zero-interleaved cotangent.

    Args:
        cotangent: g [B, O, h, w].
        weight: w [O, I/groups, k_h, k_w].
        size: (H, W) of x.
        stride: s; ``padding`` p, ``dilation`` d; either s or d is one along both axes.
        groups: of the channels.

    Returns:
        [B, I, H, W].

    Raises:
        NotImplementedError: strided and dilated at once.
    """
    outputs, inputs, height, width = weight.shape
    if dilation != (1, 1):
        if stride != (1, 1):
            raise NotImplementedError("the gradient of a convolution with a stride and a dilation")
        taps = height, width
    else:
        taps = -(-height // stride[0]), -(-width // stride[1])
        weight = F.pad(weight, [0, taps[1] * stride[1] - width, 0, taps[0] * stride[0] - height])
    # [groups, O/groups, I/groups, taps, s, taps, s] → [(I, s, s), O/groups, taps, taps], flipped
    parts = weight.reshape(groups, outputs // groups, inputs, taps[0], stride[0], taps[1], stride[1])
    parts = parts.permute(0, 2, 4, 6, 1, 3, 5)
    parts = parts.reshape(groups * inputs * stride[0] * stride[1], outputs // groups, taps[0], taps[1]).flip(2, 3)
    reach = dilation[0] * (taps[0] - 1), dilation[1] * (taps[1] - 1)
    # without a stride the crop goes into the convolution's own padding
    fused = stride == (1, 1) and padding[0] <= reach[0] and padding[1] <= reach[1]
    border = (reach[0] - padding[0], reach[1] - padding[1]) if fused else reach
    phases = F.conv2d(cotangent, parts, padding=border, dilation=dilation, groups=groups)
    return crop_or_pad(interleave(phases, stride), (0, 0) if fused else padding, size)


def _padding_in_words(padding: str, weight: Tensor, dilation: Sequence[int]) -> tuple[int, int]:
    """``valid`` is none, ``same`` keeps the size: (kernel − 1)·dilation in all, half of it on each side."""
    if padding == "valid":
        return 0, 0
    whole = [step * (int(size) - 1) for step, size in zip(dilation, weight.shape[2:], strict=True)]
    if any(each % 2 for each in whole):
        raise NotImplementedError("padding 'same' of a kernel of even size")
    return whole[0] // 2, whole[1] // 2


@rule("conv2d")
def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> tuple[Tensor, Pullback]:
    """y = w ⋆ x + b; the pullback is :func:`convolution_input_gradient`. Weights take no cotangent."""
    if isinstance(padding, str):
        padding = _padding_in_words(padding, weight, _pair(dilation))
    geometry = _pair(stride), _pair(padding), _pair(dilation)
    size = int(x.shape[2]), int(x.shape[3])

    def pull(g: Tensor) -> Cotangents:
        return (convolution_input_gradient(g, weight, size, *geometry, groups),)

    return F.conv2d(x, weight, bias, *geometry, groups), pull


# Matrix products


@rule("linear")
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Pullback]:
    """y = x·Wᵀ + b; dx = g·W."""
    return F.linear(x, weight, bias), lambda g: (g @ weight,)


@rule("matmul", "bmm", "mm")
def matmul(a: Tensor, b: Tensor) -> tuple[Tensor, Pullback]:
    """y = a·b; da = g·bᵀ, db = aᵀ·g. Both with at least two axes."""
    if a.dim() < 2 or b.dim() < 2:
        raise NotImplementedError("the gradient of a matrix product with a vector")

    def pull(g: Tensor) -> Cotangents:
        return _unbroadcast(g @ b.transpose(-2, -1), a), _unbroadcast(a.transpose(-2, -1) @ g, b)

    return a @ b, pull


@rule("addmm")
def addmm(bias: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Pullback]:
    """y = bias + a·b; as :func:`matmul`."""
    return bias + a @ b, lambda g: (_unbroadcast(g, bias), g @ b.transpose(-2, -1), a.transpose(-2, -1) @ g)


@rule("scaled_dot_product_attention")
def scaled_dot_product_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> tuple[Tensor, Pullback]:
    """y = P·v with P = softmax(s·q·kᵀ + mask), s = 1/√d.

    dv = Pᵀ·g, dP = g·vᵀ, dA = P ∘ (dP − Σ P ∘ dP), dq = s·dA·k, dk = s·dAᵀ·q.
    """
    if dropout_p or is_causal or enable_gqa or (attn_mask is not None and attn_mask.dtype == torch.bool):
        raise NotImplementedError("the gradient of attention with dropout, a causal or boolean mask, or grouped heads")
    factor = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    # the factor on q: its product with k is the larger tensor, and in fp16 the one that overflows
    scores = (q * factor) @ k.transpose(-2, -1)
    weights, pull_softmax = softmax(scores if attn_mask is None else scores + attn_mask, -1)

    def pull(g: Tensor) -> Cotangents:
        (d_scores,) = pull_softmax(g @ v.transpose(-2, -1))
        assert d_scores is not None  # noqa: S101  for the type checker: a softmax has one cotangent
        d_mask = None if attn_mask is None else _unbroadcast(d_scores, attn_mask)
        return (d_scores @ k) * factor, d_scores.transpose(-2, -1) @ (q * factor), weights.transpose(-2, -1) @ g, d_mask

    return weights @ v, pull


# Activations. Where a derivative jumps, its value there is torch's.


@rule("relu")
def relu(x: Tensor) -> tuple[Tensor, Pullback]:
    """max(x, 0); derivative [x > 0]."""
    y = F.relu(x)
    return y, lambda g: (_where(y > 0, g),)


@rule("hardtanh")
def hardtanh(x: Tensor, min_val: float = -1.0, max_val: float = 1.0) -> tuple[Tensor, Pullback]:
    """clamp(x, lo, hi); derivative [lo < x < hi]."""
    y = F.hardtanh(x, min_val, max_val)
    return y, lambda g: (_where((y > min_val) & (y < max_val), g),)


@rule("relu6")
def relu6(x: Tensor) -> tuple[Tensor, Pullback]:
    """clamp(x, 0, 6), as :func:`hardtanh`."""
    return hardtanh(x, 0.0, 6.0)


@rule("clamp")
def clamp(x: Tensor, min: float | None = None, max: float | None = None) -> tuple[Tensor, Pullback]:  # noqa: A002
    """clamp(x, lo, hi); derivative [lo ≤ x ≤ hi], the ends included."""
    y = torch.clamp(x, min, max)
    return y, lambda g: (_where(y == x, g),)


@rule("leaky_relu")
def leaky_relu(x: Tensor, negative_slope: float = 0.01) -> tuple[Tensor, Pullback]:
    """x for x > 0, else a·x; derivative 1 or a."""
    return F.leaky_relu(x, negative_slope), lambda g: (torch.where(Switches.switch(x > 0), g, g * negative_slope),)


@rule("elu")
def elu(x: Tensor, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> tuple[Tensor, Pullback]:
    """s·x for x > 0, else s·α·(exp(c·x) − 1); derivative s, or c·s·α·exp(c·x)."""
    grown = scale * alpha * torch.exp(torch.clamp(x, max=0.0) * input_scale)
    y = torch.where(x > 0, x * scale, grown - scale * alpha)
    return y, lambda g: (g * torch.where(x > 0, scale, grown * input_scale),)


@rule("selu")
def selu(x: Tensor) -> tuple[Tensor, Pullback]:
    """:func:`elu` with the constants of Klambauer et al. 2017 (arXiv 1706.02515)."""
    return elu(x, 1.6732632423543772, 1.0507009873554805)


@rule("sigmoid")
def sigmoid(x: Tensor) -> tuple[Tensor, Pullback]:
    """σ(x); derivative σ·(1 − σ)."""
    y = torch.sigmoid(x)
    return y, lambda g: (g * y * (1 - y),)


@rule("tanh")
def tanh(x: Tensor) -> tuple[Tensor, Pullback]:
    """tanh(x); derivative 1 − tanh²."""
    y = torch.tanh(x)
    return y, lambda g: (g * (1 - y * y),)


@rule("silu")
def silu(x: Tensor) -> tuple[Tensor, Pullback]:
    """x·σ(x); derivative σ·(1 + x·(1 − σ))."""
    gate = torch.sigmoid(x)
    return x * gate, lambda g: (g * gate * (1 + x * (1 - gate)),)


@rule("mish")
def mish(x: Tensor) -> tuple[Tensor, Pullback]:
    """x·tanh(s), s = log(1 + exp(x)); derivative t + x·(1 − t²)·σ(x) with t = tanh(s)."""
    bent = torch.tanh(torch.clamp(x, min=0) + torch.log1p(torch.exp(-torch.abs(x))))
    return x * bent, lambda g: (g * (bent + x * (1 - bent * bent) * torch.sigmoid(x)),)


@rule("hardsigmoid")
def hardsigmoid(x: Tensor) -> tuple[Tensor, Pullback]:
    """clamp(x/6 + 1/2, 0, 1); derivative 1/6 for −3 < x < 3."""
    return torch.clamp(x / 6 + 0.5, 0.0, 1.0), lambda g: (_where((x > -3) & (x < 3), g / 6),)


@rule("hardswish")
def hardswish(x: Tensor) -> tuple[Tensor, Pullback]:
    """x·clamp(x + 3, 0, 6)/6; derivative 0 to −3, (2x + 3)/6 between, 1 from 3 on."""

    def pull(g: Tensor) -> Cotangents:
        return (_where(x > -3, torch.where(Switches.switch(x < 3), g * (x / 3 + 0.5), g)),)

    return x * torch.clamp(x / 6 + 0.5, 0.0, 1.0), pull


@rule("gelu")
def gelu(x: Tensor, approximate: str = "none") -> tuple[Tensor, Pullback]:
    """x·Φ(x); derivative Φ + x·φ. ``tanh``: Φ ≈ (1 + tanh u)/2, u = √(2/π)·(x + 0.044715 x³)."""
    wide = _wide(x)
    if approximate == "none":
        cumulative = 0.5 * (1 + torch.erf(wide * math.sqrt(0.5)))

        def slope() -> Tensor:
            return cumulative + wide * torch.exp(-0.5 * wide * wide) * (1 / math.sqrt(2 * math.pi))
    else:
        root = math.sqrt(2 / math.pi)
        bent = torch.tanh(root * wide * (1 + 0.044715 * wide * wide))
        cumulative = 0.5 * (1 + bent)

        def slope() -> Tensor:
            return cumulative + 0.5 * wide * (1 - bent * bent) * root * (1 + 3 * 0.044715 * wide * wide)

    return (wide * cumulative).to(x.dtype), lambda g: (g * slope().to(g.dtype),)


@rule("softmax", "_softmax")
def softmax(x: Tensor, dim: int, dtype: torch.dtype | bool | None = None) -> tuple[Tensor, Pullback]:
    """y = exp(x)/Σ exp(x); dx = y ∘ (g − Σ y ∘ g)."""
    y = torch.softmax(_wide(x), dim).to(dtype if isinstance(dtype, torch.dtype) else x.dtype)
    return y, lambda g: ((y * (g - (y * g).sum(dim, keepdim=True))).to(x.dtype),)


# Normalisation


@rule("layer_norm")
def layer_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> tuple[Tensor, Pullback]:
    """y = w·n + b, n = (x − μ)/σ over the last axes; dx = (h − mean(h) − n·mean(h ∘ n))/σ with h = g·w."""
    axes = list(range(-len(normalized_shape), 0))
    wide = _wide(x)
    centred = wide - wide.mean(axes, keepdim=True)
    scale = torch.rsqrt((centred * centred).mean(axes, keepdim=True) + eps)
    normal = centred * scale
    y = normal if weight is None else normal * weight
    y = y if bias is None else y + bias

    def pull(g: Tensor) -> Cotangents:
        h = _wide(g) if weight is None else _wide(g) * weight
        d = h - h.mean(axes, keepdim=True) - normal * (h * normal).mean(axes, keepdim=True)
        return ((d * scale).to(x.dtype),)

    return y.to(x.dtype), pull


@rule("group_norm")
def group_norm(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> tuple[Tensor, Pullback]:
    """:func:`layer_norm` of each group of channels, then weight and bias of each channel."""
    grouped = x.reshape(x.shape[0], num_groups, -1)
    normal, pull_normal = layer_norm(grouped, [int(grouped.shape[2])], eps=eps)
    y = normal.reshape(x.shape)
    shape = [1, -1, *[1] * (x.dim() - 2)]
    y = y if weight is None else y * weight.view(shape)
    y = y if bias is None else y + bias.view(shape)

    def pull(g: Tensor) -> Cotangents:
        h = g if weight is None else g * weight.view(shape)
        (d,) = pull_normal(h.reshape(grouped.shape))
        assert d is not None  # noqa: S101  for the type checker: a normalisation has one cotangent
        return (d.reshape(x.shape),)

    return y, pull


@rule("batch_norm")
def batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> tuple[Tensor, Pullback]:
    """y = a·x + (b − a·m), a = w/√(v + ε), with the running statistics; dx = a·g."""
    if training:
        raise NotImplementedError("batch normalisation by the batch's own statistics")
    shape = [1, -1, *[1] * (x.dim() - 2)]
    slope = torch.rsqrt(_wide(running_var) + eps)
    slope = slope if weight is None else slope * weight
    offset = -slope * running_mean if bias is None else bias - slope * running_mean
    slope, offset = (value.to(x.dtype).view(shape) for value in (slope, offset))
    return x * slope + offset, lambda g: (g * slope,)


@rule("_native_batch_norm_legit_no_training")
def native_batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Pullback]:
    """:func:`batch_norm`; of the operator's three results the first is the one that is used."""
    return batch_norm(x, weight, bias, running_mean, running_var, False, momentum, eps)


# Pooling


def windows(x: Tensor, kernel: tuple[int, int], stride: tuple[int, int], size: tuple[int, int]) -> list[Tensor]:
    """The kernel's taps, row by row: tap (a, b) is x[s·i + a, s·j + b] for i, j in ``size``."""
    (down, right), (height, width) = stride, size
    return [
        x[:, :, a : a + down * (height - 1) + 1 : down, b : b + right * (width - 1) + 1 : right]
        for a in range(kernel[0])
        for b in range(kernel[1])
    ]


def overlap_add(taps: Sequence[Tensor], kernel: tuple[int, int], stride: tuple[int, int]) -> Tensor:
    """The adjoint of :func:`windows`: what taps say of the same pixel is added, without a scatter.

    Pixel (s·q + r) gets Σ_m tap_{s·m + r}[q − m]: shifted sums for every phase r, then the phases interleaved.

    Returns:
        [B, C, s·(h + ⌈k/s⌉ − 1), …]: pixels under no tap are zero.
    """
    (down, right), (high, wide) = stride, kernel
    reach = -(-high // down) - 1, -(-wide // right) - 1
    phases = []
    for a in range(down):
        for b in range(right):
            parts = [
                F.pad(taps[(down * m + a) * wide + right * n + b], [n, reach[1] - n, m, reach[0] - m])
                for m in range(reach[0] + 1)
                for n in range(reach[1] + 1)
                if down * m + a < high and right * n + b < wide
            ]
            phases.append(sum(parts[1:], parts[0]) if parts else None)
    some = next(phase for phase in phases if phase is not None)
    filled = [torch.zeros_like(some) if phase is None else phase for phase in phases]
    batch, channels, height, width = some.shape
    return interleave(torch.stack(filled, 2).reshape(batch, channels * down * right, height, width), stride)


@rule("max_pool2d")
def max_pool2d(
    x: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] = (),
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
) -> tuple[Tensor, Pullback]:
    """y = max over the window; g goes to the first largest tap, in torch's order.

    The taps are compared with each other and not with y: a runtime may hold y in a wider precision than x.
    """
    kernel = _pair(kernel_size)
    step, border = tuple(_pair(stride, k)[axis] for axis, k in enumerate(kernel)), _pair(padding)
    if _pair(dilation) != (1, 1):
        raise NotImplementedError("the gradient of a dilated pooling")
    y = F.max_pool2d(x, kernel, step, border, 1, ceil_mode)

    def pull(g: Tensor) -> Cotangents:
        height, width = int(y.shape[2]), int(y.shape[3])
        reach = step[0] * (height - 1) + kernel[0], step[1] * (width - 1) + kernel[1]
        below, beside = reach[0] - int(x.shape[2]) - border[0], reach[1] - int(x.shape[3]) - border[1]
        lowest = torch.finfo(x.dtype).min
        padded = F.pad(x, [border[1], max(beside, 0), border[0], max(below, 0)], value=lowest)
        taps = windows(padded, kernel, (step[0], step[1]), (height, width))
        shares = [_where(won, g) for won in _first_largest(taps)]
        spread = overlap_add(shares, kernel, (step[0], step[1]))
        return (crop_or_pad(spread, border, (int(x.shape[2]), int(x.shape[3]))),)

    return y, pull


def _first_largest(taps: Sequence[Tensor]) -> list[Tensor]:
    """For each tap where it is the first of the largest: it beats all before it, and none after it beats it."""
    best, beats = taps[0], [torch.ones_like(taps[0], dtype=torch.bool)]
    for tap in taps[1:]:
        beats.append(tap > best)
        best = torch.maximum(best, tap)
    beaten = torch.zeros_like(beats[0])
    won = []
    for wins in reversed(beats):
        won.append(wins & ~beaten)
        beaten = beaten | wins
    return won[::-1]


@rule("avg_pool2d")
def avg_pool2d(
    x: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] = (),
    padding: int | Sequence[int] = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> tuple[Tensor, Pullback]:
    """y = mean over the window; every tap of it gets g over the number of taps that were counted."""
    kernel = _pair(kernel_size)
    step, border = tuple(_pair(stride, k)[axis] for axis, k in enumerate(kernel)), _pair(padding)
    options = (kernel, step, border, ceil_mode, count_include_pad, divisor_override)
    y = F.avg_pool2d(x, *options)
    size = int(x.shape[2]), int(x.shape[3])

    def pull(g: Tensor) -> Cotangents:
        # the share of a window's pixel, as torch counts: the pooling of an image of ones is (counted taps)/divisor
        height, width = int(y.shape[2]), int(y.shape[3])
        share = g * _pool_weight(size, (height, width), options).to(g)
        spread = overlap_add([share] * (kernel[0] * kernel[1]), kernel, (step[0], step[1]))
        return (crop_or_pad(spread, border, size),)

    return y, pull


def _pool_weight(size: tuple[int, int], out: tuple[int, int], options: tuple[Any, ...]) -> Tensor:
    """[1, 1, h, w]: one over the divisor of every window of an average pooling."""
    kernel, step, border, _, include, override = options
    if override:
        return torch.full((1, 1, *out), 1 / override, dtype=torch.float64)
    axes = []
    for axis in range(2):
        counts = []
        for index in range(out[axis]):
            begin = index * step[axis] - border[axis]
            end = min(begin + kernel[axis], size[axis] + border[axis])
            counts.append(end - begin if include else min(end, size[axis]) - max(begin, 0))
        axes.append(torch.tensor(counts, dtype=torch.float64))
    return 1 / (axes[0][:, None] * axes[1][None, :])[None, None]


@rule("adaptive_avg_pool2d")
def adaptive_avg_pool2d(x: Tensor, output_size: int | Sequence[int]) -> tuple[Tensor, Pullback]:
    """y = P_h·x·P_wᵀ, rows of P being means over [⌊i·H/h⌋, ⌈(i + 1)·H/h⌉); dx = P_hᵀ·g·P_w."""
    out = _pair(output_size)
    size = int(x.shape[2]), int(x.shape[3])
    if out == size:
        return x, lambda g: (g,)
    if out == (1, 1):
        return mean(x, [2, 3], True)
    rows, columns = (_adaptive_matrix(n, m).to(x) for n, m in zip(size, out, strict=True))
    return rows @ x @ columns.T, lambda g: (rows.T @ g @ columns,)


def _adaptive_matrix(source: int, target: int) -> Tensor:
    matrix = torch.zeros(target, source, dtype=torch.float64)
    for row in range(target):
        begin, end = row * source // target, -(-(row + 1) * source // target)
        matrix[row, begin:end] = 1 / (end - begin)
    return matrix


# Sums


def _axes(x: Tensor, dim: int | Sequence[int] | None) -> list[int]:
    """From the front, all of them for None."""
    chosen = range(x.dim()) if dim is None else [dim] if isinstance(dim, int) else dim
    return [axis % x.dim() for axis in chosen]


@rule("mean")
def mean(
    x: Tensor, dim: Sequence[int] | None = None, keepdim: bool = False, dtype: torch.dtype | None = None
) -> tuple[Tensor, Pullback]:
    """Mean over some axes; each element gets g over their number."""
    axes = (
        list(range(x.dim())) if dim is None else [axis % x.dim() for axis in ([dim] if isinstance(dim, int) else dim)]
    )
    count = math.prod(int(x.shape[axis]) for axis in axes)
    y = _wide(x).mean(axes, keepdim=keepdim).to(dtype or x.dtype)
    return y, lambda g: (_spread(g / count, x, axes, keepdim).to(x.dtype),)


@rule("sum")
def sum_(
    x: Tensor, dim: Sequence[int] | None = None, keepdim: bool = False, dtype: torch.dtype | None = None
) -> tuple[Tensor, Pullback]:
    """Sum over some axes; each element gets g."""
    axes = (
        list(range(x.dim())) if dim is None else [axis % x.dim() for axis in ([dim] if isinstance(dim, int) else dim)]
    )
    y = _wide(x).sum(axes, keepdim=keepdim).to(dtype or x.dtype)
    return y, lambda g: (_spread(g, x, axes, keepdim).to(x.dtype),)


def _spread(g: Tensor, like: Tensor, axes: Sequence[int], kept: bool) -> Tensor:
    if not kept:
        for axis in sorted(axes):
            g = g.unsqueeze(axis)
    return g.expand([like.shape[i] if i in axes else -1 for i in range(like.dim())])


# Arithmetic


@rule("add")
def add(a: Tensor, b: Tensor | float, alpha: float = 1) -> tuple[Tensor, Pullback]:
    """a + α·b."""

    def pull(g: Tensor) -> Cotangents:
        scaled = g if alpha == 1 else g * alpha
        return _unbroadcast(g, a), _unbroadcast(scaled, b) if isinstance(b, Tensor) else None

    return torch.add(a, b, alpha=alpha), pull


@rule("sub")
def sub(a: Tensor, b: Tensor | float, alpha: float = 1) -> tuple[Tensor, Pullback]:
    """a − α·b."""
    return add(a, b, -alpha)


@rule("rsub")
def rsub(a: Tensor, b: Tensor | float, alpha: float = 1) -> tuple[Tensor, Pullback]:
    """b − α·a."""
    return b - alpha * a, lambda g: (-alpha * g, _unbroadcast(g, b) if isinstance(b, Tensor) else None)


@rule("neg")
def neg(a: Tensor) -> tuple[Tensor, Pullback]:
    """−a."""
    return -a, lambda g: (-g,)


@rule("mul")
def mul(a: Tensor, b: Tensor | float) -> tuple[Tensor, Pullback]:
    """a ∘ b; da = g ∘ b, db = g ∘ a."""

    def pull(g: Tensor) -> Cotangents:
        return _unbroadcast(g * b, a), _unbroadcast(g * a, b) if isinstance(b, Tensor) else None

    return a * b, pull


@rule("div")
def div(a: Tensor, b: Tensor | float) -> tuple[Tensor, Pullback]:
    """a/b; da = g/b, db = −g·a/b²."""

    def pull(g: Tensor) -> Cotangents:
        return _unbroadcast(g / b, a), _unbroadcast(-g * a / (b * b), b) if isinstance(b, Tensor) else None

    return a / b, pull


@rule("pow")
def pow_(a: Tensor, exponent: float | Tensor) -> tuple[Tensor, Pullback]:
    """aⁿ with a number n; da = g·n·aⁿ⁻¹."""
    if isinstance(exponent, Tensor):
        raise NotImplementedError("the gradient of a power with a tensor as its exponent")
    return a**exponent, lambda g: (g * exponent * a ** (exponent - 1),)


@rule("square")
def square(a: Tensor) -> tuple[Tensor, Pullback]:
    """a²; derivative 2a."""
    return a * a, lambda g: (2 * g * a,)


@rule("exp")
def exp(a: Tensor) -> tuple[Tensor, Pullback]:
    """exp(a); derivative exp(a)."""
    y = torch.exp(a)
    return y, lambda g: (g * y,)


@rule("sqrt")
def sqrt(a: Tensor) -> tuple[Tensor, Pullback]:
    """√a; derivative 1/(2√a)."""
    y = torch.sqrt(a)
    return y, lambda g: (g / (2 * y),)


@rule("rsqrt")
def rsqrt(a: Tensor) -> tuple[Tensor, Pullback]:
    """1/√a; derivative −1/(2·a·√a)."""
    y = torch.rsqrt(a)
    return y, lambda g: (g * -0.5 * y * y * y,)


# Shapes


@rule("view", "reshape", "_unsafe_view")
def reshape(x: Tensor, *shape: Any) -> tuple[Tensor, Pullback]:
    """The same elements in another shape."""
    size = x.shape
    return x.reshape(*shape), lambda g: (g.reshape(size),)


@rule("clone", "alias", "contiguous", "dropout", "lift_fresh_copy")
def identity(x: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Pullback]:
    """x itself; a dropout is one outside training."""
    return x, lambda g: (g,)


@rule("_to_copy", "to")
def to(x: Tensor, dtype: torch.dtype | None = None, **__: Any) -> tuple[Tensor, Pullback]:
    """Another dtype; the cotangent goes back to x's."""
    return x if dtype is None else x.to(dtype), lambda g: (g.to(x.dtype),)


@rule("permute")
def permute(x: Tensor, dims: Sequence[int]) -> tuple[Tensor, Pullback]:
    """Axes in another order; the cotangent's back in theirs."""
    order = [axis % x.dim() for axis in dims]
    back = sorted(range(len(order)), key=order.__getitem__)
    return x.permute(order), lambda g: (g.permute(back),)


@rule("transpose")
def transpose(x: Tensor, dim0: int, dim1: int) -> tuple[Tensor, Pullback]:
    """Two axes change places."""
    return x.transpose(dim0, dim1), lambda g: (g.transpose(dim0, dim1),)


@rule("expand")
def expand(x: Tensor, size: Sequence[int], implicit: bool = False) -> tuple[Tensor, Pullback]:
    """Broadcast; the cotangent is summed over the new copies."""
    return x.expand(size), lambda g: (_unbroadcast(g, x),)


@rule("unsqueeze")
def unsqueeze(x: Tensor, dim: int) -> tuple[Tensor, Pullback]:
    """A new axis of one."""
    return x.unsqueeze(dim), lambda g: (g.squeeze(dim),)


@rule("squeeze")
def squeeze(x: Tensor, dim: Any = None) -> tuple[Tensor, Pullback]:
    """Without some axes of one."""
    size = x.shape
    return (x.squeeze() if dim is None else x.squeeze(dim)), lambda g: (g.reshape(size),)


def _place(g: Tensor, like: Tensor, dim: int, start: int) -> Tensor:
    """Zeros like ``like`` with ``g`` in them from ``start`` along ``dim``."""
    dim = dim % like.dim()
    after = int(like.shape[dim]) - start - int(g.shape[dim])
    return F.pad(g, [0, 0] * (like.dim() - 1 - dim) + [start, after]) if start or after else g


@rule("select")
def select(x: Tensor, dim: int, index: int) -> tuple[Tensor, Pullback]:
    """One entry of an axis; the others get zero."""
    at = index % int(x.shape[dim])
    return x.select(dim, index), lambda g: (_place(g.unsqueeze(dim), x, dim, at),)


@rule("slice")
def slice_(
    x: Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> tuple[Tensor, Pullback]:
    """A range of an axis; the rest gets zero. Along the batch only the whole of it."""
    if not isinstance(x.shape[dim], int):
        if step != 1 or start not in (None, 0) or (isinstance(end, int) and end < 2**31):
            raise NotImplementedError("the gradient of a slice of the batch")
        return x, lambda g: (g,)
    length = int(x.shape[dim])
    first, last, _ = slice(start, end).indices(length)
    part = x.narrow(dim, first, max(last - first, 0))
    if step == 1:
        return part, lambda g: (_place(g, x, dim, first),)
    return _every(part, dim, step), lambda g: (_place(_apart(g, dim, step, int(part.shape[dim])), x, dim, first),)


def _every(x: Tensor, dim: int, step: int) -> Tensor:
    """Every step-th entry of an axis, as a reshape: the first of each group of ``step``."""
    dim, length = dim % x.dim(), int(x.shape[dim])
    filled = F.pad(x, [0, 0] * (x.dim() - 1 - dim) + [0, -length % step])
    groups = [*filled.shape[:dim], -(-length // step), step, *filled.shape[dim + 1 :]]
    return filled.reshape(groups).select(dim + 1, 0)


def _apart(g: Tensor, dim: int, step: int, length: int) -> Tensor:
    """The adjoint of :func:`_every`: ``step`` − 1 zeros behind each entry, cut off at ``length``."""
    dim = dim % g.dim()
    spread = F.pad(g.unsqueeze(dim + 1), [0, 0] * (g.dim() - 1 - dim) + [0, step - 1])
    return spread.flatten(dim, dim + 1).narrow(dim, 0, length)


@rule("cat")
def cat(tensors: Sequence[Tensor], dim: int = 0) -> tuple[Tensor, Pullback]:
    """End to end along an axis; each gets its part. The cotangents are those of the list's tensors."""
    sizes = [int(t.shape[dim]) for t in tensors]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return torch.cat(list(tensors), dim), lambda g: tuple(
        g.narrow(dim, start, size) for start, size in zip(starts, sizes, strict=True)
    )


@rule("pad", "constant_pad_nd")
def pad(x: Tensor, pad: Sequence[int], *how: Any) -> tuple[Tensor, Pullback]:
    """A border of a constant; the cotangent's border is cut off."""
    mode, value = ("constant", *how)[-2:] if how and not isinstance(how[0], str) else (*how, "constant", None)[:2]
    if mode != "constant":
        raise NotImplementedError(f"the gradient of {mode} padding")
    return F.pad(x, list(pad), value=value or 0.0), lambda g: (F.pad(g, [-side for side in pad]),)


@rule("roll")
def roll(x: Tensor, shifts: Sequence[int], dims: Sequence[int] = ()) -> tuple[Tensor, Pullback]:
    """Turned round along axes; turned back."""
    moves = [(axis, shift % int(x.shape[axis])) for axis, shift in zip(dims, shifts, strict=True)]
    if not moves:
        raise NotImplementedError("the gradient of a roll of the flattened tensor")

    def turned(y: Tensor, back: bool) -> Tensor:
        for axis, shift in moves:
            if shift:
                length = int(y.shape[axis])
                cut = shift if back else length - shift
                y = torch.cat([y.narrow(axis, cut, length - cut), y.narrow(axis, 0, cut)], axis)
        return y

    return turned(x, False), lambda g: (turned(g, True),)


# Results in parts: a rule for each part, since a pullback takes the cotangent of one tensor.


@rule("unbind")
def unbind(x: Tensor, dim: int = 0) -> tuple[Any, Any]:
    """The entries of an axis, each with its own pullback."""
    pairs = [select(x, dim, index) for index in range(int(x.shape[dim]))]
    return tuple(y for y, _ in pairs), tuple(pull for _, pull in pairs)


@rule("split", "split_with_sizes", "chunk")
def split(x: Tensor, parts: int | Sequence[int], dim: int = 0) -> tuple[Any, Any]:
    """An axis in parts, each with its own pullback."""
    length = int(x.shape[dim])
    sizes = [min(parts, length - at) for at in range(0, length, parts)] if isinstance(parts, int) else list(parts)
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    pairs = [slice_(x, dim, start, start + size) for start, size in zip(starts, sizes, strict=True)]
    return tuple(y for y, _ in pairs), tuple(pull for _, pull in pairs)
