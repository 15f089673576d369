"""Small published sets whose images say which row they are."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from prism_fast.data.choice import dali_is_installed
from prism_fast.synthesis.images import ImageFormat, encode_image
from prism_fast.synthesis.shards import LABEL_MEMBERS, Sample, claim_shard
from prism_fast.synthesis.soft import describe_logits

CLASSES = 7

NO_DALI = "DALI is not installed: pip install 'prism_fast[dali]'"
LOADERS = ("torch", pytest.param("dali", marks=pytest.mark.skipif(not dali_is_installed(), reason=NO_DALI)))
"""For parametrize: tests of the torch loader run without DALI too."""

DEVICES = ("cpu", pytest.param("cuda", marks=pytest.mark.gpu))


def plain(row: int, height: int = 20, width: int = 24) -> NDArray[np.uint8]:
    """One colour, different for each of 4,096 rows, and far enough from others for any decoder."""
    digits = [row % 16, row // 16 % 16, row // 256 % 16]
    return np.broadcast_to(np.array([8 + 16 * digit for digit in digits], np.uint8), (height, width, 3))


def row_of(mean: Sequence[float]) -> int:
    """The row of a plain image with this mean colour in [0,1]."""
    digits = [round((255 * value - 8) / 16) for value in mean]
    return digits[0] + 16 * digits[1] + 256 * digits[2]


def label_of(row: int) -> int:
    return row * row % CLASSES


def logits_of(row: int) -> NDArray[np.float16]:
    return np.array([row / 8, *(-index - row / 16 for index in range(CLASSES - 1))], np.float16)


def record(index: int, **changes: Any) -> dict[str, Any]:
    """Provenance of a row."""
    return {
        "index": index, "seed": 2**62 + index, "attempt": 0, "class_index": index % 3,
        "class_name": ("cat", "dog", "eel")[index % 3],
        "prompt": f"prompt {index}", "sense": "", "content": "none", "style": "none", "source": "test",
        "energy": -float(index), "free_energy": 0.5, "class_energy": 0.5, "teacher_probability": 0.5,
        "teacher_top1": index % 3, "skipped": 0, "compute_batch": 4, "accepted": True, "reason": "", **changes,
    }  # fmt: skip


def write_set(
    folder: Path,
    counts: Sequence[int],
    *,
    kind: ImageFormat = "jpg",
    picture: Callable[[int], NDArray[np.uint8]] = plain,
    top_k: int | None = None,
    damage: Mapping[int, Callable[[bytes], bytes]] | None = None,
) -> Path:
    """A complete set with ``counts`` images in its shards; the files of some rows damaged."""
    folder.mkdir(parents=True, exist_ok=True)
    row = 0
    for shard, count in enumerate(counts):
        writer = claim_shard(folder, shard)
        assert writer is not None
        with writer:
            for _ in range(count):
                image = encode_image(np.ascontiguousarray(picture(row)), kind)
                broken = (damage or {}).get(row)
                writer.add(
                    Sample(
                        index=row,
                        image=broken(image) if broken else image,
                        extension=kind,
                        label=label_of(row),
                        logits=logits_of(row),
                        record=record(row),
                        top_k=top_k,
                    )
                )
                row += 1
            writer.publish({"shard": shard, "images": count, "config_hash": "x"})
    info = {
        "shards": len(counts), "num_classes": CLASSES, "class_names": [f"class {n}" for n in range(CLASSES)],
        "members": [kind, *LABEL_MEMBERS], "logits": describe_logits(CLASSES, top_k),
    }  # fmt: skip
    (folder / "_info.json").write_text(json.dumps(info))
    return folder
