"""The energy of a configuration, and the samplers that go down it, at both levels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from prism_fast.energy.batch_norm import BatchNormStatistics
from prism_fast.energy.ensemble import EnsembleEnergy
from prism_fast.energy.terms import WeightedSum, guidance_energy, logit_weights
from prism_fast.errors import UserError
from prism_fast.sampling import energy as sampling_energy
from prism_fast.sampling.config import GuidanceConfig, SamplerConfig
from prism_fast.sampling.energy import guidance_term, load_student, pinned_student, student_fingerprint
from prism_fast.sampling.fast import FastSampler
from prism_fast.sampling.guidance import GateThresholds, Guide
from prism_fast.sampling.levels import make_sampler
from prism_fast.sampling.reference import ReferenceSampler
from prism_fast.synthesis.label import Labeller
from prism_fast.teachers.eager import EagerTeacher
from prism_fast.teachers.load import load_classifier, load_teacher
from prism_fast.teachers.taps import outputs_for
from tests.tiny import save_tiny_teacher, tiny_pipeline

PROMPTS = ["a photo of a coat", "a dark boot", "a silhouette of a bag, a container with a handle", "jumper"]
CLASSES = [4, 9, 8, 2]
GATE = GateThresholds(tau=(0.0,) * 10, delta=(2.0,) * 10)
BATCH_NORM = {"bn_weight": 3.0}
DISAGREE = {"student_weight": 0.5}


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny_pipeline(0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Teacher, another teacher, student."""
    return [save_tiny_teacher(tmp_path_factory.mktemp("classifier"), seed=number) for number in range(3)]


@pytest.fixture(scope="module")
def teacher(folders: list[Path]) -> EagerTeacher:
    return load_classifier(str(folders[0]))


def _names(folders: list[Path]) -> dict[str, str]:
    first, second = map(str, folders[:2])
    return {"one": first, "mean": f"{first}+{second}", "worst": f"worst:{first}+{second}"}


def _guidance(folders: list[Path], options: dict[str, Any]) -> GuidanceConfig:
    student = {"student": str(folders[2])} if options.get("student_weight") else {}
    return GuidanceConfig(**{"gate": "none", **options, **student})


def _seeds(seed: int) -> list[int]:
    return [seed, seed + 1, seed + 2, 2**40 + seed]


# -- which energy -----------------------------------------------------------------------------------------------------


def test_the_default_energy_is_what_it_always_was(teacher: EagerTeacher, seed: int) -> None:
    options = {"free_weight": 0.3, "class_weight": 1.7, "temperature": 2.0}
    term, plain = guidance_term(GuidanceConfig(**options), teacher), guidance_energy(**options)
    assert logit_weights(term) == options and term.needed_taps == ()
    images, targets = torch.rand(4, 3, 32, 32), torch.tensor(CLASSES)
    ours, theirs = (teacher.energy_and_grad(images, targets, each) for each in (term, plain))
    assert torch.equal(ours.energy, theirs.energy) and torch.equal(ours.grad, theirs.grad)


def test_the_energy_is_the_weighted_sum(folders: list[Path], teacher: EagerTeacher, seed: int) -> None:
    config = _guidance(folders, {"entropy_weight": 0.7, "bn_weight": 3.0, "student_weight": 0.5, "free_weight": 0.0})
    term, student = guidance_term(config, teacher), load_student(str(folders[2]))
    assert logit_weights(term) is None and not term.coupled
    assert f"student:{student.fingerprint}" in term.needed_taps and set(teacher.batch_norms()) < set(term.needed_taps)
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    targets = torch.tensor(CLASSES)
    log_p, log_q = (one.outputs(images).logits.double().log_softmax(1) for one in (teacher, student))
    statistics = BatchNormStatistics(running=teacher.batch_norms())
    expected = -log_p[range(4), CLASSES] - 0.7 * (log_p.exp() * log_p).sum(1)
    expected -= 0.5 * (log_p.exp() * (log_p - log_q)).sum(1)
    expected += 3 * statistics.value(outputs_for(teacher, images, statistics), targets)
    found = term.value(outputs_for(teacher, images, term), targets)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_what_cannot_be_had_is_refused(folders: list[Path], teacher: EagerTeacher, tmp_path: Path) -> None:
    class Plain:
        num_classes = 10

    plain: Any = Plain()
    with pytest.raises(UserError, match=r"guidance\.bn_weight needs a teacher whose features can be read: a Plain"):
        guidance_term(GuidanceConfig(bn_weight=1.0), plain)
    with pytest.raises(UserError, match=r"guidance\.student_weight needs a teacher"):
        guidance_term(_guidance(folders, DISAGREE), plain)
    bare = EagerTeacher(
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 10)),
        mean=(0.5,) * 3, std=(0.5,) * 3, input_size=(4, 4), num_classes=10,
    )  # fmt: skip
    with pytest.raises(UserError, match="no batch-norm layer"):
        guidance_term(GuidanceConfig(bn_weight=1.0), bare)
    fewer = str(save_tiny_teacher(tmp_path, num_classes=7))
    with pytest.raises(UserError, match="the student knows 7 classes, the teacher 10"):
        guidance_term(GuidanceConfig(student_weight=1.0, student=fewer), teacher)


