"""Triton kernels of ``prism_fast.ops.group_norm_silu``: GroupNorm and SiLU in two readings, and their gradient in two.

Forward and backward are three launches each: sums over a chunk of pixels for each channel, sums over the channels of a
group, and the elementwise part. Which pixels make a chunk follows from the size of one image alone, so the order of
every sum, and with it every bit, is the same at any batch size; there are no atomics. Written for channels-last; the
same kernels read NCHW in tiles that are long in pixels.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 2048  # elements: 16 a thread
ROW = 64  # channels of a tile where channels lie side by side: one line of 128 bytes in 16 bits
COLUMN = 512  # pixels of a tile where pixels do
PROGRAMS = 128  # an image, roughly: one on each multiprocessor of an H100 at batch 1, four at batch 4
TILES = 16  # of a program at most: large images get more programs, whose loads hide each other's latency
BLOCK = 512  # partial sums that the program of a group reads at once
NUM_WARPS = 4


@triton.jit
def _locate(channels, pixels, chunk, chunks, TILE_P: tl.constexpr, TILE_C: tl.constexpr):
    """Image, first pixels [1, TILE_P] and end of a program's chunk, channels [TILE_C, 1], their places in its sums.

    Channels vary fastest: programs that run together read neighbouring lines.
    """
    blocks = tl.cdiv(channels, TILE_C)
    c = ((tl.program_id(0) % blocks) * TILE_C + tl.arange(0, TILE_C)).to(tl.int64)[:, None]
    chunk_of_all = (tl.program_id(0) // blocks).to(tl.int64)
    first = chunk_of_all % chunks * chunk
    p = first + tl.arange(0, TILE_P)[None, :]
    return chunk_of_all // chunks, p, tl.minimum(first + chunk, pixels), c, chunk_of_all * channels + c


@triton.jit
def _members(start, channels, chunks, groups, BLOCK: tl.constexpr):
    """[BLOCK] sums of a program's group: places among [B, chunks, C], mask, chunk and channel."""
    members = channels // groups
    i = start + tl.arange(0, BLOCK)
    c = tl.program_id(0) % groups * members + i % members
    place = (tl.program_id(0) // groups).to(tl.int64) * chunks * channels + i // members * channels + c
    return place, i < chunks * members, i // members, c.to(tl.int64)


@triton.jit
def _read(pointers, mask):
    return tl.load(pointers, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _silu_gradient(z):
    """d(z·σ(z))/dz = σ·(1 + z·(1 − σ))."""
    share = tl.sigmoid(z)
    return share * (1.0 + z * (1.0 - share))


@triton.jit
def _group_norm_silu_moments_kernel(
    x,  # [B, C, P], P pixels
    means, squares,  # fp32 [B, chunks, C]: mean and Σ(x − mean)² of a channel in a chunk
    channels, pixels, chunk, chunks,
    x_b, along_c, along_p,
    TILE_P: tl.constexpr,
    TILE_C: tl.constexpr,
):  # fmt: skip
    image, p, end, c, place = _locate(channels, pixels, chunk, chunks, TILE_P, TILE_C)
    count = (end - p + TILE_P - 1) // TILE_P  # [1, TILE_P] of pixels in one place of all tiles; zero beyond the chunk
    # Welford along the tiles, each place of the tile for itself: no thread waits for another
    mean = tl.zeros([TILE_C, TILE_P], dtype=tl.float32)
    square = tl.zeros([TILE_C, TILE_P], dtype=tl.float32)
    seen = 0.0
    for start in range(0, chunk, TILE_P):
        inside = (p + start < end) & (c < channels)
        value = _read(x + image * x_b + (p + start) * along_p + c * along_c, inside)
        seen += 1.0
        change = tl.where(inside, value - mean, 0.0)
        mean += change * (1.0 / seen)
        square += change * (value - mean)
    # Chan's merge of the places, from one of the means on: a mean far from zero keeps its last bits
    total = tl.sum(count, axis=1, keep_dims=True).to(tl.float32)
    base = tl.max(tl.where(count > 0, mean, -float("inf")), axis=1, keep_dims=True)
    middle = base + tl.sum(count.to(tl.float32) * (mean - base), axis=1, keep_dims=True) / total
    square += count.to(tl.float32) * (mean - middle) * (mean - middle)
    tl.store(means + place, middle, mask=c < channels)
    tl.store(squares + place, tl.sum(square, axis=1, keep_dims=True), mask=c < channels)


@triton.jit
def _group_norm_silu_statistics_kernel(
    means, squares,  # fp32 [B, chunks, C]
    mean, rstd,  # fp32 [B, G]
    channels, pixels, chunk, chunks, groups,
    eps,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Chan's merge of the chunks and channels of one group: the mean, then squares about it.

    In fp64, of few numbers: what rstd errs by, all elements of the group err by together.
    """
    members = channels // groups
    total = tl.zeros([BLOCK], dtype=tl.float64)
    for start in range(0, chunks * members, BLOCK):
        place, inside, k, _ = _members(start, channels, chunks, groups, BLOCK)
        count = tl.minimum(pixels - k * chunk, chunk).to(tl.float64)
        total += tl.where(inside, count * _read(means + place, inside).to(tl.float64), 0.0)
    middle = tl.sum(total) / (members * pixels)
    total = tl.zeros([BLOCK], dtype=tl.float64)
    for start in range(0, chunks * members, BLOCK):
        place, inside, k, _ = _members(start, channels, chunks, groups, BLOCK)
        count = tl.minimum(pixels - k * chunk, chunk).to(tl.float64)
        off = _read(means + place, inside).to(tl.float64) - middle
        total += tl.where(inside, _read(squares + place, inside).to(tl.float64) + count * off * off, 0.0)
    tl.store(mean + tl.program_id(0), middle.to(tl.float32))
    tl.store(rstd + tl.program_id(0), (1.0 / tl.sqrt(tl.sum(total) / (members * pixels) + eps)).to(tl.float32))


@triton.jit
def _group_norm_silu_apply_kernel(
    x, out,  # [B, C, P]
    mean, rstd,  # fp32 [B, G]
    weight, bias,  # [C]
    channels, pixels, chunk, chunks, groups,
    x_b, out_b, along_c, along_p,
    TILE_P: tl.constexpr,
    TILE_C: tl.constexpr,
):  # fmt: skip
    image, p, end, c, _ = _locate(channels, pixels, chunk, chunks, TILE_P, TILE_C)
    group, known = image * groups + c // (channels // groups), c < channels
    middle, shift = _read(mean + group, known), _read(bias + c, known)
    scale = _read(rstd + group, known) * _read(weight + c, known)
    for _ in range(0, chunk, TILE_P):
        inside, there = (p < end) & known, p * along_p + c * along_c
        value = _read(x + image * x_b + there, inside)
        z = (value - middle) * scale + shift
        y = z * tl.sigmoid(z)
        tl.store(out + image * out_b + there, y.to(out.dtype.element_ty), mask=inside)
        p += TILE_P


@triton.jit
def _group_norm_silu_backward_sums_kernel(
    grad, x,  # [B, C, P]
    mean, rstd,  # fp32 [B, G]
    weight, bias,  # [C]
    shifts, scales,  # fp32 [B, chunks, C]: Σ dz and Σ dz·x̂ of a channel in a chunk
    channels, pixels, chunk, chunks, groups,
    grad_b, x_b, along_c, along_p,
    TILE_P: tl.constexpr,
    TILE_C: tl.constexpr,
):  # fmt: skip
    image, p, end, c, place = _locate(channels, pixels, chunk, chunks, TILE_P, TILE_C)
    group, known = image * groups + c // (channels // groups), c < channels
    middle, spread = _read(mean + group, known), _read(rstd + group, known)
    scale, shift = spread * _read(weight + c, known), _read(bias + c, known)
    plain = tl.zeros([TILE_C, TILE_P], dtype=tl.float32)
    scaled = tl.zeros([TILE_C, TILE_P], dtype=tl.float32)
    for _ in range(0, chunk, TILE_P):
        inside, there = (p < end) & known, p * along_p + c * along_c
        off = tl.where(inside, _read(x + image * x_b + there, inside) - middle, 0.0)
        dz = _read(grad + image * grad_b + there, inside) * _silu_gradient(off * scale + shift)
        plain += dz
        scaled += dz * off
        p += TILE_P
    tl.store(shifts + place, tl.sum(plain, axis=1, keep_dims=True), mask=known)
    tl.store(scales + place, tl.sum(scaled, axis=1, keep_dims=True) * spread, mask=known)


@triton.jit
def _group_norm_silu_backward_means_kernel(
    shifts, scales,  # fp32 [B, chunks, C]
    weight,  # [C]
    shift, scale,  # fp32 [B, G]: means of weight·dz and of weight·dz·x̂ over a group
    channels, pixels, chunks, groups,
    BLOCK: tl.constexpr,
):  # fmt: skip
    members = channels // groups
    plain = tl.zeros([BLOCK], dtype=tl.float64)
    scaled = tl.zeros([BLOCK], dtype=tl.float64)
    for start in range(0, chunks * members, BLOCK):
        place, inside, _, c = _members(start, channels, chunks, groups, BLOCK)
        factor = _read(weight + c, inside).to(tl.float64)
        plain += factor * _read(shifts + place, inside)
        scaled += factor * _read(scales + place, inside)
    tl.store(shift + tl.program_id(0), (tl.sum(plain) / (members * pixels)).to(tl.float32))
    tl.store(scale + tl.program_id(0), (tl.sum(scaled) / (members * pixels)).to(tl.float32))


@triton.jit
def _group_norm_silu_backward_apply_kernel(
    grad, x, out,  # [B, C, P]
    mean, rstd, shift, scale,  # fp32 [B, G]
    weight, bias,  # [C]
    channels, pixels, chunk, chunks, groups,
    grad_b, x_b, out_b, along_c, along_p,
    TILE_P: tl.constexpr,
    TILE_C: tl.constexpr,
):  # fmt: skip
    image, p, end, c, _ = _locate(channels, pixels, chunk, chunks, TILE_P, TILE_C)
    group, known = image * groups + c // (channels // groups), c < channels
    middle, spread = _read(mean + group, known), _read(rstd + group, known)
    plain, scaled = _read(shift + group, known), _read(scale + group, known)
    factor, offset = _read(weight + c, known), _read(bias + c, known)
    for _ in range(0, chunk, TILE_P):
        inside, there = (p < end) & known, p * along_p + c * along_c
        normal = (_read(x + image * x_b + there, inside) - middle) * spread
        dz = _read(grad + image * grad_b + there, inside) * _silu_gradient(normal * factor + offset)
        pulled = spread * (factor * dz - plain - normal * scaled)
        tl.store(out + image * out_b + there, pulled.to(out.dtype.element_ty), mask=inside)
        p += TILE_P


def group_norm_silu_triton(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, out: Tensor, mean: Tensor, rstd: Tensor
) -> None:
    """Writes ``out`` as x [B, C, h, w], ``mean`` and ``rstd`` fp32 [B, G].

    B is at least 1. Images are dense, of one layout in x and ``out``, and may stand apart.
    """
    grid, sizes, strides, tiles = _split(x)
    moments = torch.empty((2, len(x), sizes[3], sizes[0]), dtype=torch.float32, device=x.device)
    _group_norm_silu_moments_kernel[grid](x, *moments, *sizes, x.stride(0), *strides, **tiles)
    _group_norm_silu_statistics_kernel[(mean.numel(),)](
        *moments, mean, rstd, *sizes, groups, eps, BLOCK=BLOCK, num_warps=NUM_WARPS
    )
    _group_norm_silu_apply_kernel[grid](
        x, out, mean, rstd, weight, bias, *sizes, groups, x.stride(0), out.stride(0), *strides, **tiles
    )


def group_norm_silu_backward_triton(
    grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor, groups: int, out: Tensor
) -> Tensor:
    """Writes ∂x into ``out``; gives fp32 [2, B, chunks, C], whose sums over B and chunks are ∂bias and ∂weight.

    B is at least 1. Images are dense, of one layout in ``grad``, x and ``out``, and may stand apart.
    """
    grid, sizes, strides, tiles = _split(x)
    channels, pixels, _, chunks = sizes
    sums = torch.empty((2, len(x), chunks, channels), dtype=torch.float32, device=x.device)
    means = torch.empty((2, *mean.shape), dtype=torch.float32, device=x.device)
    apart = (grad.stride(0), x.stride(0))
    _group_norm_silu_backward_sums_kernel[grid](
        grad, x, mean, rstd, weight, bias, *sums, *sizes, groups, *apart, *strides, **tiles
    )
    _group_norm_silu_backward_means_kernel[(mean.numel(),)](
        *sums, weight, *means, channels, pixels, chunks, groups, BLOCK=BLOCK, num_warps=NUM_WARPS
    )
    _group_norm_silu_backward_apply_kernel[grid](
        grad, x, out, mean, rstd, *means, weight, bias, *sizes, groups, *apart, out.stride(0), *strides, **tiles
    )
    return sums


def _split(x: Tensor) -> tuple[tuple[int], tuple[int, int, int, int], tuple[int, int], dict[str, int]]:
    """Grid; channels, pixels, pixels of a chunk, chunks; strides of channel and pixel; shape of the tiles.

    All but the grid follow from one image.
    """
    batch, channels, pixels = len(x), x.shape[1], x.shape[2:].numel()
    widest_c, widest_p = triton.next_power_of_2(channels), triton.next_power_of_2(pixels)
    if x[:1].is_contiguous():
        strides, tile_p = (pixels, 1), min(widest_p, COLUMN)
        tile_c = min(widest_c, TILE // tile_p)
    else:  # channels-last
        strides, tile_c = (1, channels), min(widest_c, ROW)
        tile_p = min(widest_p, TILE // tile_c)
    blocks = triton.cdiv(channels, tile_c)
    chunk = tile_p * max(1, min(TILES, blocks * triton.cdiv(pixels, tile_p) // PROGRAMS))
    chunks = triton.cdiv(pixels, chunk)
    tiles = {"TILE_P": tile_p, "TILE_C": tile_c, "num_warps": NUM_WARPS}
    return (batch * chunks * blocks,), (channels, pixels, chunk, chunks), strides, tiles
