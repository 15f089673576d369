from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from prism_fast.energy.terms import EnergyTerm, Outputs
from prism_fast.errors import UserError
from prism_fast.pipeline.decoder import LinearDecoder
from prism_fast.pipeline.load import is_xl, latent_shape
from prism_fast.sampling import reference
from prism_fast.sampling.batch import SampleBatch
from prism_fast.sampling.config import GuidanceConfig, SamplerConfig
from prism_fast.sampling.guidance import GateThresholds
from prism_fast.sampling.noise import draw_noise
from prism_fast.sampling.reference import ReferenceSampler, _Trace
from prism_fast.teachers.base import Energy
from prism_fast.teachers.eager import EagerTeacher
from tests.sampling.cases import CLASSES, IDS, PROMPTS, SCHEDULERS
from tests.tiny import tiny_pipeline, tiny_xl_pipeline

_CLASS_NAMES = {
    "pndm": "PNDMScheduler",
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_a": "EulerAncestralDiscreteScheduler",
    "dpmsolver++": "DPMSolverMultistepScheduler",
}


def _seeds(seed: int) -> list[int]:
    return [seed, seed + 1, seed + 2, 2**40 + seed]


def _config(guidance: dict[str, Any] | None = None, **options: Any) -> SamplerConfig:
    eda = GuidanceConfig(**({"gate": "none"} | guidance)) if guidance is not None else None
    defaults = {"steps": 5, "compute_batch": 4, "guidance": eda, "level": "reference"}
    return SamplerConfig(**(defaults | options))


def _same(a: SampleBatch, b: SampleBatch) -> bool:
    return torch.equal(a.images, b.images) and torch.equal(a.latents, b.latents)


