"""Rows that start from images: diffusers' own pipeline is the truth, levels exact and fast follow the reference."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionImg2ImgPipeline
from torch import Tensor

from prism_fast.errors import UserError
from prism_fast.pipeline.decoder import decode, load_decoder
from prism_fast.pipeline.encoder import encode
from prism_fast.sampling.batch import SampleBatch
from prism_fast.sampling.config import GuidanceConfig, SamplerConfig
from prism_fast.sampling.fast import FastSampler
from prism_fast.sampling.image_to_image import ImageToImageSampler, fitted, source_images
from prism_fast.sampling.image_to_image_config import ImageToImageConfig, first_step, source_of, strength_of
from prism_fast.sampling.levels import make_sampler
from prism_fast.sampling.noise import draw_noise
from prism_fast.sampling.reference import ReferenceSampler
from prism_fast.sampling.schedules import build_schedule
from prism_fast.sampling.start import Start
from prism_fast.sampling.step_kind import step_kinds
from prism_fast.teachers.eager import EagerTeacher
from prism_fast.teachers.load import load_teacher
from tests.sampling.cases import CLASSES, GATE, IDS, PROMPTS, SCHEDULERS
from tests.sampling.sources import MemorySources
from tests.tiny import save_tiny_teacher, tiny_pipeline

SWEEP = ImageToImageConfig(strengths=(0.2, 0.5, 0.9))


def _config(guidance: dict[str, Any] | None = None, **options: Any) -> SamplerConfig:
    eda = GuidanceConfig(**guidance) if guidance is not None else None
    defaults = {"steps": 10, "compute_batch": 4, "guidance": eda, "image_to_image": SWEEP}
    return SamplerConfig(**(defaults | options))


def _seeds(seed: int, count: int = 4) -> list[int]:
    return [seed + 7 * row for row in range(count)]


def _spread(seed: int, config: ImageToImageConfig = SWEEP, each: int = 2) -> list[int]:
    """Seeds with as many rows of each strength."""
    found: dict[float, list[int]] = {strength: [] for strength in config.strengths}
    while any(len(rows) < each for rows in found.values()):
        rows = found[strength_of(config, seed)]
        if len(rows) < each:
            rows.append(seed)
        seed += 1
    return sorted(row for rows in found.values() for row in rows)


def _start(config: SamplerConfig, seed: int, strength: float) -> Start:
    images = source_images(MemorySources(seed), CLASSES, _seeds(seed), (32, 32))
    return Start(step=first_step(strength, config.steps), images=images)


# The truth


def _diffusers(pipe: Any, config: SamplerConfig, images: Tensor, strength: float, seeds: Sequence[int]) -> Tensor:
    """Latents of diffusers' own pipeline, given the sources' latents."""
    scheduler = build_schedule(pipe.scheduler, config, torch.device("cpu")).scheduler
    parts = {name: part for name, part in pipe.components.items() if name != "image_encoder"}
    own = StableDiffusionImg2ImgPipeline(**{**parts, "scheduler": type(scheduler).from_config(scheduler.config)})
    own.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    options = {"eta": config.eta} if config.scheduler == "ddim" else {}
    found: Tensor = own(
        prompt=PROMPTS,
        image=encode(pipe.vae, images),
        strength=strength,
        num_inference_steps=config.steps,
        guidance_scale=config.cfg_scale,
        generator=generators,
        output_type="latent",
        **options,
    ).images
    return found


@pytest.mark.parametrize("strength", [0.34, 1.0])
@pytest.mark.parametrize("case", SCHEDULERS, ids=IDS)
def test_the_reference_is_diffusers_image_to_image(pipe: Any, case: dict[str, Any], strength: float, seed: int) -> None:
    one = ImageToImageConfig(strengths=(strength,))
    config = _config(level="reference", image_to_image=one, **case)
    start = _start(config, seed, strength)
    found = ReferenceSampler(pipe, config).sample(PROMPTS, CLASSES, _seeds(seed), start=start).latents
    expected = _diffusers(pipe, config, start.images, strength, _seeds(seed))
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("steps", [1, 7, 20, 50])
def test_the_first_step_is_diffusers(pipe: Any, steps: int, seed: int) -> None:
    own = StableDiffusionImg2ImgPipeline(
        **{name: part for name, part in pipe.components.items() if name != "image_encoder"}
    )
    for strength in [1.0, 0.999, *(torch.rand(20, generator=torch.Generator().manual_seed(seed)).double().tolist())]:
        if int(steps * strength) < 1:
            with pytest.raises(UserError, match=f"is no step: take a strength of at least {1 / steps:.3g}"):
                first_step(strength, steps)
            continue
        own.scheduler.set_timesteps(steps)
        expected, left = own.get_timesteps(steps, strength, "cpu")
        assert len(expected) == left == steps - first_step(strength, steps)


def test_encoding_inverts_decoding_as_diffusers_does(pipe: Any, seed: int) -> None:
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    expected = pipe.vae.encode(images * 2 - 1).latent_dist.mean * pipe.vae.config.scaling_factor
    assert torch.allclose(encode(pipe.vae, images), expected, atol=1e-6)
    assert decode(load_decoder(pipe, "kl"), expected).shape == images.shape


# Levels exact and fast


ALIKE = (2, 3, 4, 8)
"""Places of schedulers whose tables differ from another one's in coefficients alone."""
STEPS = [
    pytest.param(case, *way, id=f"{name} {'unguided' if way[0] is None else 'guided'}", marks=marks)
    for place, (case, name) in enumerate(zip(SCHEDULERS, IDS, strict=True))
    for way, marks in (((None, 0.2), ()), (({}, 0.8), [pytest.mark.slow] if place in ALIKE else ()))
]


