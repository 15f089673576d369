"""Triton kernels of ``prism_fast.ops.energy_head``: attention with one query an image, keys and values the weights.

A program walks one split of the classes for one block of images, with an online softmax (Milakov & Gimelshein 2018,
arXiv 1805.02867), and keeps Σ exp((f_j − m)/T)·W_j of one slab of D in registers; a second kernel merges the splits
(flash-decoding) in one order, without atomics. The target is left out of the sums: p_y − 1 would cancel.

Estimate, nothing measured: K = 21,841, D = 1,280, bf16 (56 MB of weights), 4 TB/s, 800 TFLOP/s, L2 at some 5.5 TB/s.
torch reads the weights twice, 112 MB or 28 µs (9 µs of products at B = 64), and passes some ten times over [B, K]. Here
HBM gives them once, 14 µs, if the programs of a split run together; the L2 gives 2 × 56 MB, 20 µs, at B <= 16, but
6 × 56 MB, 60 µs, at B = 64: two blocks of images, two slabs of D that each form the logits (13 µs of products). Partial
sums are 10 MB, more than the fp32 logits that are not written (1.4 MB at B = 16, 5.6 MB at 64). So it may win at
B <= 16 and should lose at B = 64; two temperatures double all of it. What would help: the tile of weights kept on chip
for its second use.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

PROGRAMS = 128  # aimed at, whatever the GPU: about one an SM, and the same sums on every GPU
BLOCK_COMBINED = 256
NUM_WARPS = 8
NUM_WARPS_COMBINED = 4
NUM_STAGES = 2
MAX_REGISTERS = 255  # said outright, or ptxas spills a little to reach 128


@triton.jit
def _log1p(x):
    """log(1 + x) for x >= 0 without losing x to the 1 (Kahan)."""
    rounded = 1.0 + x
    return tl.where(rounded == 1.0, x, tl.log(rounded) * tl.div_rn(x, tl.where(rounded == 1.0, 1.0, rounded - 1.0)))


@triton.jit
def _energy_head_partials_kernel(
    features,  # [B, D] fp32, fp16 or bf16
    weight,  # [K, D] as features
    bias,  # [K] fp32 or as features
    targets,  # int64 [B]
    largest,  # fp32 [S, B], S splits: of the logits of all classes but the target
    exps,  # fp32 [S, B]: Σ exp((f − largest)/T) over the same classes
    target_logits,  # fp32 [S, B]: f_y in the split that has y, zero elsewhere
    sums,  # fp32 [S, B, D]: Σ exp((f − largest)/T)·W
    temperature,
    batch,
    classes,
    width,  # D
    split,  # classes a split, a multiple of BLOCK_K
    features_b,
    weight_k,
    BIAS: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CHUNKS: tl.constexpr,  # of BLOCK_D features in a slab
):
    i = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    here = i < batch
    s = tl.program_id(1).to(tl.int64)
    slab = tl.program_id(2).to(tl.int64) * (CHUNKS * BLOCK_D)
    lanes = tl.arange(0, BLOCK_D).to(tl.int64)
    y = tl.load(targets + i, mask=here, other=-1)
    x_rows = features + i[:, None] * features_b  # [BLOCK_B, 1]

    m = tl.full([BLOCK_B], float("-inf"), tl.float32)
    e_sum = tl.zeros([BLOCK_B], tl.float32)
    f_y = tl.zeros([BLOCK_B], tl.float32)
    total = ()  # CHUNKS × [BLOCK_B, BLOCK_D]: D need not be a power of two
    for _ in tl.static_range(CHUNKS):
        total = total + (tl.zeros([BLOCK_B, BLOCK_D], tl.float32),)

    for start in range(0, split, BLOCK_K):
        j = s * split + start + tl.arange(0, BLOCK_K)
        known = j < classes
        w_rows = weight + j[:, None] * weight_k  # [BLOCK_K, 1]

        # f = x Wᵀ + b [BLOCK_B, BLOCK_K]
        f = tl.zeros([BLOCK_B, BLOCK_K], tl.float32)
        for first in range(0, width, BLOCK_D):
            d = first + lanes
            inside = (d < width)[None, :]
            x = tl.load(x_rows + d[None, :], mask=here[:, None] & inside, other=0.0)
            w = tl.load(w_rows + d[None, :], mask=known[:, None] & inside, other=0.0)
            if weight.dtype.element_ty == tl.float32:
                # Not added in the product: on the fp32 units that would be one sum as long as D, with its errors. The
                # where keeps the compiler from putting it back there.
                f += tl.where(here[:, None], tl.dot(x, tl.trans(w), input_precision="ieee"), 0.0)
            else:
                f = tl.dot(x, tl.trans(w), f, input_precision="ieee")
        if BIAS:
            f += tl.load(bias + j, mask=known, other=0.0).to(tl.float32)[None, :]
        is_target = j[None, :] == y[:, None]
        f_y += tl.sum(tl.where(is_target, f, 0.0), 1)
        f = tl.where(known[None, :] & ~is_target, f, float("-inf"))

        following = tl.maximum(m, tl.max(f, 1))
        zero = tl.where(following == float("-inf"), 0.0, following)  # nothing but −inf so far: exp gives 0, not NaN
        rescale = tl.exp(tl.div_rn(m - zero, temperature))
        e = tl.exp(tl.div_rn(f - zero[:, None], temperature))
        m = following
        e_sum = e_sum * rescale + tl.sum(e, 1)
        e = e.to(weight.dtype.element_ty)
        added = ()
        for c in tl.static_range(CHUNKS):
            d = slab + c * BLOCK_D + lanes
            w = tl.load(w_rows + d[None, :], mask=known[:, None] & (d < width)[None, :], other=0.0)
            if weight.dtype.element_ty == tl.float32:  # as above
                product = tl.where(here[:, None], tl.dot(e, w, input_precision="ieee"), 0.0)
                added = added + (total[c] * rescale[:, None] + product,)
            else:
                added = added + (tl.dot(e, w, total[c] * rescale[:, None], input_precision="ieee"),)
        total = added

    row = s * batch + i
    if tl.program_id(2) == 0:  # every slab has the same
        tl.store(largest + row, m, mask=here)
        tl.store(exps + row, e_sum, mask=here)
        tl.store(target_logits + row, f_y, mask=here)
    for c in tl.static_range(CHUNKS):
        d = slab + c * BLOCK_D + lanes
        tl.store(sums + row[:, None] * width + d[None, :], total[c], mask=here[:, None] & (d < width)[None, :])


@triton.jit
def _energy_head_combine_kernel(
    largest, exps, target_logits,  # fp32 [S, B]
    sums,  # fp32 [S, B, D]
    weight,  # [K, D]
    targets,  # int64 [B]
    energy,  # fp32 [B]
    gradient,  # fp32 [B, D]
    temperature,
    free_weight,
    class_weight,  # zero unless T = 1
    splits,
    batch,
    classes,
    width,
    weight_k,
    ADD: tl.constexpr,  # to what energy and gradient hold
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    y = tl.load(targets + b)
    known = (y >= 0) & (y < classes)
    s = tl.arange(0, SPLITS)
    rows = s.to(tl.int64) * batch + b
    m = tl.load(largest + rows, mask=s < splits, other=float("-inf"))
    e = tl.load(exps + rows, mask=s < splits, other=0.0)
    f_y = tl.sum(tl.load(target_logits + rows, mask=s < splits, other=0.0), 0)

    first = tl.maximum(tl.max(m, 0), f_y)
    finite = (first > float("-inf")) & (first < float("inf"))
    zero = tl.where(finite, first, 0.0)
    others = tl.sum(e * tl.exp(tl.div_rn(m - zero, temperature)), 0)
    target_d = f_y - zero
    target_e = tl.exp(tl.div_rn(target_d, temperature))
    total = others + target_e
    usable = known & finite & (total == total)  # a NaN among the logits is one in the sum
    nan = tl.where(usable, 0.0, float("nan"))

    if tl.program_id(1) == 0:
        log_total = tl.where(target_d == 0, _log1p(others), tl.log(total))
        free = -(zero + temperature * log_total)
        value = tl.where(
            class_weight != 0, class_weight * (log_total - target_d), 0.0
        )  # a weight of zero drops its term
        value += tl.where(free_weight != 0, free_weight * free, 0.0) + nan
        if ADD:
            value += tl.load(energy + b)
        tl.store(energy + b, value)

    # (class_weight − free_weight)·Σ_{j≠y} p_j·W_j − (class_weight·Σ_{j≠y} p_j + free_weight·p_y)·W_y
    d = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = d < width
    product = tl.zeros([BLOCK], tl.float32)
    row = b
    for _ in range(splits):
        share = tl.exp(tl.div_rn(tl.load(largest + row) - zero, temperature))
        product += share * tl.load(sums + row * width + d, mask=inside, other=0.0)
        row += batch
    w_y = tl.load(weight + tl.where(known, y, 0) * weight_k + d, mask=inside, other=0.0).to(tl.float32)
    at_target = class_weight * others + free_weight * target_e
    value = tl.div_rn((class_weight - free_weight) * product - at_target * w_y, total) + nan
    if ADD:
        value += tl.load(gradient + b * width + d, mask=inside, other=0.0)
    tl.store(gradient + b * width + d, value, mask=inside)


def tile_sizes(dtype: torch.dtype, batch: int, width: int, aligned: bool) -> tuple[int, int, int, int]:
    """BLOCK_B, BLOCK_K, BLOCK_D and CHUNKS: as many accumulators as do not spill on sm_80 to sm_120.

    Rows that are not aligned are read one element at a time, whose addresses take registers. No BLOCK_B of 64:
    Blackwell's tensor memory does not hold those accumulators.
    """
    if dtype == torch.float32:  # not on tensor cores, whose fp32 is TF32
        block_b, block_k, block_d, most = 16, 16, 64, 5
    elif batch <= 16 and aligned:
        block_b, block_k, block_d, most = 16, 32, 128, 10
    else:
        block_b, block_k, block_d, most = 32, 32, 64, 10 if aligned else 8
    chunks = triton.cdiv(width, block_d)
    return block_b, block_k, block_d, triton.cdiv(chunks, triton.cdiv(chunks, most))  # slabs of one size


def is_aligned(matrix: Tensor) -> bool:
    """Whether Triton reads its rows in 16-byte loads."""
    return matrix.shape[1] % 16 == 0 and matrix.stride(0) % 16 == 0 and matrix.data_ptr() % 16 == 0


def split_size(classes: int, programs: int, block_k: int) -> int:
    """Classes a split, a multiple of ``block_k``; ``programs`` of each split. At most PROGRAMS splits."""
    splits = max(1, PROGRAMS // programs)
    return triton.cdiv(triton.cdiv(classes, splits), block_k) * block_k


def energy_head_triton(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    temperature: float,
    free_weight: float,
    class_weight: float,
) -> tuple[Tensor, Tensor]:
    """energy fp32 [B], gradient fp32 [B, D]. Arguments as checked by the op; rows of features and weight dense."""
    batch, width = features.shape
    energy = torch.empty(batch, dtype=torch.float32, device=features.device)
    gradient = torch.empty((batch, width), dtype=torch.float32, device=features.device)
    if batch == 0:
        return energy, gradient
    # (T, free_weight, class_weight) of each pass over the classes; at T = 1 both terms share one softmax
    passes = [(1.0, free_weight, class_weight)]
    if temperature != 1 and free_weight != 0:
        passes = [(1.0, 0.0, class_weight)] if class_weight != 0 else []
        passes.append((temperature, free_weight, 0.0))
    for k, terms in enumerate(passes):
        _add_pass(features, weight, bias, targets, energy, gradient, terms, add=k > 0)
    return energy, gradient


def _add_pass(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    energy: Tensor,
    gradient: Tensor,
    terms: tuple[float, float, float],
    *,
    add: bool,
) -> None:
    """Writes the terms of one temperature to ``energy`` and ``gradient``, or adds them."""
    (batch, width), classes = features.shape, weight.shape[0]
    temperature, free_weight, class_weight = map(float, terms)
    aligned = is_aligned(features) and is_aligned(weight)
    block_b, block_k, block_d, chunks = tile_sizes(features.dtype, batch, width, aligned)
    blocks, slabs = triton.cdiv(batch, block_b), triton.cdiv(width, chunks * block_d)
    split = split_size(classes, blocks * slabs, block_k)
    splits = triton.cdiv(classes, split)
    largest, exps, target_logits = torch.empty((3, splits, batch), dtype=torch.float32, device=features.device)
    sums = torch.empty((splits, batch, width), dtype=torch.float32, device=features.device)
    _energy_head_partials_kernel[(blocks, splits, slabs)](
        features, weight, features if bias is None else bias, targets, largest, exps, target_logits, sums,
        temperature, batch, classes, width, split, features.stride(0), weight.stride(0),
        BIAS=bias is not None, BLOCK_B=block_b, BLOCK_K=block_k, BLOCK_D=block_d, CHUNKS=chunks,
        num_warps=NUM_WARPS, num_stages=NUM_STAGES, maxnreg=MAX_REGISTERS,
    )  # fmt: skip
    _energy_head_combine_kernel[(batch, triton.cdiv(width, BLOCK_COMBINED))](
        largest, exps, target_logits, sums, weight, targets, energy, gradient,
        temperature, free_weight, class_weight, splits, batch, classes, width, weight.stride(0),
        ADD=add, SPLITS=triton.next_power_of_2(splits), BLOCK=BLOCK_COMBINED, num_warps=NUM_WARPS_COMBINED,
    )  # fmt: skip