def test_a_student_is_named_by_its_hash(folders: list[Path], teacher: EagerTeacher) -> None:
    folder, other = str(folders[2]), str(folders[1])
    name = load_student(folder).fingerprint
    assert load_student(f"{folder}@{name}").fingerprint == name
    with pytest.raises(UserError, match=f"is {load_student(other).fingerprint}, {name} was asked for"):
        load_student(f"{other}@{name}")

    config = SamplerConfig(guidance=_guidance(folders, DISAGREE))
    assert student_fingerprint(config.guidance) == name
    pinned = pinned_student(config, name)
    assert pinned.guidance is not None and pinned.guidance.student == f"{folder}@{name}"
    assert pinned_student(pinned, name) == pinned
    assert student_fingerprint(None) is student_fingerprint(GuidanceConfig()) is None
    assert pinned_student(SamplerConfig(), None) == SamplerConfig()


def test_of_an_ensemble_every_member_has_its_own(folders: list[Path]) -> None:
    ensemble = load_teacher(_names(folders)["worst"])
    term = guidance_term(_guidance(folders, {**BATCH_NORM, **DISAGREE}), ensemble)
    assert isinstance(term, EnsembleEnergy) and term.mode == "worst" and len(term.terms) == 2
    assert {"0/logits", "1/logits", "0/bn:bn1", "1/bn:bn1"} < set(term.needed_taps)
    assert len(term.networks) == 2


def test_coupled_energies_do_not_sample(pipe: Any, teacher: EagerTeacher, monkeypatch: pytest.MonkeyPatch) -> None:
    statistics = BatchNormStatistics(running=teacher.batch_norms(), coupled=True)
    coupled = WeightedSum(terms=(statistics,), weights=(1.0,))
    monkeypatch.setattr("prism_fast.sampling.guidance.guidance_term", lambda *_: coupled)
    monkeypatch.setattr("prism_fast.sampling.fast.guidance_term", lambda *_: coupled)
    config = GuidanceConfig(gate="none")
    with pytest.raises(UserError, match="rows beside it"):
        Guide(config, teacher, None)
    with pytest.raises(UserError, match="rows beside it"):
        FastSampler(pipe, SamplerConfig(compute_batch=4, guidance=config), teacher)


# -- down it ----------------------------------------------------------------------------------------------------------


CASES = [
    ("one", BATCH_NORM, "dpmsolver++"),
    ("one", {"entropy_weight": 1.0, "class_weight": 0.0}, "euler"),
    ("one", DISAGREE, "ddim"),
    ("mean", {}, "dpmsolver++"),
    ("worst", {}, "euler_a"),
    ("worst", {**BATCH_NORM, **DISAGREE}, "ddim"),
    ("one", {**BATCH_NORM, **DISAGREE, "backend": "onnx"}, "dpmsolver++"),
]
IDS = [f"{name} {options} {scheduler}" for name, options, scheduler in CASES]
BOTH = pytest.param(
    "mean", {**BATCH_NORM, **DISAGREE, "backend": "onnx"}, "dpmsolver++", id="mean onnx", marks=pytest.mark.slow
)  # an export for each member


@pytest.mark.usefixtures("shared_exports")
@pytest.mark.parametrize(
    ("name", "options", "scheduler"), [*(pytest.param(*c, id=i) for c, i in zip(CASES, IDS, strict=True)), BOTH]
)
def test_each_step_is_the_references(
    pipe: Any, folders: list[Path], name: str, options: dict[str, Any], scheduler: Any, seed: int
) -> None:
    """From the same state, step by step: median 1e-6, 95 % of the images 1e-4, of the sample's largest value."""
    guide = load_teacher(_names(folders)[name])
    guidance = _guidance(folders, {**options, "gate": "pilot"})
    config = SamplerConfig(scheduler=scheduler, steps=6, compute_batch=4, cfg_stop=0.7, guidance=guidance)
    eager = replace(config, guidance=replace(guidance, backend="eager"))
    states: list[Tensor] = []
    changes: list[Tensor | None] = []

    def watch(sample: Tensor, change: Tensor | None) -> None:
        states.append(sample)
        changes.append(change)

    reference = ReferenceSampler(pipe, eager, guide, GATE).sample(PROMPTS, CLASSES, _seeds(seed), watch)
    sampler = FastSampler(pipe, config, guide, GATE)
    followed = sampler.follow(PROMPTS, CLASSES, _seeds(seed), states)
    errors = []
    for change, (gradient, after), then in zip(changes, followed, [*states[1:], reference.latents], strict=True):
        assert change is not None and gradient is not None
        along = -torch.cosine_similarity(change.flatten(1), gradient.flatten(1))
        assert along.median() > 1 - 1e-4, along
        errors.append((after - then).flatten(1).abs().amax(1) / then.abs().max())
    found = torch.cat(errors)
    assert found.median() <= 1e-6 and found.quantile(0.95) <= 1e-4, found
    energy, _, skipped = sampler.trace(4)
    assert (energy - reference.energy).abs().median() <= 1e-4 * reference.energy.abs().max()
    assert not skipped.any() and not reference.skipped.any()