@pytest.mark.parametrize(("case", "guidance", "strength"), STEPS)
def test_each_step_is_the_references(
    pipe: Any, teacher: EagerTeacher, case: dict[str, Any], guidance: dict[str, Any] | None, strength: float, seed: int
) -> None:
    config = _config(guidance, cfg_stop=0.7, image_to_image=ImageToImageConfig(strengths=(strength,)), **case)
    start, states = _start(config, seed, strength), []
    reference = ReferenceSampler(pipe, config, teacher, GATE)
    batch = reference.sample(PROMPTS, CLASSES, _seeds(seed), lambda sample, _: states.append(sample), start)
    fast = FastSampler(pipe, config, teacher, GATE)
    followed = fast.follow(PROMPTS, CLASSES, _seeds(seed), states, start)
    errors = [
        (after - then).flatten(1).abs().amax(1) / then.abs().max()
        for (_, after), then in zip(followed, [*states[1:], batch.latents], strict=True)
    ]
    assert torch.cat(errors).median() <= 1e-6
    whole = fast.begin(PROMPTS, CLASSES, _seeds(seed), start).result()
    assert whole.guided_steps == batch.guided_steps and bool(whole.guided_steps) is (guidance is not None)
    assert all(step >= start.step for step in whole.guided_steps)
    with torch.no_grad():
        fast._fill(fast._rows(PROMPTS, CLASSES, _seeds(seed)), draw_noise(_seeds(seed), (4, 8, 8), 0), start)
    assert (fast._buffers.sample - states[0]).abs().max() <= 2e-6 * states[0].abs().max()
    assert (whole.images.int() - batch.images.int()).abs().flatten(1).amax(1).median() <= 1


def test_approximations_begin_with_the_first_step_taken() -> None:
    options = {"level": "fast", "reuse_features": 3, "cfg_stop": 0.7}
    config = _config({"every": 2, "reuse_gradient": True, "start": 0.3}, **options)
    kinds = step_kinds(config, 10, 5)
    assert len(kinds) == 5
    assert [kind.features for kind in kinds] == ["new", "kept", "kept", "new", "kept"]
    assert [kind.gradient for kind in kinds] == ["new", "kept", "new", "kept", "new"]
    assert [kind.cfg for kind in kinds] == [True, True, False, False, False]


@pytest.mark.parametrize(
    ("guidance", "options"),
    [
        ({"every": 2, "reuse_gradient": True, "start": 0.3}, {"level": "fast", "reuse_features": 2, "cfg_stop": 0.6}),
        ({"at": "noisy", "gate": "none"}, {"scheduler": "ddpm"}),
        pytest.param({"direction": "random"}, {"scheduler": "pndm"}, marks=pytest.mark.slow),
        ({"repeats": 2}, {"level": "reference", "scheduler": "ddim"}),
        pytest.param({"at": "latent"}, {"level": "reference", "scheduler": "ddim"}, marks=pytest.mark.slow),
    ],
    ids=["fast", "noisy", "random", "time travel", "latent"],
)
def test_a_row_depends_on_nothing_beside_it(
    pipe: Any, teacher: EagerTeacher, guidance: dict[str, Any], options: dict[str, Any], seed: int
) -> None:
    """Strengths are mixed in one batch, and every option of guidance works with them."""
    config = _config(guidance, compute_batch=6, **({"steps": 5} | options))
    sampler = make_sampler(pipe, config, teacher, GATE, MemorySources(seed))
    seeds, prompts, classes = _spread(seed), (PROMPTS * 2)[:6], (CLASSES * 2)[:6]
    whole = sampler.sample(prompts, classes, seeds)
    for order in ([2, 0, 3, 1, 5, 4], [4]):
        rows = [[column[row] for row in order] for column in (prompts, classes, seeds)]
        found = sampler.sample(*rows)
        for name in ("images", "latents", "skipped"):
            assert torch.equal(getattr(found, name), getattr(whole, name)[order])
        assert found.guided_steps == whole.guided_steps
        for name in ("energy", "gate"):
            assert torch.equal(getattr(found, name).nan_to_num(-9), getattr(whole, name)[:, order].nan_to_num(-9))
    for row, own in enumerate(seeds):
        guided = ~whole.gate[:, row].isnan()
        first = first_step(strength_of(SWEEP, own), config.steps)
        taken = [step for step, on in zip(whole.guided_steps, guided.tolist(), strict=True) if on]
        assert tuple(taken) == sampler._sampler.guided_from(first)  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["pipe", "xl"])
