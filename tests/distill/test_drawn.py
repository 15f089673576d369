"""A student of images that are drawn while it learns: those that the shards would hold, and the same student."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from prism_fast.data.shards import ShardSet
from prism_fast.distill.config import DistillConfig
from prism_fast.distill.drawn import DrawnSet
from prism_fast.distill.follow import FollowedSet
from prism_fast.distill.growing import GrowingBatches
from prism_fast.distill.replay_config import ReplayConfig
from prism_fast.distill.report import DistillReport
from prism_fast.distill.trainer import train_batches
from prism_fast.distill.world import ALONE
from prism_fast.synthesis.config import SynthesisConfig
from prism_fast.synthesis.filter_config import FilterConfig
from prism_fast.synthesis.interruption import StopRequest
from prism_fast.synthesis.job import prepare
from prism_fast.synthesis.models import Models
from tests.distill.doubles import ColourTeacher, tiny_config
from tests.synthesis import doubles

CPU = torch.device("cpu")
WINDOW = ReplayConfig(window=12)


def _config(out: Path, **changes: Any) -> DistillConfig:
    fields = {"data": "synthesize:plain", "replay": WINDOW, "steps": None, "epochs": 3, "batch": 4, "log_every": 1}
    return tiny_config(out, **{**fields, **changes})


def _drawn(config: DistillConfig, synthesis: SynthesisConfig, models: Models | None = None) -> DrawnSet:
    return DrawnSet(config, prepare(synthesis, Path(config.out), models or doubles.models()))


def _train(config: DistillConfig, synthesis: SynthesisConfig, **options: Any) -> DistillReport:
    teacher: Any = ColourTeacher(len(doubles.CLASSES))
    batches = GrowingBatches(config, _drawn(config, synthesis), teacher, CPU, ALONE)
    return train_batches(config, batches, teacher, **options)


FILTERED: dict[str, Any] = {"filter": FilterConfig(attempts=2, energy_quantile=0.5, max_rejected=1.0)}


@pytest.mark.parametrize("changes", [{}, {"format": "jpg"}, {"soft_top_k": 2}, FILTERED])
def test_the_rows_are_those_of_the_shards(changes: dict[str, Any], seed: int, tmp_path: Path) -> None:
    synthesis = doubles.small_config(tmp_path, seed=seed, **changes)
    doubles.run(synthesis, tmp_path / "set")
    shards = ShardSet(tmp_path / "set")
    drawn = _drawn(_config(tmp_path / "out"), synthesis)
    assert (drawn.rows, drawn.class_names) == (23, shards.class_names)
    parts = [drawn.part(rows, StopRequest()) for rows in (range(5), range(5, 17), range(17, 23))]
    assert torch.cat([part.rows for part in parts]).tolist() == shards.keys().tolist()
    sources = [part.source.batch(torch.arange(len(part.rows))) for part in parts if part.source is not None]
    images, labels, logits = shards.arrays()
    assert torch.equal(torch.cat([batch.images for batch in sources]), images)
    assert torch.equal(torch.cat([batch.labels for batch in sources]), labels)
    assert torch.equal(torch.stack([row for batch in sources for row in batch.logits]), logits)  # type: ignore[union-attr]
    followed = FollowedSet(tmp_path / "set", WINDOW, ram_bytes=2**20)
    assert drawn.fingerprint == followed.fingerprint
    assert not (tmp_path / "out").exists()
