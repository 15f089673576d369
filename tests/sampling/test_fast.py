"""Levels exact and fast against the reference loop, and what each option of level fast means."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from prism_fast.errors import UserError
from prism_fast.pipeline.attention import why_no_xformers
from prism_fast.pipeline.denoiser import added_conditions
from prism_fast.pipeline.feature_reuse import SplitUNet, features_shape
from prism_fast.pipeline.load import load_pipeline
from prism_fast.sampling.batch import SampleBatch
from prism_fast.sampling.buffers import Sizes
from prism_fast.sampling.config import GuidanceConfig, SamplerConfig
from prism_fast.sampling.copies import Copies
from prism_fast.sampling.fast import FastSampler, _pulled_back
from prism_fast.sampling.noise import draw_noise
from prism_fast.sampling.reference import ReferenceSampler
from prism_fast.sampling.schedules import Schedule
from prism_fast.sampling.step_kind import step_kinds
from prism_fast.teachers.eager import EagerTeacher
from prism_fast.teachers.load import load_teacher
from tests.sampling.cases import CLASSES, GATE, IDS, PROMPTS, SCHEDULERS
from tests.tiny import save_tiny_decoder, save_tiny_teacher, tiny_pipeline, tiny_xl_pipeline


def _converted(dtype: torch.dtype, device: str = "cpu", make: Callable[[int], Any] = tiny_pipeline) -> Any:
    """The module's pipeline in another precision or place."""
    own = make(0)
    for network in (part for part in own.components.values() if isinstance(part, torch.nn.Module)):
        network.to(device, dtype)
    return own


def _config(guidance: dict[str, Any] | None = None, **options: Any) -> SamplerConfig:
    eda = GuidanceConfig(**guidance) if guidance is not None else None
    return SamplerConfig(**({"steps": 6, "compute_batch": 4, "guidance": eda} | options))


def _seeds(seed: int) -> list[int]:
    return [seed, seed + 1, seed + 2, 2**40 + seed]


def _same(a: SampleBatch, b: SampleBatch) -> bool:
    return torch.equal(a.images, b.images) and torch.equal(a.latents, b.latents) and torch.equal(a.energy, b.energy)


def _sample(pipe: Any, config: SamplerConfig, teacher: EagerTeacher | None, seed: int) -> SampleBatch:
    return FastSampler(pipe, config, teacher, GATE).sample(PROMPTS, CLASSES, _seeds(seed))


GUIDED: list[dict[str, Any] | None] = [
    None,
    {},
    {"gate": "none", "weighting": "sigma", "start": 0.3, "every": 2},
    {"at": "noisy"},
    {"direction": "random"},
]
MOVED: list[dict[str, Any]] = [
    {"moves": "sample"},
    {"moves": "sample", "at": "noisy", "gate": "none", "every": 2},
]
PUBLISHED: list[dict[str, Any]] = [
    {"step": "plain", "scale": 0.05},
    {"moves": "sample", "step": "plain", "scale": 0.05},
    {"moves": "sample", "at": "noisy", "step": "plain", "scale": 0.01, "bn_weight": 1.0, "bn_form": "norm"},
]
TURBO: dict[str, Any] = {"scheduler": "euler", "spacing": "trailing", "cfg_scale": 0.0, "steps": 4}
STEPS: list[tuple[str, dict[str, Any], dict[str, Any] | None]] = [
    *(("pipe", case, guidance) for case in SCHEDULERS for guidance in GUIDED),
    *(("pipe", case, guidance) for case in SCHEDULERS[1:] for guidance in MOVED),
    *(("pipe", case, guidance) for case in SCHEDULERS[5:7] for guidance in PUBLISHED),
    *(("xl", case, guidance) for case in SCHEDULERS for guidance in (None, {})),
    *(("xl", TURBO, guidance) for guidance in (None, {})),
    ("pipe", SCHEDULERS[0], {"scale": -0.3}),
]


def _most_beyond(count: int, share: float = 0.05, chance: float = 0.00135) -> int:
    """Of ``count`` images, each beyond with probability ``share``, more than these are with at most ``chance``."""
    most, left = 0, 1 - (1 - share) ** count
    while left > chance:
        most += 1
        left -= math.comb(count, most) * share**most * (1 - share) ** (count - most)
    return most


def test_how_many_images_chance_allows_beyond() -> None:
    assert [_most_beyond(count) for count in (1, 4, 24, 48, 96, 1000)] == [1, 2, 5, 8, 12, 72]
    assert _most_beyond(3, share=0.5, chance=0.125) == 2  # P(X > 2) = 1/8


