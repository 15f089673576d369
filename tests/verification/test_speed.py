"""How fast a set is verified, without decoding, on one core:

python -m pytest tests/verification/test_speed.py -m bench -s
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prism_fast.config import content_hash
from prism_fast.keyed import seed_of
from prism_fast.progress import silent
from prism_fast.synthesis.plan import ClassOrder
from prism_fast.synthesis.shards import LABEL_MEMBERS, Sample, claim_shard, shard_name
from prism_fast.synthesis.tally import shard_stats
from prism_fast.verification.run import verify

SHARD_SIZE = 500
STEPS = 20


def make_set(folder: Path, shards: int, image_bytes: int, classes: int) -> None:
    """A set whose images are noise that no decoder takes; all the rest is as synthesis writes it."""
    source, images = np.random.default_rng(0), shards * SHARD_SIZE
    counts = [images // classes + (c < images % classes) for c in range(classes)]
    order = ClassOrder(counts)
    made_from = {"seed": 0, "images": images, "shard_size": SHARD_SIZE, "format": "png"}
    config_hash = content_hash({"made_from": made_from, "gate": None})

    def record(index: int) -> dict[str, Any]:
        class_index = order(index)[0]
        return {
            "index": index, "seed": seed_of(0, index, 0), "attempt": 0, "class_index": class_index,
            "class_name": f"class {class_index}", "prompt": f"a photo of class {class_index} in the morning, {index}",
            "sense": "a sense", "content": "in the morning", "style": "a photo", "source": "grammar",
            "energy": -1.25 * index, "free_energy": -3.5, "class_energy": 0.25, "teacher_probability": 0.75,
            "teacher_top1": class_index, "skipped": 0, "compute_batch": 32, "accepted": True, "reason": "",
            "guidance": {
                "steps": list(range(STEPS)), "energy": source.normal(size=STEPS).round(5).tolist(),
                "gate": source.random(STEPS).round(6).tolist(),
            },
            "config_hash": config_hash,
        }  # fmt: skip

    for shard in range(shards):
        writer = claim_shard(folder, shard)
        assert writer is not None
        with writer:
            records = [record(index) for index in range(shard * SHARD_SIZE, (shard + 1) * SHARD_SIZE)]
            for row in records:
                logits = source.normal(size=classes).astype(np.float16)
                image, label = source.bytes(image_bytes), row["class_index"]
                writer.add(
                    Sample(index=row["index"], image=image, extension="png", label=label, logits=logits, record=row)
                )
            writer.publish(shard_stats(shard, records, STEPS * SHARD_SIZE, config_hash))
    train = {
        "name": "train", "num_samples": images, "filenames": [shard_name(shard, "tar") for shard in range(shards)],
        "shard_lengths": [SHARD_SIZE] * shards,
    }  # fmt: skip
    info = {
        "format_version": 1, "config_hash": config_hash, "complete": True, "images": images, "shards": shards,
        "shard_size": SHARD_SIZE, "members": ["png", *LABEL_MEMBERS],
        "logits": {"dtype": "<f2", "shape": [classes], "temperature": 1.0}, "num_classes": classes,
        "class_names": [f"class {c}" for c in range(classes)], "counts": counts, "made_from": made_from, "gate": None,
        "splits": {"train": train},
    }  # fmt: skip
    (folder / "_info.json").write_text(json.dumps(info))


@pytest.mark.bench
@pytest.mark.parametrize(("shards", "image_bytes", "classes"), [(2, 400_000, 1000), (30, 2_500, 10)])
def test_speed(shards: int, image_bytes: int, classes: int, tmp_path: Path) -> None:
    make_set(tmp_path, shards, image_bytes, classes)
    verify(tmp_path, progress=silent, workers=1)
    begin = time.process_time()
    report = verify(tmp_path, progress=silent, workers=1)
    rate = report.size_bytes / 1e6 / (time.process_time() - begin)
    assert report.sound
    print(f"\nimages of {image_bytes} bytes: {rate:.0f} MB/s of {report.size_bytes / 1e6:.0f} MB")
    assert rate >= 200
