"""Latent CutMix: who is mixed with whom is the plan's, so no image depends on what was drawn beside it."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from prism_fast.cli import main
from prism_fast.errors import UserError
from prism_fast.progress import silent
from prism_fast.sampling.batch import SampleBatch
from prism_fast.sampling.config import GuidanceConfig, SamplerConfig
from prism_fast.synthesis.config import SynthesisConfig, identity
from prism_fast.synthesis.drawer import encode
from prism_fast.synthesis.filter_config import FilterConfig
from prism_fast.synthesis.interruption import StopRequest
from prism_fast.synthesis.job import prepare, synthesize
from prism_fast.synthesis.mix import mixed_latents
from prism_fast.synthesis.mix_config import MixConfig
from prism_fast.synthesis.models import Models
from prism_fast.synthesis.plan import Mix, Plan
from prism_fast.synthesis.thresholds import Thresholds
from tests.study.worlds import World, make_world
from tests.synthesis import doubles

SIDE = 4


class LatentSampler(doubles.SeedSampler):
    """Latents are noise of their seed; images are decoded from them."""

    def sample(self, prompts: Sequence[str], class_indices: Sequence[int], seeds: Sequence[int]) -> SampleBatch:
        batch = super().sample(prompts, class_indices, seeds)
        latents = torch.cat([torch.randn(1, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(s)) for s in seeds])
        return replace(batch, latents=latents, images=decoded(latents))


def decoded(latents: Tensor) -> Tensor:
    """A pixel of 2 x 2 for each of three channels."""
    return (latents[:, :3].sigmoid() * 255).byte().repeat_interleave(2, 2).repeat_interleave(2, 3)


def _models() -> Models:
    return replace(doubles.models(), make_sampler=LatentSampler, decode=decoded)


def _config(folder: Path, **changes: Any) -> SynthesisConfig:
    mix = {"mix": MixConfig(group=4), "sampler": replace(doubles.PLAIN, guidance=GuidanceConfig(gate="none"))}
    return doubles.small_config(folder, **{**mix, **changes})


def _plan(config: SynthesisConfig, folder: Path) -> Plan:
    return prepare(config, folder / "nothing", _models()).plan


def test_partners_stand_in_a_circle_of_their_group_and_keep_the_larger_part(seed: int, tmp_path: Path) -> None:
    plan = _plan(_config(tmp_path, seed=seed, images=40, shard_size=18), tmp_path)
    for shard in plan.shards:
        rows = plan.rows(shard)
        for first in range(0, len(rows), 4):
            group = rows[first : first + 4]
            partners = [row.mix.partner for row in group if row.mix is not None]
            assert sorted(partners) == [row.index for row in group]  # each once
            assert all(row.mix is not None and row.mix.partner != row.index for row in group)
        for row in rows:
            assert row.mix is not None
            top, left, bottom, right = row.mix.box
            assert 0 <= top < bottom <= 1 and 0 <= left < right <= 1
            assert (bottom - top) * (right - left) <= 0.5 + 1e-12
            assert plan.row(row.index, attempt=3).mix == row.mix


def test_who_is_alone_is_not_mixed_and_a_share_is_a_share(seed: int, tmp_path: Path) -> None:
    plan = _plan(_config(tmp_path, seed=seed, images=9, shard_size=9), tmp_path)
    assert [row.index for row in plan.rows(0) if row.mix is None] == [8]
    some = _plan(_config(tmp_path, seed=seed, images=400, shard_size=400, mix=MixConfig(share=0.3)), tmp_path)
    assert 70 <= sum(row.mix is not None for row in some.rows(0)) <= 170  # 120 expected, deviation 9
    areas = [row.mix.box for row in some.rows(0) if row.mix is not None]
    assert len(set(areas)) == len(areas)


def test_the_box_is_the_partners_and_the_rest_the_rows(seed: int) -> None:
    own, other = torch.randn(2, 4, 8, 6, generator=torch.Generator().manual_seed(seed))
    mixed = mixed_latents(own, other, Mix(partner=1, box=(0.25, 0.0, 0.75, 0.5)))
    expected = own.clone()
    expected[:, 2:6, 0:3] = other[:, 2:6, 0:3]
    assert torch.equal(mixed, expected)


def _rows_of(out: Path) -> dict[str, bytes]:
    found = {}
    for path in sorted(out.glob("*.tar")):
        with tarfile.open(path) as archive:
            found |= {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
    return found


def test_images_do_not_depend_on_batches_resumes_or_the_order_of_shards(seed: int, tmp_path: Path) -> None:
    config = _config(tmp_path, seed=seed)
    doubles.run(config, tmp_path / "set", _models())
    expected = _rows_of(tmp_path / "set")
    assert len(expected) == 23 * 5

    def backwards(work: Any) -> None:
        doubles.in_turn(replace(work, shards=list(reversed(work.shards))))

    doubles.run(config, tmp_path / "backwards", _models(), engine=backwards)
    assert _rows_of(tmp_path / "backwards") == expected
    job = prepare(config, tmp_path / "x", _models())
    drawer = job.drawer(Thresholds(), json.loads(expected["000000000.json"])["config_hash"], StopRequest(), _NoBar())
    for rows in ([7], [12, 3, 21], [20, 19]):  # alone, and with strangers
        drawer.draw([job.plan.row(row) for row in rows], lambda record, drawn: _check(record, drawn, expected))
    mixed = json.loads(expected["000000007.json"])["mix"]
    assert mixed["partner"] in (4, 5, 6) and len(mixed["box"]) == 4
    assert int(expected["000000007.cls"]) == 7 % 3


class _NoBar:
    def update(self, n: int = 1) -> None: ...

    def note(self, text: str) -> None: ...


def _check(record: dict[str, Any], drawn: Any, expected: dict[str, bytes]) -> None:
    name = f"{record['index']:09d}"
    assert drawn.file == expected[f"{name}.png"] and record == json.loads(expected[f"{name}.json"])


def test_a_redraw_takes_the_partners_first_draw(seed: int, tmp_path: Path) -> None:
    config = _config(tmp_path, seed=seed, filter=FilterConfig(attempts=3, doubt=0.0, max_rejected=1.0))
    doubles.run(config, tmp_path / "set", _models())
    found = _rows_of(tmp_path / "set")
    plan = _plan(config, tmp_path)
    records = [json.loads(text) for name, text in found.items() if name.endswith(".json")]
    assert any(record["attempt"] for record in records)
    sampler = LatentSampler(config.sampler, None)
    for record in records:
        row = plan.row(record["index"], record["attempt"])
        if row.mix is None:
            continue
        own, other = (sampler.sample(["x"], [0], [each.seed]).latents[0] for each in (row, plan.row(row.mix.partner)))
        image = decoded(mixed_latents(own, other, row.mix)[None])[0]
        assert found[f"{row.index:09d}.png"] == encode(image, "png")


def test_it_decides_images_and_is_not_there_where_it_is_off(tmp_path: Path) -> None:
    plain, mixed = SynthesisConfig(), SynthesisConfig(mix=MixConfig())
    assert "mix" not in identity(plain)
    assert len({json.dumps(identity(c)) for c in (plain, mixed, SynthesisConfig(mix=MixConfig(group=8)))}) == 3
    doubles.run(doubles.small_config(tmp_path), tmp_path / "set")
    assert all("mix" not in json.loads(text) for name, text in _rows_of(tmp_path / "set").items() if "json" in name)
    for wrong in ({"share": 0.0}, {"share": 1.5}, {"group": 1}, {"group": True}):
        with pytest.raises(ValueError, match=f"mix.{next(iter(wrong))}"):
            MixConfig(**wrong)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


def test_with_the_real_networks(world: World, seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the command line; the labels are the teacher's of the mixed image, and verify finds nothing wrong."""
    flags = [
        "--pipeline", str(world.pipeline), "--teacher", str(world.teacher), "--device", "cpu", "--recipe", "eda",
        "--images", "10", "--shard_size", "6", "--sampler.steps", "2", "--sampler.guidance.gate", "none",
        "--batch", "3", "--seed", str(seed), "--mix.group", "4",
    ]  # fmt: skip
    assert main(["synthesize", *flags, "--out", str(tmp_path / "set")]) == 0
    assert main(["verify", str(tmp_path / "set")]) == 0, capsys.readouterr()
    rows = _rows_of(tmp_path / "set")
    config = SynthesisConfig(
        pipeline=str(world.pipeline), teacher=str(world.teacher), device="cpu", images=10, shard_size=6, seed=seed,
        prompts=replace(SynthesisConfig().prompts, sense="name", content="none", style="none"),
        sampler=SamplerConfig(steps=2, compute_batch=3, guidance=GuidanceConfig(gate="none")), mix=MixConfig(group=4),
    )  # fmt: skip
    synthesize(config, tmp_path / "again", progress=silent)
    assert _rows_of(tmp_path / "again") == rows
    synthesize(replace(config, mix=None), tmp_path / "plain", progress=silent)
    plain = _rows_of(tmp_path / "plain")
    images = [name for name in rows if name.endswith(".png")]
    # a box may be too small to hold a latent pixel: 2 % of them here
    assert len(images) == 10 and sum(rows[name] != plain[name] for name in images) >= 6
    with pytest.raises(UserError, match="mix"):
        synthesize(config, tmp_path / "plain", progress=silent)