@pytest.mark.parametrize(
    ("kind", "case", "guidance"),
    STEPS,
    ids=[f"{kind} {' '.join(map(str, case.values()))} {guidance}" for kind, case, guidance in STEPS],
)
def test_each_step_is_the_references(
    request: pytest.FixtureRequest,
    kind: str,
    teacher: EagerTeacher,
    case: dict[str, Any],
    guidance: dict[str, Any] | None,
    seed: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From the same state, step by step: median 1e-6, 95 % of the images 1e-4, of the sample's largest value.

    The share is of images in general. These few show that it is lower where more of them are beyond (at a kink of the
    teacher) than chance allows once in 740 tests.
    """
    pipe = request.getfixturevalue(kind)
    config = _config(guidance, cfg_stop=0.7, **case)
    states: list[Tensor] = []
    step = Schedule.step

    def recorded(self: Schedule, prediction: Tensor, index: int, sample: Tensor, generators: Any) -> Tensor:
        states.append(step(self, prediction, index, sample, generators))
        return states[-1]

    monkeypatch.setattr(Schedule, "step", recorded)
    reference = ReferenceSampler(pipe, config, teacher, GATE).sample(PROMPTS, CLASSES, _seeds(seed))

    sampler = FastSampler(pipe, config, teacher, GATE)
    with torch.no_grad():
        sampler._fill(sampler._rows(PROMPTS, CLASSES, _seeds(seed)), draw_noise(_seeds(seed), (4, 8, 8), sampler.draws))
        errors = []
        for step_kind, state in zip(sampler._kinds, states, strict=True):
            sampler._advance(step_kind)
            error = (sampler._buffers.sample - state).flatten(1).abs().amax(1)
            errors.append(error / state.abs().max())
            sampler._buffers.sample.copy_(state)
    found = torch.cat(errors)
    assert found.median() <= 1e-6, found
    assert int((found > 1e-4).sum()) <= _most_beyond(len(found)), found

    whole = sampler.sample(PROMPTS, CLASSES, _seeds(seed))
    assert whole.guided_steps == reference.guided_steps
    for found, expected in ((whole.energy, reference.energy), (whole.gate, reference.gate)):
        # of whole trajectories the medians: where a ReLU's kink lies between the two, a single image parts further
        assert found.shape == expected.shape
        if found.numel():
            assert (found - expected).abs().median() <= 1e-4 * expected.abs().max()
    assert (whole.images.int() - reference.images.int()).abs().flatten(1).amax(1).median() <= 1
    assert not whole.skipped.any()


def _watched(
    pipe: Any, config: SamplerConfig, teacher: EagerTeacher, seed: int
) -> tuple[list[Tensor], list[Tensor | None], SampleBatch]:
    """What the reference shows: the sample before each step and its change by guidance; and its batch."""
    states: list[Tensor] = []
    changes: list[Tensor | None] = []

    def watch(sample: Tensor, change: Tensor | None) -> None:
        states.append(sample)
        changes.append(change)

    reference = ReferenceSampler(pipe, config, teacher, GATE)
    return states, changes, reference.sample(PROMPTS, CLASSES, _seeds(seed), watch)


def _check_direction(change: Tensor | None, gradient: Tensor | None) -> None:
    assert (change is None) == (gradient is None)
    if change is not None and gradient is not None:  # the change is against the gradient
        along = -torch.cosine_similarity(change.flatten(1), gradient.flatten(1))
        assert along.median() > 1 - 1e-4, along


@pytest.mark.usefixtures("shared_exports")
@pytest.mark.parametrize("backend", ["eager", "onnx"])
def test_level_exact_follows_what_is_watched_of_the_reference(
    pipe: Any, teacher: EagerTeacher, backend: str, seed: int
) -> None:
    config = _config({"start": 0.3}, scheduler="ddim")
    states, changes, watched = _watched(pipe, config, teacher, seed)
    unwatched = ReferenceSampler(pipe, config, teacher, GATE).sample(PROMPTS, CLASSES, _seeds(seed))
    assert _same(unwatched, watched)
    assert [change is None for change in changes] == [True] * 2 + [False] * 4
    config = replace(config, guidance=replace(config.guidance, backend=backend))
    followed = FastSampler(pipe, config, teacher, GATE).follow(PROMPTS, CLASSES, _seeds(seed), states)
    for change, (gradient, after), then in zip(changes, followed, [*states[1:], watched.latents], strict=True):
        _check_direction(change, gradient)
        assert (after - then).flatten(1).abs().amax(1).median() <= 1e-5 * then.abs().max()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("kind", "case"), [*(("pipe", case) for case in SCHEDULERS), ("xl", {})], ids=[*IDS, "xl"])
def test_an_image_is_its_own_rows_alone(
    request: pytest.FixtureRequest, kind: str, case: dict[str, Any], dtype: str, teacher: EagerTeacher, seed: int
) -> None:
    make = tiny_xl_pipeline if kind == "xl" else tiny_pipeline
    pipe = request.getfixturevalue(kind) if dtype == "float32" else _converted(getattr(torch, dtype), make=make)
    config = _config({}, dtype=dtype, steps=4, **case)
    sampler = FastSampler(pipe, config, teacher, GATE)
    whole = sampler.sample(PROMPTS, CLASSES, _seeds(seed))
    order = [2, 0, 3, 1]
    moved = sampler.sample([PROMPTS[i] for i in order], [CLASSES[i] for i in order], [_seeds(seed)[i] for i in order])
    assert torch.equal(moved.latents, whole.latents[order]) and torch.equal(moved.energy, whole.energy[:, order])
    alone = sampler.sample(PROMPTS[2:3], CLASSES[2:3], _seeds(seed)[2:3])  # padded
    assert torch.equal(alone.latents, whole.latents[2:3]) and torch.equal(alone.images, whole.images[2:3])
    assert _same(FastSampler(pipe, config, teacher, GATE).sample(PROMPTS, CLASSES, _seeds(seed)), whole)


@pytest.mark.parametrize(
    ("make", "decoding"),
    [(tiny_pipeline, torch.float32), (tiny_pipeline, torch.float16), (tiny_xl_pipeline, torch.float32)],
)
def test_the_host_is_asked_nothing(
    make: Callable[[int], Any], teacher: EagerTeacher, decoding: torch.dtype, seed: int
) -> None:
    """No operation of the loop brings a value to the host; on CUDA each would wait for the device."""

    class Refusing(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            name = str(func)
            assert not any(word in name for word in ("_local_scalar_dense", "nonzero", "aten.equal", "is_nonzero")), (
                name
            )
            self.seen += 1
            return func(*args, **(kwargs or {}))

    own = make(0)
    own.vae.to(decoding).register_to_config(force_upcast=False)
    config = _config({"every": 2, "reuse_gradient": True}, level="fast", reuse_features=2, cfg_stop=0.6)
    sampler = FastSampler(own, config, teacher, GATE)
    with torch.no_grad():
        sampler._fill(sampler._rows(PROMPTS, CLASSES, _seeds(seed)), draw_noise(_seeds(seed), (4, 8, 8), sampler.draws))
        with Refusing() as mode:
            for step_kind in sampler._kinds:
                sampler._advance(step_kind)
        assert mode.seen > 100
        with pytest.raises(AssertionError, match="local_scalar"), Refusing():
            sampler._buffers.step.item()


def test_a_batch_begun_later_does_not_touch_one_begun_before(pipe: Any, teacher: EagerTeacher, seed: int) -> None:
    sampler = FastSampler(pipe, _config({}), teacher, GATE)
    begun = [sampler.begin(PROMPTS, CLASSES, _seeds(first)) for first in (seed, seed + 10)]
    for pending, first in zip(begun, (seed, seed + 10), strict=True):
        expected = _sample(pipe, _config({}), teacher, first)
        assert _same(pending.result(), expected) and torch.equal(pending.images, expected.images)


def test_a_dropped_guidance_leaves_the_image_unguided(pipe: Any, teacher: EagerTeacher, seed: int) -> None:
    class Faulty:
        """Not finite for the second image, no gradient for the third."""

        num_classes, label_names, input_size, fingerprint = 10, None, (32, 32), "faulty"

        def energy_and_grad(self, images: Tensor, targets: Tensor, term: Any) -> Any:
            found = teacher.energy_and_grad(images, targets, term)
            found.energy[1], found.finite[1], found.grad[2] = torch.nan, False, 0.0
            return found

    config = _config({"gate": "none"})
    batch = FastSampler(pipe, config, Faulty()).sample(PROMPTS, CLASSES, _seeds(seed))  # type: ignore[arg-type]
    plain = FastSampler(pipe, _config()).sample(PROMPTS, CLASSES, _seeds(seed))
    good = FastSampler(pipe, config, teacher).sample(PROMPTS, CLASSES, _seeds(seed))
    assert batch.skipped.tolist() == [0, 6, 6, 0]
    torch.testing.assert_close(batch.latents[1:3], plain.latents[1:3], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(batch.latents[[0, 3]], good.latents[[0, 3]], rtol=1e-3, atol=1e-3)
    assert (batch.latents[0] - plain.latents[0]).abs().max() > 1e-2


def test_kinds_of_steps() -> None:
    config = _config({"every": 2, "reuse_gradient": True, "start": 0.2}, level="fast", reuse_features=3, cfg_start=0.4)
    kinds = step_kinds(config, 10)
    assert "".join("c" if kind.cfg else "-" for kind in kinds) == "----cccccc"
    assert "".join(kind.gradient[1] for kind in kinds) == "ooeeeeeeee"
    assert [kind.features for kind in kinds[:5]] == ["new", "kept", "kept", "new", "new"]  # the last: CFG begins
    exact = step_kinds(_config(), 3)
    assert {(kind.cfg, kind.gradient, kind.features) for kind in exact} == {(True, "none", "all")}


def test_options_of_one_change_nothing(pipe: Any, teacher: EagerTeacher, seed: int) -> None:
    """Level fast without an approximation is level exact, bit for bit."""
    exact = _sample(pipe, _config({}), teacher, seed)
    assert _same(_sample(pipe, _config({}, level="fast"), teacher, seed), exact)
    assert _same(_sample(pipe, _config({"reuse_gradient": True}, level="fast"), teacher, seed), exact)


def test_a_kept_gradient_is_applied_again(pipe: Any, teacher: EagerTeacher, seed: int) -> None:
    sparse = _sample(pipe, _config({"every": 3}, level="fast"), teacher, seed)
    kept = _sample(pipe, _config({"every": 3, "reuse_gradient": True}, level="fast"), teacher, seed)
    dense = _sample(pipe, _config({}), teacher, seed)
    assert sparse.guided_steps == (0, 3) and kept.guided_steps == dense.guided_steps == (0, 1, 2, 3, 4, 5)
    assert torch.equal(kept.energy[0], kept.energy[2]) and not torch.equal(kept.energy[2], kept.energy[3])
    assert torch.equal(kept.energy[0], dense.energy[0])
    assert (kept.latents - sparse.latents).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["pipe", "xl"])
def test_the_split_unet_is_the_unet(request: pytest.FixtureRequest, kind: str, seed: int) -> None:
    pipe = request.getfixturevalue(kind)
    split, sizes = SplitUNet(pipe.unet), Sizes.of(pipe)
    generator = torch.Generator().manual_seed(seed)
    inputs, text = (torch.randn(3, *size, generator=generator) for size in (sizes.latents, sizes.text))
    pooled = torch.randn(6, sizes.pooled, generator=generator)
    added = added_conditions(pooled, torch.full((6, 6), 32.0), cfg=False) if sizes.pooled else None
    expected = pipe.unet(
        inputs, torch.tensor(321), encoder_hidden_states=text, added_cond_kwargs=added, return_dict=False
    )[0]
    prediction, features = split.whole(inputs, torch.tensor([321]), text, added)
    assert torch.equal(prediction, expected)
    assert tuple(features.shape[1:]) == features_shape(pipe.unet, sizes.latents)
    again = split.outer(inputs, torch.tensor([321]), text, features, added)  # its own step's features
    assert torch.equal(again, expected)
    other = split.outer(inputs, torch.tensor([321]), text, torch.zeros_like(features), added)
    assert (other - expected).abs().max() > 1e-3


@pytest.mark.parametrize("cfg", [(0.0, 1.0), (0.0, 0.5), (0.5, 1.0)])
@pytest.mark.parametrize("kind", ["pipe", "xl"])
def test_feature_reuse_runs_and_stays_near(
    request: pytest.FixtureRequest, kind: str, cfg: tuple[float, float], seed: int
) -> None:
    pipe = request.getfixturevalue(kind)
    options = {"steps": 20, "scheduler": "ddim", "cfg_start": cfg[0], "cfg_stop": cfg[1]}
    exact = _sample(pipe, _config(**options), None, seed).latents
    reused = _sample(pipe, _config(level="fast", reuse_features=2, **options), None, seed).latents
    rms = (reused - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert 1e-5 < rms < 0.2


def test_changed_weights_are_noticed(pipe: Any, seed: int) -> None:
    own = tiny_pipeline(3)
    sampler = FastSampler(own, _config())
    before = sampler.sample(PROMPTS, CLASSES, _seeds(seed))
    assert not _same(before, _sample(pipe, _config(), None, seed))
    own.unet.load_state_dict(pipe.unet.state_dict())
    own.text_encoder.load_state_dict(pipe.text_encoder.state_dict())
    own.vae.load_state_dict(pipe.vae.state_dict())
    after = sampler.sample(PROMPTS, CLASSES, _seeds(seed))
    assert _same(after, _sample(pipe, _config(), None, seed))


def test_changed_weights_of_the_second_encoder_are_noticed(seed: int) -> None:
    own = tiny_xl_pipeline(3)
    sampler = FastSampler(own, _config())
    before = sampler.sample(PROMPTS, CLASSES, _seeds(seed))
    own.text_encoder_2.load_state_dict(tiny_xl_pipeline(0).text_encoder_2.state_dict())
    after = sampler.sample(PROMPTS, CLASSES, _seeds(seed))
    assert not _same(after, before) and _same(after, _sample(own, _config(), None, seed))


def test_the_users_attention_stays_and_xformers_is_refused_where_it_is_not(pipe: Any) -> None:
    class Own(AttnProcessor):
        """A processor that somebody chose."""

    chosen = tiny_pipeline(0)
    chosen.unet.set_attn_processor(Own())
    kept = FastSampler(chosen, _config())._copies.of("unet, attention sdpa", chosen.unet)
    assert kept is not chosen.unet and {type(processor) for processor in kept.attn_processors.values()} == {Own}
    with pytest.raises(UserError, match="xformers"):
        FastSampler(pipe, _config(attention="xformers"))


def test_the_pipeline_is_left_as_it_was(teacher: EagerTeacher, seed: int) -> None:
    own = tiny_pipeline(1)
    networks = (own.unet, own.vae, own.text_encoder)
    before = [(p.clone(), p.stride(), p.data_ptr()) for network in networks for p in network.parameters()]
    forwards, scheduler = [network.forward for network in networks], dict(own.scheduler.config)
    arguments = {"num_inference_steps": 3, "output_type": "latent"}
    first = own("a coat", generator=torch.Generator().manual_seed(seed), **arguments).images
    _sample(own, _config({}, level="fast", reuse_features=2), teacher, seed)
    for (value, stride, place), p in zip(before, (p for n in networks for p in n.parameters()), strict=True):
        assert torch.equal(p, value) and p.stride() == stride and p.data_ptr() == place
    assert [network.forward for network in networks] == forwards and dict(own.scheduler.config) == scheduler
    assert torch.equal(own("a coat", generator=torch.Generator().manual_seed(seed), **arguments).images, first)


@pytest.mark.parametrize("decoder", ["kl", "tiny"])
def test_copies_in_channels_last(decoder: str, teacher: EagerTeacher, tmp_path: Any, seed: int) -> None:
    """As on CUDA: every network that convolves, and none of the pipeline's or the teacher's own."""
    tiny_pipeline(1).save_pretrained(tmp_path)
    save_tiny_decoder(tmp_path / "vae_tiny")
    own = load_pipeline(str(tmp_path))
    config = _config({"decoder": decoder}, level="fast")
    plain = FastSampler(own, config, teacher, GATE)
    ours = FastSampler(own, config, teacher, GATE, copies=Copies(True))
    used = [one._autoencoder for one in (ours._decoder, ours._guidance_decoder)]
    used += [ours._denoiser._unet, ours._copies.of("teacher", teacher.model)]
    for network in used:
        spread = [w for w in network.parameters() if w.dim() == 4]
        assert spread and all(w.is_contiguous(memory_format=torch.channels_last) for w in spread)
    for network in (own.unet, own.vae, teacher.model):
        assert all(w.is_contiguous() for w in network.parameters())
    states = [draw_noise(_seeds(seed), (4, 8, 8), 0).init] * 6
    steps = (one.follow(PROMPTS, CLASSES, _seeds(seed), states) for one in (plain, ours))
    for (_, expected), (_, found) in zip(*steps, strict=True):
        assert (found - expected).abs().median() <= 1e-6 * expected.abs().max()


@pytest.mark.parametrize("make", [tiny_pipeline, tiny_xl_pipeline])
def test_half_precision(make: Callable[[int], Any], teacher: EagerTeacher, seed: int) -> None:
    """bf16: no further from fp32 than twice the reference loop in bf16."""
    full, half = make(0), _converted(torch.bfloat16, make=make)
    options: dict[str, Any] = {"scheduler": "ddim", "steps": 4}
    config = _config({}, dtype="bfloat16", **options)
    truth = ReferenceSampler(full, _config({}, **options), teacher, GATE).sample(PROMPTS, CLASSES, _seeds(seed)).latents
    plain = ReferenceSampler(half, config, teacher, GATE).sample(PROMPTS, CLASSES, _seeds(seed)).latents
    fast = FastSampler(half, config, teacher, GATE).sample(PROMPTS, CLASSES, _seeds(seed)).latents
    error, budget = (((x - truth).square().mean().sqrt()) for x in (fast, plain))
    assert error <= 2 * budget


def _decoding_in_fp16() -> tuple[Any, Any]:
    """A pipeline whose decoder computes in fp16 (as sdxl-vae-fp16-fix does), and the same one in fp32."""
    half, full = tiny_pipeline(0), tiny_pipeline(0)
    half.vae.half().register_to_config(force_upcast=False)
    return half, full


@pytest.mark.parametrize("weight", [1.0, 1e-5, 1e-9])
@pytest.mark.parametrize("decoder", ["kl", "tiny"])
def test_small_gradients_pass_a_decoder_in_fp16(
    teacher: EagerTeacher, tmp_path: Path, decoder: str, weight: float, seed: int
) -> None:
    half, full = _decoding_in_fp16()
    guidance: dict[str, Any] = {"gate": "none", "free_weight": 0.0, "class_weight": weight, "decoder": decoder}
    guidance["tiny"] = str(save_tiny_decoder(tmp_path))
    states = [torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(seed)) for _ in range(2)]
    config = _config(guidance, level="fast", steps=2)
    samplers = [FastSampler(own, config, teacher) for own in (half, full)]
    found, expected = (sampler.follow(PROMPTS, CLASSES, _seeds(seed), states) for sampler in samplers)
    for (gradient, _), (truth, _) in zip(found, expected, strict=True):
        assert gradient is not None and truth is not None and gradient.dtype == torch.float32
        found_rows, true_rows = ((one.double() / weight).flatten(1) for one in (gradient, truth))
        errors = (found_rows - true_rows).norm(dim=1) / true_rows.norm(dim=1)
        assert errors.median() < 0.1, errors
    assert not samplers[0].trace(4)[2].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_gradient_is_pulled_back_whatever_its_size(dtype: torch.dtype, seed: int) -> None:
    """Linear in the cotangent, bit for bit at powers of two; in fp32 it is autograd's own; what is not finite shows."""
    source = torch.Generator().manual_seed(seed)
    latents = torch.randn(4, 4, 8, 8, generator=source).requires_grad_()
    layer = torch.nn.Conv2d(4, 3, 3).to(dtype)
    along = torch.randn(4, 3, 6, 6, generator=source)
    sizes = torch.tensor([1.0, 2.0**-20, 2.0**-60, 2.0**10]).view(-1, 1, 1, 1)
    pulled, scaled = (_pulled_back(layer(latents.to(dtype)), latents, each) for each in (along, along * sizes))
    assert pulled.dtype == torch.float32 and torch.equal(scaled, pulled * sizes)
    if dtype == torch.float32:
        assert torch.equal(pulled, torch.autograd.grad(layer(latents), latents, along)[0])
    along[1], along[2] = torch.inf, 0.0
    broken = _pulled_back(layer(latents.to(dtype)), latents, along)
    assert not broken[1].isfinite().all() and not broken[2].any() and torch.equal(broken[::3], pulled[::3])


@pytest.mark.slow
@pytest.mark.parametrize("case", [{"scheduler": "ddim"}, {"scheduler": "euler_a"}], ids=lambda case: case["scheduler"])
def test_compiled_steps_are_the_references(pipe: Any, teacher: EagerTeacher, case: dict[str, Any], seed: int) -> None:
    """With UNet and teacher through Inductor, as on CUDA: from the same state, step by step."""
    config = _config({"start": 0.3}, steps=4, cfg_stop=0.7, **case)
    torch._dynamo.reset()
    _check_followed(pipe, replace(config, compile="on"), teacher, seed)
    torch._dynamo.reset()


def _check_followed(pipe: Any, config: SamplerConfig, teacher: EagerTeacher, seed: int) -> FastSampler:
    """Gradient and sample of each step beside the reference's, whose autograd is eager, from the same state."""
    states, changes, reference = _watched(pipe, config, teacher, seed)
    sampler = FastSampler(pipe, config, teacher, GATE)
    followed = sampler.follow(PROMPTS, CLASSES, _seeds(seed), states)
    errors = []
    for change, (gradient, after), then in zip(changes, followed, [*states[1:], reference.latents], strict=True):
        _check_direction(change, gradient)
        errors.append(((after - then.to(after)).flatten(1).abs().amax(1) / then.abs().max()).cpu())
    found = torch.cat(errors)
    assert found.median() <= 1e-6, found
    assert int((found > 1e-4).sum()) <= _most_beyond(len(found)), found
    return sampler


@pytest.mark.parametrize("backend", ["aot_eager"])
def test_a_compiled_teacher_gives_eager_autograds_gradient(teacher: EagerTeacher, backend: str, seed: int) -> None:
    from prism_fast.energy.terms import guidance_energy
    from prism_fast.teachers.fused import raw_gradient

    options = {"free_weight": 0.7, "class_weight": 1.3, "temperature": 2.0}
    raw = torch.randn(4, 3, 40, 40, generator=torch.Generator().manual_seed(seed)) * 0.7
    targets = torch.tensor(CLASSES)
    leaf = raw.clone().requires_grad_()
    images = (leaf * 0.5 + 0.5).clamp(0, 1)
    term = guidance_energy(**options)
    value = term.value(teacher.outputs(images), targets)
    (expected,) = torch.autograd.grad(value.sum(), leaf)
    compiled = torch.compile(teacher.model, dynamic=False, backend=backend)
    for network in (None, compiled):
        with torch.no_grad():
            energy, gradient = raw_gradient(teacher, network, low=-1.0, high=1.0, term=term)(raw, targets)
        torch.testing.assert_close(energy, value.detach(), rtol=1e-5, atol=1e-5)
        relative = (gradient - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)
        assert relative.median() <= 1e-5, relative
    torch._dynamo.reset()


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"level": "exact", "reuse_features": 2}, "reuse_features: an approximation, set level: fast"),
    ({"guidance": GuidanceConfig(decoder="tiny")}, "guidance.decoder: an approximation, set level: fast"),
    ({"guidance": GuidanceConfig(at="latent")}, "level: reference alone"),
    ({"guidance": GuidanceConfig(repeats=2), "level": "fast"}, "level: reference alone"),
    (
        {"guidance": GuidanceConfig(backend="onnx"), "level": "reference"},
        "onnx exists above level: reference, whose teacher",
    ),
    ({"cfg_start": 0.5, "cfg_stop": 0.5}, "cfg_start .* must be below cfg_stop"),
    ({"reuse_features": 0}, "reuse_features must be a whole number"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_configurations_that_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplerConfig(**options)


def test_refusals(pipe: Any, teacher: EagerTeacher) -> None:
    with pytest.raises(UserError, match="guidance needs a teacher"):
        FastSampler(pipe, _config({}))
    with pytest.raises(UserError, match="pilot needs thresholds"):
        FastSampler(pipe, _config({}), teacher)
    with pytest.raises(UserError, match="load the pipeline in that"):
        FastSampler(pipe, _config(dtype="bfloat16"))
    with pytest.raises(UserError, match="take a multiple of 4 up to 32"):
        FastSampler(pipe, _config({"decoder": "kl@13"}, level="fast"), teacher, GATE)
    with pytest.raises(UserError, match="fit-decoder"):
        FastSampler(pipe, _config({"decoder": "linear"}, level="fast"), teacher, GATE)
    with pytest.raises(UserError, match="FastSampler"):
        ReferenceSampler(pipe, _config(level="fast"))


def test_an_xl_of_parts_that_do_not_fit_is_refused() -> None:
    own = tiny_xl_pipeline(0)
    own.text_encoder_2.config.projection_dim = 16
    with pytest.raises(UserError, match="pooled prompts of width 16, the UNet takes 32"):
        FastSampler(own, _config())
    own.vae.register_to_config(latents_mean=[0.0] * 4)
    for sampler in (FastSampler, ReferenceSampler):
        with pytest.raises(UserError, match="latents_mean is not supported"):
            sampler(own, _config())


def test_a_pipeline_that_was_moved_or_converted_is_refused(seed: int) -> None:
    own = tiny_pipeline(0)
    sampler = FastSampler(own, _config())
    own.to(torch.bfloat16)
    with pytest.raises(UserError, match=r"in torch.bfloat16, dtype is float32: load the pipeline in that"):
        sampler.sample(PROMPTS, CLASSES, _seeds(seed))
    own.to("meta", torch.float32)
    with pytest.raises(UserError, match="moved from cpu to meta: move it back"):
        sampler.refresh()


def test_the_final_decode_in_slices(pipe: Any, seed: int) -> None:
    sampler = FastSampler(pipe, _config())
    whole = sampler.sample(PROMPTS, CLASSES, _seeds(seed)).images
    sampler._decode_rows = 2
    sliced = sampler.sample(PROMPTS, CLASSES, _seeds(seed)).images
    assert (sliced.int() - whole.int()).abs().max() <= 1


def _on_cuda(
    seed: int, tmp_path: Any, dtype: str = "float32", make: Callable[[int], Any] = tiny_pipeline, **options: Any
) -> tuple[FastSampler, Any]:
    own = make(0)
    for network in (part for part in own.components.values() if isinstance(part, torch.nn.Module)):
        network.to("cuda", getattr(torch, dtype) if network is not own.vae else torch.float32)
    teacher = load_teacher(str(save_tiny_teacher(tmp_path)), "cuda")
    config = _config({"every": 2, "reuse_gradient": True}, level="fast", reuse_features=2, dtype=dtype, **options)
    return FastSampler(own, config, teacher, GATE), own


@pytest.mark.gpu
@pytest.mark.parametrize("make", [tiny_pipeline, tiny_xl_pipeline])
@pytest.mark.parametrize("compiled", ["off", "on"])
def test_captured_steps_are_those_that_are_called(
    tmp_path: Any, seed: int, compiled: str, make: Callable[[int], Any]
) -> None:
    sampler, _ = _on_cuda(seed, tmp_path, make=make, compile=compiled, cfg_stop=0.6)
    captured = sampler.sample(PROMPTS, CLASSES, _seeds(seed))
    assert len(sampler._graphs) == len(set(sampler._kinds)) > 2
    again = sampler.sample(PROMPTS, CLASSES, _seeds(seed))
    assert _same(captured, again)
    sampler._graphs._enabled = False
    assert _same(sampler.sample(PROMPTS, CLASSES, _seeds(seed)), captured)


@pytest.mark.gpu
@pytest.mark.parametrize("moves", ["x0", "sample"])
@pytest.mark.parametrize("compiled", ["off", "on"])
def test_captured_gradients_are_eager_autograds(
    tmp_path: Path, seed: int, compiled: str, moves: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # which rounds to 10 bits, each level elsewhere
    teacher = load_teacher(str(save_tiny_teacher(tmp_path)), "cuda")
    config = _config({"start": 0.3, "moves": moves}, scheduler="ddim", cfg_stop=0.7, compile=compiled)
    sampler = _check_followed(_converted(torch.float32, "cuda"), config, teacher, seed)
    assert len(sampler._graphs) == len(set(sampler._kinds)) > 1


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_on_cuda_stays_near_fp32(tmp_path: Any, seed: int, dtype: str) -> None:
    full, _ = _on_cuda(seed, tmp_path / "a", compile="off")
    half, _ = _on_cuda(seed, tmp_path / "b", dtype, compile="off")
    truth, found = (sampler.sample(PROMPTS, CLASSES, _seeds(seed)) for sampler in (full, half))
    rms = (found.latents - truth.latents).square().mean().sqrt() / truth.latents.square().mean().sqrt()
    assert rms < 0.1 and not found.skipped.any()


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "limit"), [("float32", 1e-3), ("bfloat16", 0.1)])
def test_xformers_attention_is_torchs_but_for_rounding(seed: int, dtype: str, limit: float) -> None:
    if reason := why_no_xformers():
        pytest.skip(f"xformers cannot be used: {reason}")
    own = _converted(getattr(torch, dtype), "cuda")
    chosen, usual = (
        FastSampler(own, _config(dtype=dtype, compile="off", attention=name)) for name in ("xformers", "sdpa")
    )
    found, expected = (sampler.sample(PROMPTS, CLASSES, _seeds(seed)).latents for sampler in (chosen, usual))
    used = chosen._copies.of("unet, attention xformers", own.unet).attn_processors.values()
    assert {type(processor).__name__ for processor in used} == {"XFormersAttnProcessor"}
    assert len(chosen._graphs) > 0
    assert (found - expected).square().mean().sqrt() < limit * expected.square().mean().sqrt()