def _diffusers(pipe: Any, config: SamplerConfig, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Latents and uint8 images from diffusers' own pipeline with the same settings."""
    import diffusers

    options: dict[str, Any] = {"skip_prk_steps": True} if config.scheduler == "pndm" else {}
    if config.scheduler in ("ddim", "ddpm"):
        options["clip_sample"] = False
    extras = {"add_watermarker": False} if is_xl(pipe) else {"requires_safety_checker": False}
    if config.karras:
        options["use_karras_sigmas"] = True
    if config.spacing:
        options["timestep_spacing"] = config.spacing
    own = type(pipe)(**pipe.components, **extras)
    own.set_progress_bar_config(disable=True)
    own.scheduler = getattr(diffusers, _CLASS_NAMES[config.scheduler]).from_config(pipe.scheduler.config, **options)
    common = {"num_inference_steps": config.steps, "guidance_scale": config.cfg_scale, "eta": config.eta}
    results = []
    for output_type in ("latent", "np"):
        generators = draw_noise(seeds, latent_shape(pipe), draws=0).generators
        initial = draw_noise(seeds, latent_shape(pipe), draws=0).init
        results.append(own(PROMPTS, generator=generators, latents=initial, output_type=output_type, **common).images)
    pixels = torch.from_numpy((results[1] * 255).round().astype("uint8")).permute(0, 3, 1, 2)
    return results[0], pixels


@pytest.mark.parametrize("case", SCHEDULERS, ids=IDS)
def test_unguided_equals_diffusers_own_pipeline(pipe: Any, case: dict[str, Any], seed: int) -> None:
    config = _config(**case)
    latents, pixels = _diffusers(pipe, config, _seeds(seed))
    batch = ReferenceSampler(pipe, config).sample(PROMPTS, CLASSES, _seeds(seed))
    assert torch.equal(batch.latents, latents)
    assert torch.equal(batch.images, pixels)


@pytest.mark.parametrize("case", SCHEDULERS, ids=IDS)
def test_an_xl_equals_diffusers_own_pipeline(xl: Any, case: dict[str, Any], seed: int) -> None:
    config = _config(**case)
    latents, pixels = _diffusers(xl, config, _seeds(seed))
    batch = ReferenceSampler(xl, config).sample(PROMPTS, CLASSES, _seeds(seed))
    assert torch.equal(batch.latents, latents) and torch.equal(batch.images, pixels)


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("scheduler", ["euler", "euler_a"])
def test_an_xl_turbo_equals_diffusers_own_pipeline(xl: Any, scheduler: Any, steps: int, seed: int) -> None:
    """Few steps, trailing, without classifier-free guidance."""
    config = _config(scheduler=scheduler, steps=steps, cfg_scale=0.0, spacing="trailing")
    latents, pixels = _diffusers(xl, config, _seeds(seed))
    batch = ReferenceSampler(xl, config).sample(PROMPTS, CLASSES, _seeds(seed))
    assert torch.equal(batch.latents, latents) and torch.equal(batch.images, pixels)


def test_of_what_an_xl_is_told_everything_counts(xl: Any, seed: int) -> None:
    """Pooled text, sizes, and, where the pipeline says so, the empty prompt in place of zeros."""
    config = _config(scheduler="ddim")
    plain = ReferenceSampler(xl, config).sample(PROMPTS, CLASSES, _seeds(seed)).latents
    for change in ({"pooled": True}, {"time_ids": True}):
        sampler = ReferenceSampler(xl, config)
        rows = sampler._rows(PROMPTS, CLASSES, _seeds(seed))
        assert rows.pooled is not None and rows.time_ids is not None
        assert not rows.unconditional.any() and not rows.pooled[:4].any() and rows.pooled[4:].any()
        assert rows.time_ids.tolist() == [[32, 32, 0, 0, 32, 32]] * 8
        changed = replace(rows, **{name: getattr(rows, name) + 5 for name in change})
        sampler._rows = lambda *_, changed=changed: changed  # type: ignore[method-assign, assignment, misc]
        assert (sampler.sample(PROMPTS, CLASSES, _seeds(seed)).latents - plain).abs().max() > 1e-4
    own = tiny_xl_pipeline(0)
    own.register_to_config(force_zeros_for_empty_prompt=False)
    told = ReferenceSampler(own, config)._rows(PROMPTS, CLASSES, _seeds(seed))
    _, empty, _, pooled = own.encode_prompt([""], negative_prompt=[""])
    assert told.pooled is not None
    torch.testing.assert_close(told.unconditional, empty.expand(4, -1, -1))
    torch.testing.assert_close(told.pooled[:4], pooled.expand(4, -1))


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
@pytest.mark.parametrize("scheduler", ["ddim", "ddpm", "euler", "dpmsolver++"])
def test_other_predictions_equal_diffusers_too(scheduler: str, prediction_type: str, seed: int) -> None:
    pipe = tiny_pipeline(1, prediction_type)
    config = _config(scheduler=scheduler, cfg_scale=1.0)
    latents, _ = _diffusers(pipe, config, _seeds(seed))
    assert torch.equal(ReferenceSampler(pipe, config).sample(PROMPTS, CLASSES, _seeds(seed)).latents, latents)


@pytest.mark.parametrize("case", SCHEDULERS, ids=IDS)
@pytest.mark.parametrize("at", ["x0", "latent", "noisy"])
def test_scale_zero_is_unguided_bit_for_bit(
    pipe: Any, teacher: EagerTeacher, case: dict[str, Any], at: str, seed: int
) -> None:
    plain = ReferenceSampler(pipe, _config(**case)).sample(PROMPTS, CLASSES, _seeds(seed))
    guided = ReferenceSampler(pipe, _config({"scale": 0.0, "at": at}, **case), teacher)
    batch = guided.sample(PROMPTS, CLASSES, _seeds(seed))
    assert _same(plain, batch)
    assert batch.energy.shape == (len(batch.guided_steps), 4) and batch.energy.isfinite().all()
    assert not batch.skipped.any()


GUIDED: list[dict[str, Any]] = [
    {},
    {"at": "latent"},
    {"at": "noisy"},
    {"repeats": 2},
    {"direction": "random"},
    {"gate": "pilot"},
    {"every": 2, "start": 0.2, "weighting": "sigma"},
]


@pytest.mark.parametrize(
    ("kind", "guidance"), [*(("pipe", guidance) for guidance in GUIDED), ("xl", {}), ("xl", {"at": "latent"})], ids=str
)
def test_an_image_depends_on_its_own_row_only(
    request: pytest.FixtureRequest, kind: str, teacher: EagerTeacher, guidance: dict[str, Any], seed: int
) -> None:
    """Bit-identical alone, elsewhere in the batch, and beside other rows."""
    pipe = request.getfixturevalue(kind)
    gate = GateThresholds(tau=(0.0,) * 10, delta=(0.5,) * 10)
    config = _config({"scale": 0.3} | guidance, scheduler="euler_a" if guidance else "dpmsolver++")
    sampler = ReferenceSampler(pipe, config, teacher, gate)
    seeds = _seeds(seed)
    batch = sampler.sample(PROMPTS, CLASSES, seeds)
    turned = sampler.sample(PROMPTS[::-1], CLASSES[::-1], seeds[::-1])
    assert torch.equal(turned.images.flip(0), batch.images)
    assert torch.equal(turned.latents.flip(0), batch.latents)
    assert torch.equal(turned.energy.flip(1), batch.energy)
    for row in (0, 2):
        alone = sampler.sample(PROMPTS[row : row + 1], CLASSES[row : row + 1], seeds[row : row + 1])
        assert torch.equal(alone.latents[0], batch.latents[row])
        assert torch.equal(alone.energy[:, 0], batch.energy[:, row])
    others = sampler.sample(["bag", PROMPTS[1], "a top"], [8, CLASSES[1], 0], [5, seeds[1], 6])
    assert torch.equal(others.latents[1], batch.latents[1])


@pytest.mark.parametrize("case", SCHEDULERS, ids=IDS)
def test_guidance_lowers_the_energy(pipe: Any, teacher: EagerTeacher, case: dict[str, Any], seed: int) -> None:
    config = _config({"scale": 0.2}, **case)
    plain = ReferenceSampler(pipe, _config({"scale": 0.0}, **case), teacher).sample(PROMPTS, CLASSES, _seeds(seed))
    batch = ReferenceSampler(pipe, config, teacher).sample(PROMPTS, CLASSES, _seeds(seed))
    assert batch.energy[-1].mean() < plain.energy[-1].mean() - 0.02
    assert torch.equal(batch.energy[0], plain.energy[0])


class _LinearTeacher:
    """E = Σ w·x: its gradient is w wherever the image is."""

    num_classes = 10
    label_names = None
    input_size = (8, 8)
    fingerprint = "0" * 16

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def outputs(self, images: Tensor) -> Outputs:
        return Outputs(logits=torch.zeros(len(images), 10))

    def features(self, images: Tensor) -> Tensor:
        return images.flatten(1)

    def energy_and_grad(self, images: Tensor, targets: Tensor, term: EnergyTerm) -> Energy:
        energy = (images * self.weight).sum(dim=(1, 2, 3))
        finite = torch.ones(len(images), dtype=torch.bool)
        return Energy(
            energy=energy, grad=self.weight.expand_as(images).clone(), outputs=self.outputs(images), finite=finite
        )


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("weighting", ["constant", "sigma", "alpha"])
def test_guided_ddim_against_the_equations_by_hand(
    prediction_type: str, weighting: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linear decoder and energy: g = Mᵀw is known, and DDIM written out in fp64 gives the same latents."""
    pipe = tiny_pipeline(2, prediction_type)
    generator = torch.Generator().manual_seed(seed)
    matrix, weight = torch.randn(3, 4, generator=generator), torch.randn(1, 3, 8, 8, generator=generator)
    gate = GateThresholds(tau=tuple(range(10)), delta=(3.0,) * 10)
    config = _config({"scale": 0.7, "gate": "pilot", "weighting": weighting}, scheduler="ddim", cfg_scale=2.0)
    sampler = ReferenceSampler(pipe, config, _LinearTeacher(weight), gate)
    sampler._decoder = LinearDecoder(matrix, torch.full((3,), 0.5))
    monkeypatch.setattr(reference, "decode", lambda decoder, latents: decoder.raw(latents))  # unclamped
    seeds = _seeds(seed)
    batch = sampler.sample(PROMPTS, CLASSES, seeds)

    gradient = torch.einsum("oc,bohw->bchw", matrix.double(), weight.double())
    direction = gradient / gradient.square().mean().sqrt()
    text = torch.cat(
        [pipe.encode_prompt([""] * 4, "cpu", 1, False)[0], pipe.encode_prompt(PROMPTS, "cpu", 1, False)[0]]
    )
    cumulative = pipe.scheduler.alphas_cumprod.double()
    x = draw_noise(seeds, (4, 8, 8), draws=0).init.double()
    for index, t in enumerate(range(801, 0, -200)):
        u, c = pipe.unet(torch.cat([x, x]).float(), t, encoder_hidden_states=text).sample.double().chunk(2)
        m = u + 2.0 * (c - u)
        alpha, sigma = cumulative[t].sqrt(), (1 - cumulative[t]).sqrt()
        x0 = {
            "epsilon": (x - sigma * m) / alpha,
            "v_prediction": alpha * x - sigma * m,
            "sample": m,
        }[prediction_type]
        energy = ((0.5 + torch.einsum("oc,bchw->bohw", matrix.double(), x0)) * weight).sum(dim=(1, 2, 3))
        opened = torch.sigmoid((energy - torch.tensor(CLASSES)) / 3.0)
        torch.testing.assert_close(batch.energy[index].double(), energy, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(batch.gate[index].double(), opened, rtol=1e-3, atol=1e-3)
        w = {"constant": 1.0, "sigma": sigma, "alpha": alpha}[weighting]
        x0 = x0 - 0.7 * w * opened.view(-1, 1, 1, 1) * direction
        epsilon = (x - alpha * x0) / sigma
        following = cumulative[t - 200] if t > 200 else cumulative[0]
        x = following.sqrt() * x0 + (1 - following).sqrt() * epsilon
    torch.testing.assert_close(batch.latents.double(), x, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("step", ["rms", "plain"])
@pytest.mark.parametrize("at", ["x0", "latent", "noisy"])
def test_moved_samples_against_the_equations_by_hand(
    at: str, step: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """x_t' = x_t − s·g, then the network and DDIM from there; ``noisy`` and ``plain`` is DDIS' z_t − η∇."""
    pipe = tiny_pipeline(2)
    generator = torch.Generator().manual_seed(seed)
    matrix, weight = torch.randn(3, 4, generator=generator), torch.randn(1, 3, 8, 8, generator=generator)
    config = _config({"scale": 0.02, "at": at, "moves": "sample", "step": step}, scheduler="ddim", cfg_scale=0.0)
    sampler = ReferenceSampler(pipe, config, _LinearTeacher(weight))
    sampler._decoder = LinearDecoder(matrix, torch.full((3,), 0.5))
    monkeypatch.setattr(reference, "decode", lambda decoder, latents: decoder.raw(latents))  # unclamped
    seeds = _seeds(seed)
    batch = sampler.sample(PROMPTS, CLASSES, seeds)

    text, cumulative = pipe.encode_prompt(PROMPTS, "cpu", 1, False)[0], pipe.scheduler.alphas_cumprod.double()
    x = draw_noise(seeds, (4, 8, 8), draws=0).init.double()
    for t in range(801, 0, -200):
        alpha, sigma = cumulative[t].sqrt(), (1 - cumulative[t]).sqrt()

        def epsilon(at_x: Tensor, t: int = t) -> Tensor:
            return pipe.unet(at_x.float(), t, encoder_hidden_states=text).sample.double()

        leaf = x.clone().requires_grad_()
        x0 = {"x0": leaf, "noisy": leaf, "latent": (leaf - sigma * epsilon(leaf)) / alpha}[at]
        energy = (torch.einsum("oc,bchw->bohw", matrix.double(), x0) * weight).sum()
        (gradient,) = torch.autograd.grad(energy, [leaf])
        if step == "rms":
            gradient = gradient / gradient.square().mean((1, 2, 3), keepdim=True).sqrt()
        x = (x - 0.02 * gradient).detach()
        with torch.no_grad():
            e = epsilon(x)
        following = cumulative[t - 200] if t > 200 else cumulative[0]
        x = following.sqrt() * (x - sigma * e) / alpha + (1 - following).sqrt() * e
    torch.testing.assert_close(batch.latents.double(), x, rtol=1e-3, atol=1e-3)


def test_the_step_has_the_stated_size(pipe: Any, teacher: EagerTeacher, seed: int) -> None:
    """One guided DDIM step: x0' − x0 has rms s in every image; a random direction has the same."""
    for direction in ("energy", "random"):
        config = _config({"scale": 0.25, "direction": direction}, steps=1, scheduler="ddim")
        moved = ReferenceSampler(pipe, config, teacher).sample(PROMPTS, CLASSES, _seeds(seed)).latents
        plain = ReferenceSampler(pipe, _config(steps=1, scheduler="ddim"), teacher).sample(
            PROMPTS, CLASSES, _seeds(seed)
        )
        level = ReferenceSampler(pipe, config, teacher)._schedule().levels[0]
        following = pipe.scheduler.alphas_cumprod[0].double()
        # x' = √a·x0' + √(1−a)·ε', and ε' moves by −(α/σ)·Δx0
        factor = following.sqrt() - (1 - following).sqrt() * level.alpha / level.sigma
        size = (moved - plain.latents).double().square().mean(dim=(1, 2, 3)).sqrt() / factor
        torch.testing.assert_close(size, torch.full((4,), 0.25, dtype=torch.float64), rtol=1e-3, atol=0)


def test_multistep_history_holds_corrected_predictions(pipe: Any, teacher: EagerTeacher, seed: int) -> None:
    """Guidance at the first step only still changes DPM-Solver++'s second-order term at the second."""
    config = _config({"scale": 0.5, "stop": 0.2}, scheduler="dpmsolver++", steps=6)
    sampler = ReferenceSampler(pipe, config, teacher)
    schedule = sampler._schedule()
    seen: list[Tensor] = []
    original = schedule.scheduler.convert_model_output
    schedule.scheduler.convert_model_output = lambda *args, **kwargs: seen.append(original(*args, **kwargs)) or seen[-1]
    sampler._schedule = lambda _: schedule  # type: ignore[method-assign]
    batch = sampler.sample(PROMPTS, CLASSES, _seeds(seed))
    assert batch.guided_steps == (0, 1)

    fresh = ReferenceSampler(pipe, config, teacher)
    rows = fresh._rows(PROMPTS, CLASSES, _seeds(seed))
    first = fresh._schedule()
    sample = first.start(draw_noise(rows.seeds, (4, 8, 8), draws=0).init)
    assert fresh._guide is not None
    with torch.no_grad():
        raw, _ = first.levels[0].split(fresh._predict(first, 0, sample, rows), sample, "epsilon")
        _, _, correction = fresh._corrected(fresh._guide, first, 0, sample, rows, _Trace())
    assert len(seen) == 6
    torch.testing.assert_close(seen[0], raw + correction.delta, rtol=1e-4, atol=1e-4)
    assert (seen[0] - raw).abs().mean() > 0.2


class _FaultyTeacher:
    """Breaks chosen rows by their target: class 0 has a NaN energy, class 1 an infinite gradient, class 2 none."""

    def __init__(self, teacher: EagerTeacher) -> None:
        self._teacher = teacher
        self.num_classes, self.label_names = teacher.num_classes, teacher.label_names
        self.input_size, self.fingerprint = teacher.input_size, teacher.fingerprint
        self.outputs, self.features = teacher.outputs, teacher.features

    def energy_and_grad(self, images: Tensor, targets: Tensor, term: EnergyTerm) -> Energy:
        result = self._teacher.energy_and_grad(images, targets, term)
        energy, grad = result.energy.clone(), result.grad.clone()
        energy[targets == 0] = float("nan")
        grad[targets == 1] = float("inf")
        grad[targets == 2] = 0.0
        finite = energy.isfinite() & grad.flatten(1).isfinite().all(1)
        return Energy(energy=energy, grad=grad, outputs=result.outputs, finite=finite)


@pytest.mark.parametrize("direction", ["energy", "random"])
@pytest.mark.parametrize("scheduler", ["ddim", "dpmsolver++"])
def test_a_bad_guidance_is_dropped_and_counted(
    pipe: Any, teacher: EagerTeacher, scheduler: str, direction: str, seed: int
) -> None:
    options: dict[str, Any] = {"scheduler": scheduler}
    guidance = {"scale": 0.3, "direction": direction, "repeats": 1}
    faulty = ReferenceSampler(pipe, _config(guidance, **options), _FaultyTeacher(teacher))
    batch = faulty.sample(PROMPTS, [0, 1, 2, 3], _seeds(seed))
    plain = ReferenceSampler(pipe, _config(**options)).sample(PROMPTS, [0, 1, 2, 3], _seeds(seed))
    good = ReferenceSampler(pipe, _config(guidance, **options), teacher).sample(PROMPTS, [0, 1, 2, 3], _seeds(seed))
    assert batch.skipped.tolist() == [5, 5, 5, 0]
    assert torch.equal(batch.latents[:3], plain.latents[:3])
    assert torch.equal(batch.latents[3], good.latents[3])
    assert not batch.gate[:, :3].any() and batch.gate[:, 3].all()


def test_repeats_count_every_guidance(pipe: Any, teacher: EagerTeacher, seed: int) -> None:
    config = _config({"scale": 0.3, "repeats": 3, "stop": 0.5}, scheduler="ddim")
    batch = ReferenceSampler(pipe, config, _FaultyTeacher(teacher)).sample(PROMPTS, [0, 1, 2, 3], _seeds(seed))
    assert batch.guided_steps == (0, 1, 2)
    assert batch.skipped.tolist() == [9, 9, 9, 0]
    assert batch.energy.shape == (3, 4)


def test_repeats_do_not_shift_the_sampling_noise(pipe: Any, teacher: EagerTeacher, seed: int) -> None:
    """Where every guidance is dropped the trajectory still travels, but later scheduler noise is the same stream."""
    config = _config({"scale": 0.3, "repeats": 2}, scheduler="ddpm")
    sampler = ReferenceSampler(pipe, config, teacher)
    schedule = sampler._schedule()
    sampler._schedule = lambda _: schedule  # type: ignore[method-assign]
    states = []
    step = schedule.step

    def recorded(prediction: Tensor, index: int, sample: Tensor, generators: list[torch.Generator]) -> Tensor:
        following = step(prediction, index, sample, generators)
        states.append(generators[0].get_state())
        return following

    schedule.step = recorded  # type: ignore[method-assign]
    sampler.sample(PROMPTS, CLASSES, _seeds(seed))
    expected = draw_noise(_seeds(seed), (4, 8, 8), draws=0).generators[0]
    for state in states:
        torch.randn(1, 4, 8, 8, generator=expected)
        assert torch.equal(state, expected.get_state())


def test_latent_mode_differentiates_through_the_unet(pipe: Any, teacher: EagerTeacher, seed: int) -> None:
    """Its direction differs from the x0 mode's, and both descend."""
    results = {
        at: ReferenceSampler(pipe, _config({"scale": 0.3, "at": at}, scheduler="ddim"), teacher).sample(
            PROMPTS, CLASSES, _seeds(seed)
        )
        for at in ("x0", "latent", "noisy")
    }
    assert not torch.equal(results["x0"].latents, results["latent"].latents)
    assert not torch.equal(results["x0"].latents, results["noisy"].latents)
    assert torch.equal(results["x0"].energy[0], results["latent"].energy[0])


def test_other_compute_batches_agree_closely(pipe: Any, seed: int) -> None:
    small = ReferenceSampler(pipe, _config(compute_batch=4)).sample(PROMPTS, CLASSES, _seeds(seed))
    large = ReferenceSampler(pipe, _config(compute_batch=7)).sample(PROMPTS, CLASSES, _seeds(seed))
    assert (small.latents - large.latents).abs().median() <= 1e-6
    assert (small.images.int() - large.images.int()).abs().max() <= 1


def test_without_cfg_the_unconditional_half_is_skipped(pipe: Any, seed: int) -> None:
    rows: list[int] = []
    handle = pipe.unet.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    try:
        for cfg_scale in (0.5, 1.0, 1.5):
            ReferenceSampler(pipe, _config(cfg_scale=cfg_scale, steps=2, scheduler="ddim")).sample(["bag"], [8], [seed])
    finally:
        handle.remove()
    assert rows == [4, 4, 4, 4, 8, 8]


def test_the_pipeline_is_left_as_it_was(pipe: Any, teacher: EagerTeacher, seed: int) -> None:
    weights = {name: tensor.clone() for name, tensor in pipe.unet.state_dict().items()}
    scheduler, state = pipe.scheduler, torch.get_rng_state()
    sampler = ReferenceSampler(pipe, _config({"at": "latent"}), teacher)
    first = sampler.sample(PROMPTS, CLASSES, _seeds(seed))
    assert pipe.scheduler is scheduler
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in pipe.unet.state_dict().items())
    assert _same(sampler.sample(PROMPTS, CLASSES, _seeds(seed)), first)


def test_shapes_and_dtypes(pipe: Any, teacher: EagerTeacher) -> None:
    batch = ReferenceSampler(pipe, _config({"every": 2}, scheduler="ddim"), teacher).sample(
        PROMPTS[:3], CLASSES[:3], [1, 2, 3]
    )
    assert batch.images.shape == (3, 3, 32, 32) and batch.images.dtype == torch.uint8
    assert batch.latents.shape == (3, 4, 8, 8) and batch.latents.dtype == torch.float32
    assert batch.guided_steps == (0, 2, 4)
    assert batch.energy.shape == batch.gate.shape == (3, 3) and batch.energy.dtype == torch.float32
    assert batch.skipped.dtype == torch.int64
    plain = ReferenceSampler(pipe, _config()).sample(PROMPTS[:3], CLASSES[:3], [1, 2, 3])
    assert plain.energy.shape == (0, 3) and plain.guided_steps == () and plain.skipped.tolist() == [0, 0, 0]


def test_half_precision_networks_keep_fp32_latents(teacher: EagerTeacher, pipe: Any, seed: int) -> None:
    half = tiny_pipeline(0)
    for module in (half.unet, half.vae, half.text_encoder):
        module.to(torch.bfloat16)
    config = _config({"scale": 0.1}, dtype="bfloat16", scheduler="ddim")
    batch = ReferenceSampler(half, config, teacher).sample(PROMPTS, CLASSES, _seeds(seed))
    full = ReferenceSampler(pipe, _config({"scale": 0.1}, scheduler="ddim"), teacher)
    assert batch.latents.dtype == torch.float32
    assert (batch.latents - full.sample(PROMPTS, CLASSES, _seeds(seed)).latents).abs().median() < 0.05
    assert not batch.skipped.any()


@pytest.mark.parametrize(
    ("prompts", "classes", "seeds", "message"),
    [
        (["bag"], [8, 8], [1], "one each"),
        (["bag"], [8], [], "one each"),
        ([], [], [], "1 to 4"),
        (["bag"] * 5, [8] * 5, [1] * 5, "1 to 4"),
        (["bag"], [10], [1], "class"),
        (["bag"], [-1], [1], "class"),
        (["bag"], [8], [-3], "seed"),
        (["bag " * 40], [8], [1], "tokens"),
    ],
)
def test_bad_rows_are_refused(
    pipe: Any, teacher: EagerTeacher, prompts: list[str], classes: list[int], seeds: list[int], message: str
) -> None:
    sampler = ReferenceSampler(pipe, _config({}), teacher)
    with pytest.raises(UserError, match=message):
        sampler.sample(prompts, classes, seeds)


def test_what_guidance_needs_is_asked_for(pipe: Any, teacher: EagerTeacher) -> None:
    with pytest.raises(UserError, match="teacher"):
        ReferenceSampler(pipe, _config({}))
    with pytest.raises(UserError, match="pilot"):
        ReferenceSampler(pipe, _config({"gate": "pilot"}), teacher)
    with pytest.raises(UserError, match="9 classes"):
        ReferenceSampler(pipe, _config({"gate": "pilot"}), teacher, GateThresholds(tau=(0.0,) * 9, delta=(1.0,) * 9))
    with pytest.raises(UserError, match="bfloat16"):
        ReferenceSampler(pipe, _config(dtype="bfloat16"))
