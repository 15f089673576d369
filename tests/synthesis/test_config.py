from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from prism_fast.config import content_hash
from prism_fast.prompts.prompt_config import PromptConfig
from prism_fast.sampling.config import GuidanceConfig, SamplerConfig
from prism_fast.sampling.image_to_image_config import ImageToImageConfig
from prism_fast.synthesis.config import SynthesisConfig, identity
from prism_fast.synthesis.filter_config import FilterConfig
from prism_fast.synthesis.mix_config import MixConfig

STARTED = SamplerConfig(image_to_image=ImageToImageConfig(source="somewhere"))
GUIDED = SynthesisConfig(sampler=SamplerConfig(guidance=GuidanceConfig()))


@pytest.mark.parametrize(
    "change",
    [
        {"images": 1001}, {"counts": (500, 500)}, {"seed": 1}, {"shard_size": 499}, {"format": "webp"},
        {"prompts": PromptConfig(seed=1)}, {"prompts": PromptConfig(style="none")}, {"pilot_images": 17},
        {"sampler": SamplerConfig()}, {"sampler": SamplerConfig(guidance=GuidanceConfig(scale=0.2))},
        {"sampler": SamplerConfig(guidance=GuidanceConfig(), compute_batch=63)},
        {"sampler": SamplerConfig(guidance=GuidanceConfig(bn_weight=0.1))},
        {"sampler": SamplerConfig(guidance=GuidanceConfig(bn_form="norm"))},
        {"sampler": SamplerConfig(guidance=GuidanceConfig(student_where="agree"))},
        {"sampler": SamplerConfig(guidance=GuidanceConfig(student_after=20))},
        {"sampler": SamplerConfig(guidance=GuidanceConfig(moves="sample"))},
        {"sampler": SamplerConfig(guidance=GuidanceConfig(step="plain"))},
        {"sampler": SamplerConfig(guidance=GuidanceConfig(entropy_weight=0.1))},
        {"sampler": SamplerConfig(guidance=GuidanceConfig(student_weight=0.1, student="here"))},
        {"filter": FilterConfig()}, {"filter": FilterConfig(attempts=5)}, {"filter": FilterConfig(max_energy=1.0)},
        {"filter": FilterConfig(doubt=0.5)}, {"filter": FilterConfig(energy_quantile=0.5)}, {"soft_top_k": 5},
    ],
)  # fmt: skip
def test_what_decides_an_image_changes_the_identity(change: dict[str, Any]) -> None:
    assert content_hash(identity(replace(GUIDED, **change))) != content_hash(identity(GUIDED))


@pytest.mark.parametrize(
    "change",
    [
        {"device": "cuda:3"}, {"pipeline": "a/copy/elsewhere"}, {"teacher": "elsewhere"}, {"vocabulary": "here.csv"},
        {"recipe": "mine"}, {"prompts": PromptConfig(file="here.parquet")},
        {"prompts": PromptConfig(token="<class-{}>")},
        {"sampler": replace(GUIDED.sampler, tokens="here.safetensors")},
    ],
)  # fmt: skip
def test_where_things_lie_does_not(change: dict[str, Any]) -> None:
    assert identity(replace(GUIDED, **change)) == identity(GUIDED)


def test_terms_that_are_off_are_not_there() -> None:
    """Sets from before there were such terms keep their hashes."""
    fields = identity(GUIDED)["sampler"]["guidance"]
    assert not {"entropy_weight", "bn_weight", "student_weight", "student"} & set(fields)


def test_sets_from_before_filters_and_top_k_keep_their_hashes() -> None:
    """These two were computed before either option existed."""
    assert content_hash(identity(SynthesisConfig())) == "0f12d4ab37ffdccf"
    assert content_hash(identity(GUIDED)) == "0b898fc12a96ee70"


def test_how_much_a_filter_may_reject_does_not_decide_images() -> None:
    strict, loose = (replace(GUIDED, filter=FilterConfig(max_rejected=share)) for share in (0.1, 1.0))
    assert identity(strict) == identity(loose) != identity(GUIDED)