@pytest.mark.parametrize("level", ["reference", "exact"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("one", {"free_weight": 0.0, "class_weight": 0.0, "bn_weight": 1.0}),
        ("one", {"free_weight": 0.0, "class_weight": 0.0, "student_weight": 1.0}),
        ("one", BATCH_NORM),
        ("mean", {}),
        ("worst", {}),
    ],
    ids=str,
)
def test_guidance_lowers_the_energy_of_the_images(
    pipe: Any, folders: list[Path], name: str, options: dict[str, Any], level: Any, seed: int
) -> None:
    """As the labeller finds it on the finished images, which is the energy that the sampler went down."""
    guide = load_teacher(_names(folders)[name])
    guidance = _guidance(folders, {**options, "scale": 0.3})
    plain, guided = (
        make_sampler(pipe, SamplerConfig(steps=6, compute_batch=4, level=level, guidance=config), guide)
        for config in (None, guidance)
    )
    label = Labeller(guide, guidance, 4)
    before, after = (
        torch.tensor(label(sampler.sample(PROMPTS, CLASSES, _seeds(seed)).images, CLASSES).energy)
        for sampler in (plain, guided)
    )
    assert after.mean() < before.mean()
    assert (after < before).sum() >= 3


def test_an_image_is_its_own_rows_alone(pipe: Any, folders: list[Path], seed: int) -> None:
    guide = load_teacher(_names(folders)["mean"])
    config = SamplerConfig(steps=4, compute_batch=4, guidance=_guidance(folders, {**BATCH_NORM, **DISAGREE}))
    sampler = FastSampler(pipe, config, guide)
    whole = sampler.sample(PROMPTS, CLASSES, _seeds(seed))
    order = [2, 0, 3, 1]
    moved = sampler.sample([PROMPTS[i] for i in order], [CLASSES[i] for i in order], [_seeds(seed)[i] for i in order])
    assert torch.equal(moved.latents, whole.latents[order]) and torch.equal(moved.energy, whole.energy[:, order])
    alone = sampler.sample(PROMPTS[2:3], CLASSES[2:3], _seeds(seed)[2:3])  # padded
    assert torch.equal(alone.latents, whole.latents[2:3]) and torch.equal(alone.energy, whole.energy[:, 2:3])


def test_the_labels_energy_is_the_terms(folders: list[Path], seed: int) -> None:
    guide, guidance = load_teacher(_names(folders)["worst"]), _guidance(folders, {**BATCH_NORM, **DISAGREE})
    images = torch.randint(0, 256, (3, 3, 32, 32), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    labels = Labeller(guide, guidance, 4)(images, CLASSES[:3])
    found = guide.energy_and_grad(images.float() / 255, torch.tensor(CLASSES[:3]), guidance_term(guidance, guide))
    torch.testing.assert_close(torch.tensor(labels.energy), found.energy, rtol=1e-4, atol=1e-4)
    logits = guide.outputs(images.float() / 255).logits
    torch.testing.assert_close(torch.from_numpy(labels.logits).float(), logits, rtol=2**-10, atol=1e-3)


def test_a_student_is_loaded_once_a_sampler(
    pipe: Any, folders: list[Path], teacher: EagerTeacher, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    loaded: list[str] = []
    load = sampling_energy.load_student
    monkeypatch.setattr(sampling_energy, "load_student", lambda *given: loaded.append(given[0]) or load(*given))
    sampler = FastSampler(pipe, SamplerConfig(steps=2, compute_batch=4, guidance=_guidance(folders, DISAGREE)), teacher)
    for _ in range(2):
        sampler.sample(PROMPTS, CLASSES, _seeds(seed))
    assert loaded == [str(folders[2])]


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "options"), [("one", BATCH_NORM), ("worst", {**BATCH_NORM, **DISAGREE})], ids=str)
def test_captured_steps_are_those_that_are_called(
    tmp_path: Path, folders: list[Path], name: str, options: dict[str, Any], seed: int
) -> None:
    """On CUDA, with a teacher that resizes: neither hooks nor matrices keep a step from being captured."""
    own = tiny_pipeline(0)
    for network in (own.unet, own.vae, own.text_encoder):
        network.to("cuda")
    larger = save_tiny_teacher(tmp_path, seed=3, size=40)
    guide = load_teacher(_names([larger, *folders[1:]])[name], "cuda")
    config = SamplerConfig(steps=4, compute_batch=4, compile="off", guidance=_guidance(folders, options))
    sampler = FastSampler(own, config, guide)
    captured = sampler.sample(PROMPTS, CLASSES, _seeds(seed))
    assert len(sampler._graphs) == len(set(sampler._kinds)) and not captured.skipped.any()
    sampler._graphs._enabled = False
    called = sampler.sample(PROMPTS, CLASSES, _seeds(seed))
    assert torch.equal(captured.latents, called.latents) and torch.equal(captured.energy, called.energy)
