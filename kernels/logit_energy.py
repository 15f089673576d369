"""logit_energy on CUDA without the native extension: one program an image, any number of classes in tiles.

Arithmetic and special rows as csrc/logit_energy.cu: the largest logit first, then the sums, the k places of the top-k
one pass each, and the cotangent with the mass behind the last place. Passes after the first find the row in the caches.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _mean_logits(logits, b, j, MEMBERS, BATCH, CLASSES):
    """f [BLOCK] of image b at classes j; -inf beyond the last class. Summed in fp32, then divided, as torch does."""
    inside = j < CLASSES
    f = tl.zeros(j.shape, tl.float32)
    for m in range(MEMBERS):
        f += tl.load(logits + (m * BATCH + b) * CLASSES + j, mask=inside, other=0).to(tl.float32)
    return tl.where(inside, tl.div_rn(f, MEMBERS.to(tl.float32)), float("-inf"))


# CLASSES is specialised: rows of a multiple of 16 are read in 16-byte loads. The rest would only compile more variants.
@triton.jit(do_not_specialize=["MEMBERS", "BATCH", "TOPK"])
def _logit_energy_kernel(
    logits,  # [M, B, K] fp32, fp16 or bf16
    targets,  # [B] int64
    stats,  # [7, B] fp32
    cotangent,  # [M, B, K] as logits
    indices,  # [B, k] int64
    probabilities,  # [B, k] fp32
    remaining,  # [B] fp32
    temperature,
    free_weight,
    class_weight,
    MEMBERS: tl.int64,
    BATCH: tl.int64,
    CLASSES: tl.int64,
    TOPK: tl.int64,
    BLOCK: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    y = tl.load(targets + b)
    lanes = tl.arange(0, BLOCK).to(tl.int64)
    lowest = float("-inf")

    # the two largest logits, and whether any is NaN
    first = tl.full((), lowest, tl.float32)
    second = tl.full((), lowest, tl.float32)
    nans = tl.zeros((), tl.int32)
    for start in range(0, CLASSES, BLOCK):
        j = start + lanes
        f = _mean_logits(logits, b, j, MEMBERS, BATCH, CLASSES)
        nans += tl.sum((f != f).to(tl.int32), 0)
        tile_first = tl.max(f, 0)
        place = tl.min(tl.where(f == tile_first, j, CLASSES), 0)
        tile_second = tl.max(tl.where(j == place, lowest, f), 0)
        second = tl.maximum(tl.minimum(first, tile_first), tl.maximum(second, tile_second))
        first = tl.maximum(first, tile_first)
    usable = (nans == 0) & (first > lowest) & (first < float("inf")) & (y >= 0) & (y < CLASSES)

    # sums of e = exp(f − largest) and e·log e over all classes but the target, of exp((f − largest)/T) over all
    others = tl.zeros((), tl.float32)
    weighted = tl.zeros((), tl.float32)
    tempered = tl.zeros((), tl.float32)
    target = tl.zeros((), tl.float32)
    for start in range(0, CLASSES, BLOCK):
        j = start + lanes
        f = _mean_logits(logits, b, j, MEMBERS, BATCH, CLASSES)
        d = f - first
        e = tl.where(j == y, 0.0, tl.exp(d))
        others += tl.sum(e, 0)
        weighted += tl.sum(e * tl.maximum(d, -3.4e38), 0)  # 0·log 0 = 0
        tempered += tl.sum(tl.exp(tl.div_rn(d, temperature)), 0)
        target += tl.sum(tl.where(j == y, f, 0.0), 0)

    target_d = target - first
    target_e = tl.exp(target_d)
    exps = others + target_e
    weighted += tl.where(target_e > 0, target_e * target_d, 0.0)
    # where the target is the largest, log(1 + others) without adding to 1 first: Kahan's log1p
    rounded = 1.0 + others
    small = tl.where(
        rounded == 1.0, others, tl.log(rounded) * tl.div_rn(others, tl.where(rounded == 1.0, 1.0, rounded - 1.0))
    )
    log_exps = tl.where(target_d == 0, small, tl.log(exps))
    free = -(first + temperature * tl.where(temperature == 1.0, log_exps, tl.log(tempered)))
    cross_entropy = log_exps - target_d
    nan = tl.where(usable, 0.0, float("nan"))
    energy = tl.where(class_weight != 0, class_weight * cross_entropy, 0.0)  # a weight of zero drops its term
    energy += tl.where(free_weight != 0, free_weight * free, 0.0)
    tl.store(stats + 0 * BATCH + b, energy + nan)
    tl.store(stats + 1 * BATCH + b, free + nan)
    tl.store(stats + 2 * BATCH + b, nan - target)
    tl.store(stats + 3 * BATCH + b, cross_entropy + nan)
    tl.store(stats + 4 * BATCH + b, log_exps - tl.div_rn(weighted, exps) + nan)
    tl.store(stats + 5 * BATCH + b, tl.div_rn(1.0, exps) + nan)
    tl.store(stats + 6 * BATCH + b, tl.div_rn(1.0 - tl.exp(second - first), exps) + nan)

    # top-k: each place by one pass over the classes behind the last one, in the order (logit falling, index rising)
    last = tl.full((), float("inf"), tl.float32)
    last_index = tl.full((), -1, tl.int64)
    for i in range(TOPK):
        best = tl.full((), lowest, tl.float32)
        best_index = tl.zeros((), tl.int64) + CLASSES
        for start in range(0, CLASSES, BLOCK):
            j = start + lanes
            f = _mean_logits(logits, b, j, MEMBERS, BATCH, CLASSES)
            behind = ((f < last) | ((f == last) & (j > last_index))) & (j < CLASSES)
            tile = tl.max(tl.where(behind, f, lowest), 0)
            tile_index = tl.min(tl.where(behind & (f == tile), j, CLASSES), 0)
            better = (tile > best) | ((tile == best) & (tile_index < best_index))
            best = tl.where(better, tile, best)
            best_index = tl.where(better, tile_index, best_index)
        last = best
        last_index = best_index
        tl.store(indices + b * TOPK + i, tl.where(usable, last_index, i))
        tl.store(probabilities + b * TOPK + i, tl.div_rn(tl.exp(last - first), exps) + nan)

    # (class_weight·(p − onehot(y)) − free_weight·softmax(f/T)) / M, p_y − 1 being minus the others' probability
    rest = tl.zeros((), tl.float32)
    members = MEMBERS.to(tl.float32)
    same = temperature == 1.0  # then one product, which is exactly zero where the weights are equal
    p_scale = tl.div_rn(tl.div_rn(tl.where(same, class_weight - free_weight, class_weight), exps), members)
    q_scale = tl.where(same, 0.0, tl.div_rn(tl.div_rn(free_weight, tempered), members))
    other_share = class_weight * tl.div_rn(others, exps)
    for start in range(0, CLASSES, BLOCK):
        j = start + lanes
        f = _mean_logits(logits, b, j, MEMBERS, BATCH, CLASSES)
        e = tl.exp(f - first)
        q = tl.exp(tl.div_rn(f - first, temperature))
        behind = ((f < last) | ((f == last) & (j > last_index))) & (j < CLASSES)
        rest += tl.sum(tl.where(behind, e, 0.0), 0)
        at_target = -tl.div_rn(other_share + free_weight * tl.div_rn(q, tempered), members)
        value = tl.where(j == y, at_target, p_scale * e - q_scale * q) + nan
        for m in range(MEMBERS):
            tl.store(cotangent + (m * BATCH + b) * CLASSES + j, value.to(cotangent.dtype.element_ty), mask=j < CLASSES)
    tl.store(remaining + b, tl.div_rn(rest, exps) + nan)


def launch_sizes(classes):
    """Classes a tile, and warps: 4 values a thread; with 8, some compilers spill."""
    block = max(32, min(1024, triton.next_power_of_2(classes)))
    return block, max(1, block // 128)


def logit_energy_triton(logits, targets, temperature, free_weight, class_weight, outputs):
    """Fills ``outputs`` (stats, cotangent, indices, probabilities, remaining); all tensors contiguous and checked."""
    batch, classes = logits.shape[-2:]
    if not batch:
        return
    members = logits.shape[0] if logits.ndim == 3 else 1
    block, warps = launch_sizes(classes)
    _logit_energy_kernel[(batch,)](
        logits,
        targets,
        *outputs,
        float(temperature),
        float(free_weight),
        float(class_weight),
        members,
        batch,
        classes,
        outputs[2].shape[1],
        BLOCK=block,
        num_warps=warps,
    )