def test_a_student_enters_by_content() -> None:
    """Its folder is a place; the fingerprint is in what the set was made from."""
    here, there = (
        identity(SynthesisConfig(sampler=SamplerConfig(guidance=GuidanceConfig(student_weight=1.0, student=folder))))
        for folder in ("here", "there")
    )
    assert here == there and here["sampler"]["guidance"]["student_weight"] == 1.0


def test_a_tiny_decoder_enters_by_content() -> None:
    guidances = (GuidanceConfig(decoder="tiny", tiny=place) for place in (None, "there"))
    here, there = (
        identity(SynthesisConfig(sampler=SamplerConfig(level="fast", guidance=guidance))) for guidance in guidances
    )
    assert here == there and "tiny" not in here["sampler"]["guidance"]


def test_sets_made_before_keep_their_hashes() -> None:
    """Options that came later are not in what decides a set, where they are off."""
    assert content_hash(identity(GUIDED)) == "0b898fc12a96ee70"
    assert content_hash(identity(SynthesisConfig())) == "0f12d4ab37ffdccf"


def test_the_pilot_counts_only_where_there_is_one() -> None:
    plain = SynthesisConfig()
    assert not plain.needs_pilot
    assert identity(replace(plain, pilot_images=3)) == identity(plain)
    assert GUIDED.needs_pilot
    assert not SynthesisConfig(sampler=SamplerConfig(guidance=GuidanceConfig(gate="none"))).needs_pilot
    assert not replace(plain, filter=FilterConfig(max_energy=0.0)).needs_pilot
    learned = replace(plain, filter=FilterConfig(energy_quantile=0.5))
    assert learned.needs_pilot and not learned.has_gate
    assert identity(replace(learned, pilot_images=3)) != identity(learned)


def test_counts_decide_images() -> None:
    config = SynthesisConfig(counts=(3, 0, 4))
    assert config.images == 7
    assert SynthesisConfig(counts=[3, 0, 4], images=7) == config
    with pytest.raises(ValueError, match="add up to 7"):
        SynthesisConfig(counts=(3, 0, 4), images=8)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"images": 0}, "images"), ({"images": True}, "images"), ({"images": 10**9 + 1}, "images"),
        ({"shard_size": 0}, "shard_size"), ({"seed": -1}, "seed"), ({"seed": 2**63}, "seed"),
        ({"format": "gif"}, "png, webp, jpg"), ({"counts": (1, -1)}, "counts"), ({"counts": ()}, "images"),
        ({"counts": (0, 0)}, "images"), ({"pilot_images": 0}, "pilot_images"),
        ({"images": 10**8, "shard_size": 1}, "million shards"), ({"soft_top_k": 0}, "soft_top_k"),
        ({"soft_top_k": True}, "soft_top_k"), ({"soft_top_k": 2.0}, "soft_top_k"),
        ({"mix": MixConfig(), "sampler": STARTED}, "leave one out"),
    ],
)  # fmt: skip
def test_nonsense_is_refused_by_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SynthesisConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"attempts": 0}, "filter.attempts"), ({"attempts": True}, "filter.attempts"), ({"attempts": 2.0}, "attempts"),
        ({"attempts": 1001}, "from 1 to 1000"), ({"max_energy": math.nan}, "filter.max_energy"),
        ({"max_energy": math.inf}, "filter.max_energy"), ({"energy_quantile": 1.1}, "filter.energy_quantile"),
        ({"doubt": -0.1}, "filter.doubt"), ({"doubt": math.nan}, "filter.doubt"), ({"max_rejected": 2}, "max_rejected"),
        ({"max_energy": 1.0, "energy_quantile": 0.5}, "give one"),
    ],
)  # fmt: skip
def test_a_filter_refuses_nonsense_by_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FilterConfig(**fields)
