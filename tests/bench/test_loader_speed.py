"""The loaders under pytest-benchmark: 224-pixel random-resized-crops of 512 x 512 JPEGs, one decoding thread each.

    python -m pytest tests/bench/test_loader_speed.py -m bench --benchmark-autosave
    python -m pytest tests/bench/test_loader_speed.py -m bench --benchmark-compare

On CUDA, DALI decodes on the GPU and torch has as many workers as there are cores.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bench.loaders import photo
from prism_fast.data.augment_config import AugmentConfig
from prism_fast.data.loader import ShardLoader
from prism_fast.data.loader_config import LoaderConfig
from prism_fast.data.shards import ShardSet
from tests.data.sets import write_set

BATCH, STEPS = 32, 32
WARMUP = 31
"""Steps until DALI's first pipelines, which are short, are done: what it reads ahead then is what it had read ahead."""

CUDA = torch.cuda.is_available()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("photos"), (64, 64), picture=photo)


@pytest.mark.bench
@pytest.mark.parametrize("name", ["torch", "dali"])
def test_speed(name: str, folder: Path, benchmark: Any) -> None:
    if name == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed: pip install 'prism_fast[dali]'")
    workers = None if CUDA else {"torch": 0, "dali": 1}[name]
    loader = ShardLoader(
        ShardSet(folder),
        AugmentConfig(pad=0, crop_scale=0.08),
        LoaderConfig(crop_size=224, workers=workers),
        name=name,
        batch=BATCH,
        seed=0,
        device=torch.device("cuda" if CUDA else "cpu"),
    )

    def read() -> None:
        for _ in range(STEPS):
            loader.load()
        if CUDA:
            torch.cuda.synchronize()

    for _ in range(WARMUP):
        loader.load()
    benchmark.extra_info |= {"images": BATCH * STEPS, "workers": workers, "cuda": CUDA}
    benchmark.pedantic(read, rounds=3)
    loader.close()
