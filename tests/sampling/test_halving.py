from __future__ import annotations

import logging
from collections.abc import Sequence

import pytest
import torch

from prism_fast.errors import UserError
from prism_fast.sampling.batch import SampleBatch
from prism_fast.sampling.halving import HalvingSampler
from prism_fast.sampling.pending import Pending, done


class _Hungry:
    """Fits ``most`` rows; an image is its seed."""

    def __init__(self, compute_batch: int, most: int, made: list[int]) -> None:
        self.compute_batch, self._most = compute_batch, most
        made.append(compute_batch)

    def begin(self, prompts: Sequence[str], class_indices: Sequence[int], seeds: Sequence[int]) -> Pending:
        return done(self.sample(prompts, class_indices, seeds))

    def sample(self, prompts: Sequence[str], class_indices: Sequence[int], seeds: Sequence[int]) -> SampleBatch:
        assert len(prompts) == len(class_indices) == len(seeds) <= self.compute_batch
        if self.compute_batch > self._most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        rows = torch.tensor(seeds)
        return SampleBatch(
            images=rows.view(-1, 1, 1, 1).to(torch.uint8),
            latents=rows.view(-1, 1, 1, 1).float(),
            guided_steps=(0, 2),
            energy=torch.stack([rows, rows + 100]).float(),
            gate=torch.stack([rows, rows]).float(),
            skipped=rows,
            compute_batch=self.compute_batch,
        )


def _halving(most: int, made: list[int]) -> HalvingSampler:
    return HalvingSampler(lambda batch: _Hungry(batch, most, made), 10)


def test_it_halves_until_it_fits_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    made: list[int] = []
    sampler = _halving(3, made)
    rows = list(range(8))
    with caplog.at_level(logging.WARNING):
        batch = sampler.sample(["p"] * 8, rows, rows)
    assert made == [10, 5, 3]
    assert [record.args[0] for record in caplog.records if record.args] == [5, 3]
    assert batch.images.flatten().tolist() == batch.skipped.tolist() == rows
    assert batch.energy.tolist() == [rows, [row + 100 for row in rows]] and batch.gate.shape == (2, 8)
    assert batch.compute_batch == 3 and batch.guided_steps == (0, 2)
    caplog.clear()
    assert sampler.sample(["p"] * 10, range(10), range(10)).images.flatten().tolist() == list(range(10))
    assert made == [10, 5, 3] and not caplog.records  # once


def test_with_enough_memory_it_is_the_sampler(caplog: pytest.LogCaptureFixture) -> None:
    made: list[int] = []
    assert _halving(10, made).sample(["p"] * 10, range(10), range(10)).compute_batch == 10
    assert made == [10] and not caplog.records


def test_not_even_one_row() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        _halving(0, []).sample(["p"] * 4, range(4), range(4))


def test_too_many_rows_are_refused_whatever_it_shrank_to() -> None:
    with pytest.raises(UserError, match="11 rows, but a batch has 1 to 10"):
        _halving(3, []).sample(["p"] * 11, range(11), range(11))


def test_memory_that_runs_out_where_the_sampler_is_made(caplog: pytest.LogCaptureFixture) -> None:
    made: list[int] = []

    def make(batch: int) -> _Hungry:
        if batch > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return _Hungry(batch, 3, made)

    with caplog.at_level(logging.WARNING):
        sampler = HalvingSampler(make, 10)
    assert made == [3] and [record.args for record in caplog.records] == [(5, 10), (3, 10)]
    assert sampler.sample(["p"] * 10, range(10), range(10)).images.flatten().tolist() == list(range(10))
    with pytest.raises(torch.OutOfMemoryError):
        HalvingSampler(lambda batch: make(batch + 3), 10)