@pytest.mark.gpu
def test_the_loop_never_waits_for_the_device(tmp_path: Any, seed: int) -> None:
    sampler, _ = _on_cuda(seed, tmp_path, compile="off")
    sampler.sample(PROMPTS, CLASSES, _seeds(seed))  # captures
    with torch.no_grad():
        sampler._fill(sampler._rows(PROMPTS, CLASSES, _seeds(seed)), draw_noise(_seeds(seed), (4, 8, 8), sampler.draws))
        torch.cuda.set_sync_debug_mode("error")
        try:
            for kind in sampler._kinds:
                sampler._graphs.run(kind, lambda: pytest.fail("captured already"))
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("make", [tiny_pipeline, tiny_xl_pipeline])
def test_a_batch_is_begun_without_waiting_for_the_device(tmp_path: Any, seed: int, make: Callable[[int], Any]) -> None:
    sampler, _ = _on_cuda(seed, tmp_path, make=make, compile="off")
    firsts = (seed, seed + 10, seed + 20)
    expected = [sampler.sample(PROMPTS, CLASSES, _seeds(first)) for first in firsts]  # captures, encodes the prompts
    torch.cuda.set_sync_debug_mode("error")
    try:
        begun = [sampler.begin(PROMPTS, CLASSES, _seeds(first)) for first in firsts]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for pending, wanted in zip(begun, expected, strict=True):
        found = pending.result()
        assert _same(found, wanted) and found.images.is_pinned() and torch.equal(pending.images.cpu(), wanted.images)