def test_strengths_decide_how_much_of_the_source_is_left(request: pytest.FixtureRequest, kind: str, seed: int) -> None:
    pipe, sources = request.getfixturevalue(kind), MemorySources(seed, per_class=1)
    shown = encode(pipe.vae, source_images(sources, CLASSES, _seeds(seed), (32, 32)))
    far = []
    for strength in (0.1, 0.5, 0.9):
        config = _config(cfg_scale=1.0, image_to_image=ImageToImageConfig(strengths=(strength,)))
        batch = make_sampler(pipe, config, sources=sources).sample(PROMPTS, CLASSES, _seeds(seed))
        far.append((batch.latents - shown).square().mean())
    assert far[0] < far[1] < far[2]


def test_with_nothing_left_of_the_source_it_is_text_to_image(seed: int) -> None:
    """Strength 1 at a zero signal-to-noise ratio: α is 0 at the first step, exactly."""
    pipe = tiny_pipeline(0, "v_prediction")
    pipe.scheduler = DDIMScheduler.from_config(
        pipe.scheduler.config, rescale_betas_zero_snr=True, timestep_spacing="trailing"
    )
    config = _config(scheduler="ddim", image_to_image=ImageToImageConfig(strengths=(1.0,)))
    plain = make_sampler(pipe, replace(config, image_to_image=None)).sample(PROMPTS, CLASSES, _seeds(seed))
    for source in (seed, seed + 1):
        found = make_sampler(pipe, config, sources=MemorySources(source)).sample(PROMPTS, CLASSES, _seeds(seed))
        assert torch.equal(found.latents, plain.latents) and torch.equal(found.images, plain.images)


@pytest.mark.parametrize("case", SCHEDULERS, ids=IDS)
def test_elsewhere_strength_one_starts_from_what_is_left(pipe: Any, case: dict[str, Any], seed: int) -> None:
    """x = α·source + σ·ε where text to image starts from ε: the first samples differ by that alone."""
    config = _config(image_to_image=ImageToImageConfig(strengths=(1.0,)), **case)
    start, sampler = _start(config, seed, 1.0), FastSampler(pipe, config)
    noise = draw_noise(_seeds(seed), (4, 8, 8), sampler.draws)
    with torch.no_grad():
        sampler._fill(sampler._rows(PROMPTS, CLASSES, _seeds(seed)), noise, start)
    level, scale = sampler._taken.level, sampler._taken.level.sample_scale
    expected = (level.alpha * encode(pipe.vae, start.images) + level.sigma * noise.init) / scale
    assert 0 < level.alpha < 0.2 and level.sigma > 0.98
    assert (sampler._buffers.sample - expected).abs().max() <= 1e-5 * expected.abs().max()
    text = noise.init * sampler._taken.scale
    most = level.alpha / scale * encode(pipe.vae, start.images).abs().max() + 0.02 / scale * noise.init.abs().max()
    assert 0 < (sampler._buffers.sample - text).abs().max() <= most


# Which source, how much of it


def test_sources_and_strengths_are_used_evenly_and_independently(seed: int) -> None:
    count, rows = 5, 6000
    pairs = Counter(
        (source_of(count, 3, own), strength_of(SWEEP, own)) for own in range(1000 * seed, 1000 * seed + rows)
    )
    cells = count * len(SWEEP.strengths)
    expected = rows / cells
    chi2 = sum((found - expected) ** 2 / expected for found in pairs.values())
    assert len(pairs) == cells
    assert chi2 < cells + 6 * math.sqrt(2 * cells)  # 14 degrees of freedom: more than once in a million draws it is not
    assert source_of(count, 3, seed) == source_of(count, 3, seed)
    assert any(source_of(count, 3, own) != source_of(count, 4, own) for own in range(seed, seed + 20))


