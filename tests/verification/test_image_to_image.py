"""A guided set of variations: its rows are guided at the steps that they take, and it is sound."""

from __future__ import annotations

import json
from pathlib import Path

from prism_fast.data.sources import load_source_models
from prism_fast.progress import silent
from prism_fast.sampling.config import GuidanceConfig, SamplerConfig
from prism_fast.sampling.image_to_image_config import ImageToImageConfig, first_step, strength_of
from prism_fast.synthesis.config import SynthesisConfig
from prism_fast.synthesis.filter_config import FilterConfig
from prism_fast.synthesis.images import encode_image
from prism_fast.synthesis.job import synthesize
from prism_fast.synthesis.tar import scan_tar
from prism_fast.verification.run import verify
from tests.sampling.sources import MemorySources
from tests.study.worlds import make_world


def test_rows_of_several_strengths_are_verified(tmp_path: Path, seed: int) -> None:
    world, sources, own = make_world(tmp_path), MemorySources(seed, 1), ImageToImageConfig(strengths=(0.25, 0.75))
    for index in range(10):
        path = tmp_path / "sources" / str(index) / "a.png"
        path.parent.mkdir(parents=True)
        path.write_bytes(encode_image(sources.image(index, 0).permute(1, 2, 0).numpy(), "png"))
    sampler = SamplerConfig(
        steps=4,
        compute_batch=4,
        guidance=GuidanceConfig(gate="none"),
        image_to_image=ImageToImageConfig(source=str(tmp_path / "sources"), strengths=own.strengths),
    )
    config = SynthesisConfig(
        pipeline=str(world.pipeline), teacher=str(world.teacher), images=12, shard_size=6, device="cpu", seed=seed,
        sampler=sampler, filter=FilterConfig(attempts=2, doubt=0.3, min_cosine=-0.5, max_rejected=1.0),
    )  # fmt: skip
    out = tmp_path / "set"
    report = synthesize(config, out, progress=silent, load=load_source_models)
    assert verify(out, progress=silent).sound
    steps: set[tuple[int, ...]] = set()
    guidances = 0
    for archive in sorted(out.glob("*.tar")):
        data = archive.read_bytes()
        for member in scan_tar(archive):
            if member.name.endswith(".json"):
                record = json.loads(data[member.offset : member.offset + member.size])
                taken = tuple(record["guidance"]["steps"])
                assert taken == tuple(range(first_step(strength_of(own, record["seed"]), 4), 4))
                assert len(record["guidance"]["energy"]) == len(record["guidance"]["gate"]) == len(taken)
                assert None not in record["guidance"]["gate"]
                steps.add(taken)
                guidances += len(taken)
    assert steps <= {(3,), (1, 2, 3)}
    assert report.guidances >= guidances
