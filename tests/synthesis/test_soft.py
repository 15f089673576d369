"""The bytes of ``.soft``: what is kept of a vector of logits, and what a reader makes of it."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from prism_fast.synthesis.soft import describe_logits, pack_logits, soft_size, top_k_dtype, unpack_logits


def logits_of(seed: int, classes: int, spread: float = 4.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, spread, classes).astype(np.float16)


def softmax(logits: np.ndarray) -> np.ndarray:
    return torch.from_numpy(logits.astype(np.float64)).softmax(0).numpy()


@pytest.mark.parametrize("classes", [1, 10, 1000])
def test_all_logits_come_back_bit_for_bit(seed: int, classes: int) -> None:
    logits = logits_of(seed, classes)
    data = pack_logits(logits, None)
    assert len(data) == soft_size(classes, None) == 2 * classes
    found = unpack_logits(data, classes, None)
    assert found.dtype == np.float16 and found.tobytes() == logits.tobytes()


@pytest.mark.parametrize(("classes", "top_k"), [(2, 1), (10, 1), (10, 9), (1000, 10), (21_841, 50)])
@pytest.mark.parametrize("spread", [0.1, 4.0, 30.0])
def test_the_k_largest_keep_their_probabilities_and_the_rest_is_even(
    seed: int, classes: int, top_k: int, spread: float
) -> None:
    logits = logits_of(seed, classes, spread)
    data = pack_logits(logits, top_k)
    assert len(data) == soft_size(classes, top_k) == 6 * top_k + 4
    dense = unpack_logits(data, classes, top_k)
    assert dense.shape == (classes,) and dense.dtype == np.float32
    top = np.argsort(-logits.astype(np.float64), kind="stable")[:top_k]  # another way to the same classes
    rest = np.delete(np.arange(classes), top)
    assert np.array_equal(dense[top], logits[top].astype(np.float32))
    assert len(np.unique(dense[rest])) == 1 and dense[rest[0]] <= dense[top].min()
    mine, truth = softmax(dense), softmax(logits)
    assert np.allclose(mine[top], truth[top], rtol=1e-5)
    assert mine[rest].sum() == pytest.approx(truth[rest].sum(), rel=1e-5)


def test_what_a_sure_teacher_leaves_to_the_others_is_not_lost() -> None:
    """One minus the sum of the probabilities would be 0 here, even in double precision."""
    logits = np.array([50, 0, 0.5, -1], np.float16)
    dense = unpack_logits(pack_logits(logits, 1), 4, 1)
    assert dense[1:].astype(np.float64) == pytest.approx(math.log((1 + math.exp(0.5) + math.exp(-1)) / 3), rel=1e-6)


def test_equal_logits_are_taken_by_class() -> None:
    logits = np.array([1, 2, 1, 2, 1, -0.0, 0.0, 1], np.float16)
    record = np.frombuffer(pack_logits(logits, 5), top_k_dtype(5))[0]
    assert record["index"].tolist() == [1, 3, 0, 2, 4]
    extremes = np.array([65504, -65504, 2**-24, 0, -(2**-24)], np.float16)
    assert np.frombuffer(pack_logits(extremes, 4), top_k_dtype(4))[0]["index"].tolist() == [0, 2, 3, 4]


def test_the_layout_is_what_the_set_says_it_is(seed: int) -> None:
    """A reader that knows ``_info.json`` and numpy alone."""
    logits = logits_of(seed, 20)
    told = json.loads(json.dumps(describe_logits(20, 3)))
    record = np.dtype([(field["name"], field["dtype"], tuple(field["shape"])) for field in told["layout"]])
    found = np.frombuffer(pack_logits(logits, 3), record)[0]
    assert found["logit"].tolist() == sorted(logits.tolist(), reverse=True)[:3]
    assert logits[found["index"]].tolist() == found["logit"].tolist()
    others = np.delete(logits.astype(np.float64), found["index"])
    assert found["rest"] == pytest.approx(np.log(np.exp(others).sum()), rel=1e-6)
    assert (told["top_k"], told["shape"], told["temperature"]) == (3, [20], 1.0)
    assert describe_logits(20, None) == {"dtype": "<f2", "shape": [20], "temperature": 1.0}


@pytest.mark.parametrize(
    ("index", "logit", "rest", "message"),
    [
        ([0, 5], [2, 1], 0.0, "not 2 of 5 in order"), ([0, -1], [2, 1], 0.0, "not 2 of 5 in order"),
        ([3, 3], [2, 1], 0.0, "not 2 of 5 in order"), ([0, 1], [1, 2], 0.0, "not 2 of 5 in order"),
        ([0, 1], [math.nan, 2], 0.0, "not finite"), ([0, 1], [2, 1], math.inf, "not finite"),
    ],
)  # fmt: skip
def test_records_that_say_nonsense_are_refused(index: list, logit: list, rest: float, message: str) -> None:
    record = np.zeros((), top_k_dtype(2))
    record["index"], record["logit"], record["rest"] = index, logit, rest
    with pytest.raises(ValueError, match=message):
        unpack_logits(record.tobytes(), 5, 2)
