"""Which rows are drawn together, and that images do not depend on it."""

from __future__ import annotations

from prism_fast.prompts.prompt_list import Prompt
from prism_fast.sampling.config import SamplerConfig
from prism_fast.sampling.image_to_image_config import ImageToImageConfig, strength_of
from prism_fast.synthesis.plan import Row
from prism_fast.synthesis.waiting import Waiting, batch_kind

PROMPT = Prompt(class_index=0, prompt="a coat", sense="", content="", style="", source="")


def _rows(seed: int, count: int) -> list[Row]:
    return [Row(index=row, seed=seed + row, class_index=0, class_name="coat", prompt=PROMPT) for row in range(count)]


def test_without_sources_rows_come_in_order(seed: int) -> None:
    rows = _rows(seed, 10)
    waiting = Waiting(rows, batch_kind(SamplerConfig()))
    assert len(waiting) == 10 and waiting.full(10) and not waiting.full(11)
    assert waiting.take(4) == rows[:4]
    waiting.put_back([rows[1], rows[3]])
    assert waiting.take(4) == [rows[1], rows[3], rows[4], rows[5]]
    assert waiting.take(4) == rows[6:10] and not waiting and not waiting.full(1)


def test_a_batch_has_rows_of_one_strength(seed: int) -> None:
    own = ImageToImageConfig(strengths=(0.2, 0.6, 0.9))
    rows = _rows(seed, 60)
    waiting = Waiting(rows, batch_kind(SamplerConfig(image_to_image=own)))
    batches = []
    while waiting:
        full = waiting.full(8)
        batches.append(waiting.take(8))
        assert (len(batches[-1]) == 8) is full
    assert sorted(row.index for batch in batches for row in batch) == list(range(60))
    assert all(len({strength_of(own, row.seed) for row in batch}) == 1 for batch in batches)
    assert sum(len(batch) < 8 for batch in batches) <= 3  # one remainder a strength
    for batch in batches:
        assert [row.index for row in batch] == sorted(row.index for row in batch)