@pytest.mark.gpu
@pytest.mark.parametrize("case", SCHEDULERS, ids=IDS)
def test_cuda_agrees_with_the_reference(
    tmp_path: Path, case: dict[str, Any], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    teacher = load_teacher(str(save_tiny_teacher(tmp_path)), "cuda")
    _check_followed(_converted(torch.float32, "cuda"), _config({}, compile="off", **case), teacher, seed)


@pytest.mark.gpu
def test_a_hidden_write_to_the_weights_is_noticed(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prism_fast.sampling.fast.copies_for", lambda *_: Copies(True))  # compiled networks have these
    sampler, own = _on_cuda(seed, tmp_path, compile="off")
    before = sampler.sample(PROMPTS, CLASSES, _seeds(seed))
    weight = own.unet.conv_out.weight
    kept = weight.detach().clone()
    weight.data.mul_(1.5)
    begun = sampler.begin(PROMPTS, CLASSES, _seeds(seed))
    with pytest.raises(UserError, match=r"written to through weight\.data"):
        begun.result()
    after = sampler.begin(PROMPTS, CLASSES, _seeds(seed)).result()
    assert not _same(after, before) and _same(sampler.sample(PROMPTS, CLASSES, _seeds(seed)), after)
    weight.data.copy_(kept)
    assert _same(sampler.sample(PROMPTS, CLASSES, _seeds(seed)), before)
