"""The bytes of ``.soft``: all logits, or the k largest and what the others come to.

Of an image whose k largest logits alone are kept, a record of fixed size holds

    index   k little-endian int32, classes in falling order of their logits (equal ones: the lower class first)
    logit   k little-endian fp16, their logits
    rest    little-endian fp32, log Σ exp(f_j) over the other K − k classes j

A reader spreads the rest evenly: f_j = rest − log(K − k). At temperature 1 the probabilities of the k classes are then
those of the whole vector, and the others share what is left (marginal smoothing: Shen and Xing 2022, FKD, arXiv
2112.01528). The sum of the others is kept, and not that of all, since 1 − Σp of a sure teacher is lost in rounding.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

SOFT_DTYPE = np.dtype("<f2")


def top_k_dtype(top_k: int) -> np.dtype[np.void]:
    """The record of k logits, without padding."""
    return np.dtype([("index", "<i4", (top_k,)), ("logit", SOFT_DTYPE, (top_k,)), ("rest", "<f4")])


def soft_size(num_classes: int, top_k: int | None) -> int:
    """Bytes of a ``.soft``."""
    return SOFT_DTYPE.itemsize * num_classes if top_k is None else top_k_dtype(top_k).itemsize


def describe_logits(num_classes: int, top_k: int | None) -> dict[str, Any]:
    """What ``_info.json`` says of ``.soft``; of the k largest, the fields of the record in the order of their bytes."""
    if top_k is None:
        return {"dtype": SOFT_DTYPE.str, "shape": [num_classes], "temperature": 1.0}
    record = top_k_dtype(top_k)
    kinds = [(name, record[name]) for name in record.names or ()]
    layout = [{"name": name, "dtype": kind.base.str, "shape": list(kind.shape)} for name, kind in kinds]
    return {"top_k": top_k, "layout": layout, "shape": [num_classes], "temperature": 1.0}


def pack_logits(logits: NDArray[np.float16], top_k: int | None) -> bytes:
    """A ``.soft`` of fp16 logits [K]; ``top_k`` is below K, or None for all of them."""
    if top_k is None:
        return logits.astype(SOFT_DTYPE).tobytes()
    order = _largest(logits, top_k)
    others = np.delete(logits.astype(np.float64), order)
    highest = others.max()
    record = np.zeros((), top_k_dtype(top_k))
    record["index"], record["logit"] = order, logits[order]
    record["rest"] = highest + np.log(np.exp(others - highest).sum())
    return record.tobytes()


def unpack_logits(data: bytes, num_classes: int, top_k: int | None) -> NDArray[np.float16] | NDArray[np.float32]:
    """Logits [K] of a ``.soft`` of the right size: fp16, or of the k largest fp32 with the rest spread evenly.

    Raises:
        ValueError: numbers that are not finite, or classes that there are not, twice, or in another order.
    """
    if top_k is None:
        logits = np.frombuffer(data, SOFT_DTYPE).astype(np.float16)
        if not np.isfinite(logits).all():
            raise ValueError("logits that are not finite")
        return logits
    records = np.frombuffer(data, top_k_dtype(top_k))
    if not finite(records)[0]:
        raise ValueError("logits that are not finite")
    index, largest = records["index"][0], records["logit"][0].astype(np.float32)
    if not in_order(records, num_classes)[0]:
        raise ValueError(f"logits of classes {index.tolist()[:8]}, which are not {top_k} of {num_classes} in order")
    dense = np.full(num_classes, records["rest"][0] - np.log(np.float32(num_classes - top_k)), np.float32)
    dense[index] = largest
    return dense


def finite(records: NDArray[np.void]) -> NDArray[np.bool_]:
    """Which records of k logits hold finite numbers alone, bool [n]."""
    found: NDArray[np.bool_] = np.isfinite(records["logit"]).all(1) & np.isfinite(records["rest"])
    return found


def in_order(records: NDArray[np.void], num_classes: int) -> NDArray[np.bool_]:
    """Which records hold k different classes of ``num_classes``, in the order of :func:`pack_logits`, bool [n]."""
    index, logit = records["index"], records["logit"]
    inside = ((index >= 0) & (index < num_classes)).all(1)
    falling = logit[:, :-1] > logit[:, 1:]
    equal = (logit[:, :-1] == logit[:, 1:]) & (index[:, :-1] < index[:, 1:])
    distinct = (np.diff(np.sort(index, 1)) > 0).all(1)
    found: NDArray[np.bool_] = inside & distinct & (falling | equal).all(1)
    return found


def _largest(logits: NDArray[np.float16], top_k: int) -> NDArray[np.int64]:
    """Classes of the k largest logits, in falling order; of equal ones the lower class comes first."""
    # fp16 times 2^24 is a whole number of at most 41 bits: with the class below it no two keys are equal
    keys = (logits.astype(np.float64) * 2**24).astype(np.int64) * 2**20 - np.arange(len(logits))
    candidates = np.argpartition(-keys, top_k - 1)[:top_k]
    return candidates[np.argsort(-keys[candidates])]