def test_sources_of_other_sizes_are_resized_and_of_other_shapes_refused(seed: int) -> None:
    image = torch.randint(0, 256, (3, 48, 96), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    found = fitted(image, (24, 48))
    expected = torch.nn.functional.interpolate(image[None] / 255, (24, 48), mode="bilinear", antialias=True)[0]
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.equal(fitted(image, (48, 96)), image / 255)
    with pytest.raises(UserError, match="a source of 96x48 pixels, the pipeline makes 32x32: crop the sources"):
        fitted(image, (32, 32))


def test_a_class_without_sources_is_named(pipe: Any, seed: int) -> None:
    sampler = make_sampler(pipe, _config(), sources=MemorySources(seed, lacking=(8,)))
    with pytest.raises(UserError, match="no source of class 8"):
        sampler.sample(PROMPTS, CLASSES, _seeds(seed))


@pytest.mark.parametrize("level", ["reference", "exact"])
def test_who_has_no_sources_is_told(pipe: Any, level: str, seed: int) -> None:
    config = _config(level=level)
    with pytest.raises(UserError, match="image_to_image: this command has no images"):
        make_sampler(pipe, config)
    kind = ReferenceSampler if level == "reference" else FastSampler
    for call in (kind(pipe, config).sample, kind(pipe, config).begin):
        with pytest.raises(UserError, match="draws from noise alone"):
            call(PROMPTS, CLASSES, _seeds(seed))
    plain = kind(pipe, replace(config, image_to_image=None))
    with pytest.raises(UserError, match=r"need sampler\.image_to_image"):
        plain.begin(PROMPTS, CLASSES, _seeds(seed), _start(config, seed, 0.5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strengths": ()}, "list of numbers"), ({"strengths": 0.5}, "list of numbers"),
        ({"strengths": (0.0,)}, "above 0 and at most 1"), ({"strengths": (0.5, 1.01)}, "above 0 and at most 1"),
        ({"strengths": (float("nan"),)}, "above 0"), ({"strengths": ("a",)}, "above 0"),
        ({"strengths": (True,)}, "above 0"), ({"strengths": (0.5, 0.5)}, "twice"),
    ],
)  # fmt: skip
def test_bad_strengths_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageToImageConfig(**options)


def test_a_strength_that_takes_no_step_is_refused_with_the_sampler() -> None:
    with pytest.raises(UserError, match=r"strength 0\.04 of 20 steps is no step: take a strength of at least 0\.05"):
        SamplerConfig(image_to_image=ImageToImageConfig(strengths=(0.5, 0.04)))


def test_only_the_steps_of_a_row_are_computed(pipe: Any, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Counter[str]()
    forward = diffusers.UNet2DConditionModel.forward

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls["unet"] += 1
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(diffusers.UNet2DConditionModel, "forward", counted)
    sampler = make_sampler(pipe, _config(cfg_scale=1.0), sources=MemorySources(seed))
    assert isinstance(sampler, ImageToImageSampler)
    one = next(own for own in range(seed, seed + 100) if strength_of(SWEEP, own) == 0.2)
    sampler.sample(PROMPTS[:1], CLASSES[:1], [one])
    assert calls["unet"] == 2
    batch: SampleBatch = sampler.sample(PROMPTS[:3], CLASSES[:3], _spread(seed, each=1))
    assert calls["unet"] == 2 + 2 + 5 + 9 and len(batch.images) == 3


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", ["off", "on"])
def test_steps_captured_for_one_strength_serve_the_others(tmp_path: Path, seed: int, compiled: str) -> None:
    own = tiny_pipeline(0)
    for network in (part for part in own.components.values() if isinstance(part, torch.nn.Module)):
        network.to("cuda")
    guidance, approximations = {"every": 2, "reuse_gradient": True}, {"level": "fast", "reuse_features": 2}
    config = _config(guidance, cfg_stop=0.7, compile=compiled, **approximations)
    sampler = FastSampler(own, config, load_teacher(str(save_tiny_teacher(tmp_path)), "cuda"), GATE)
    starts = [_start(config, seed, strength) for strength in (0.9, 0.2, 0.5, 0.9)]

    def latents() -> list[Tensor]:
        return [sampler.begin(PROMPTS, CLASSES, _seeds(seed), start).result().latents for start in starts]

    captured = latents()
    assert torch.equal(captured[0], captured[3]) and not torch.equal(captured[0], captured[1])
    sampler._graphs._enabled = False
    assert all(map(torch.equal, latents(), captured))
