"""The teacher's back-end in the sampler: the same steps, decided once, refused where it is not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from prism_fast.config import content_hash
from prism_fast.energy.terms import guidance_energy
from prism_fast.errors import UserError
from prism_fast.sampling import fast
from prism_fast.sampling.config import GuidanceConfig, SamplerConfig
from prism_fast.sampling.fast import FastSampler
from prism_fast.sampling.guidance import GateThresholds
from prism_fast.sampling.levels import make_sampler
from prism_fast.sampling.reference import ReferenceSampler
from prism_fast.sampling.serving import is_capturable, resolved, serving
from prism_fast.synthesis.config import SynthesisConfig, identity
from prism_fast.teachers import choice
from prism_fast.teachers.backend import BackendTeacher
from prism_fast.teachers.eager import EagerTeacher
from prism_fast.teachers.ensemble import EnsembleTeacher
from prism_fast.teachers.load import load_teacher
from tests.synthesis.doubles import ColourTeacher
from tests.tiny import save_tiny_teacher, tiny_pipeline

PROMPTS, CLASSES = ["a photo of a coat", "a dark boot", "jumper"], [4, 9, 2]
GATE = GateThresholds(tau=(-1.0,) * 10, delta=(2.0,) * 10)


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny_pipeline(0)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> EagerTeacher:
    return load_teacher(str(save_tiny_teacher(tmp_path_factory.mktemp("teacher"))))


def _config(backend: Any, **options: Any) -> SamplerConfig:
    return SamplerConfig(steps=4, compute_batch=4, guidance=GuidanceConfig(backend=backend), **options)


@pytest.mark.usefixtures("shared_exports")
def test_onnx_follows_the_eager_gradient_step_by_step(pipe: Any, teacher: EagerTeacher, seed: int) -> None:
    rows = PROMPTS, CLASSES, [seed, seed + 1, seed + 2]
    states: list[Tensor] = []
    reference = ReferenceSampler(pipe, _config("eager", level="reference"), teacher, GATE)
    reference.sample(*rows, lambda sample, _: states.append(sample))
    eager = FastSampler(pipe, _config("eager"), teacher, GATE).follow(*rows, states)
    sampler = make_sampler(pipe, _config("onnx"), teacher, GATE)
    assert isinstance(sampler, FastSampler) and isinstance(sampler._teacher, BackendTeacher)
    assert sampler._teacher.name == "onnx"
    for (gradient, after), (truth, then) in zip(sampler.follow(*rows, states), eager, strict=True):
        assert gradient is not None and truth is not None
        cosine = torch.cosine_similarity(gradient.flatten(1).double(), truth.flatten(1).double())
        assert cosine.median() > 1 - 1e-6, cosine
        assert (after - then).flatten(1).abs().amax(1).median() <= 1e-5 * then.abs().max()


def test_the_reference_loop_is_eager(pipe: Any) -> None:
    for backend in ("auto", "onnx"):
        with pytest.raises(ValueError, match=f"guidance.backend: {backend} exists above level: reference"):
            _config(backend, level="reference")
    with pytest.raises(ValueError, match=r"guidance\.backend must be one of auto, eager"):
        GuidanceConfig(backend="onx")  # type: ignore[arg-type]


def test_auto_is_replaced_by_what_it_chose(teacher: EagerTeacher, monkeypatch: pytest.MonkeyPatch) -> None:
    found = resolved(_config("auto"), teacher).guidance
    assert found == GuidanceConfig(backend="onnx")
    assert resolved(_config("auto"), ColourTeacher()).guidance == GuidanceConfig()
    assert resolved(SamplerConfig(), teacher) == SamplerConfig()
    with pytest.raises(UserError, match="onnx is for plain classifiers"):
        resolved(_config("onnx"), ColourTeacher())
    monkeypatch.setattr(choice, "why_not", lambda *_: "it is not installed")
    assert resolved(_config("auto"), teacher).guidance == GuidanceConfig()
    with pytest.raises(UserError, match="onnx is not usable for this teacher: it is not installed"):
        resolved(_config("onnx"), teacher)


def test_a_teacher_on_a_backend_stays_there(teacher: EagerTeacher) -> None:
    served = serving(teacher, _config("onnx"))
    assert serving(served, _config("compiled")) is served
    assert serving(teacher, _config("eager")) is teacher
    assert serving(teacher, SamplerConfig()) is teacher
    assert not is_capturable(served) and is_capturable(teacher) and is_capturable(None)


@pytest.mark.usefixtures("shared_exports")
def test_what_cannot_be_captured_is_not(pipe: Any, teacher: EagerTeacher, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on CUDA, of which only the graphs are asked for."""
    asked: list[bool] = []

    class Watched(fast.Captured):
        def __init__(self, state: Any, enabled: bool) -> None:
            asked.append(enabled)
            super().__init__(state, False)

    monkeypatch.setattr(fast, "Captured", Watched)
    for backend in ("eager", "onnx"):
        sampler = FastSampler(pipe, _config(backend), teacher, GATE)
        sampler._cuda = True
        sampler._copies = type(sampler._copies)(False)
        sampler._prepare()
    assert asked == [False, True, False, False]


def test_sets_of_before_keep_their_hash() -> None:
    plain = SynthesisConfig(sampler=SamplerConfig(guidance=GuidanceConfig()))
    assert "backend" not in identity(plain)["sampler"]["guidance"]
    other = replace(plain, sampler=_config("onnx"))
    assert content_hash(identity(other)) != content_hash(identity(replace(plain, sampler=_config("eager"))))


@pytest.mark.usefixtures("shared_exports")
def test_an_ensembles_members_are_on_the_backend_each(pipe: Any, teacher: EagerTeacher, seed: int) -> None:
    both = EnsembleTeacher([teacher, teacher], "worst")
    assert resolved(_config("auto"), both).guidance == GuidanceConfig(backend="onnx")
    served = serving(both, _config("onnx"))
    assert isinstance(served, EnsembleTeacher) and served.mode == "worst" and not is_capturable(served)
    assert all(isinstance(member, BackendTeacher) for member in served.members)
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    found, right = (one.energy_and_grad(images, torch.tensor([1, 2, 3]), guidance_energy()) for one in (served, both))
    assert torch.allclose(found.energy, right.energy, rtol=1e-4, atol=1e-4)
    mixed = EnsembleTeacher([ColourTeacher(), ColourTeacher()])
    assert resolved(_config("auto"), mixed).guidance == GuidanceConfig()
    assert serving(mixed, _config("eager")) is mixed


class RunsTwice(torch.nn.Module):
    """A batch-norm layer with two inputs in a forward."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = torch.nn.BatchNorm2d(3), torch.nn.Linear(3, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.norm(x)).mean((2, 3)))


def test_a_term_that_the_backend_lacks_is_refused_before_the_first_batch(pipe: Any, teacher: EagerTeacher) -> None:
    config = SamplerConfig(steps=4, compute_batch=4, guidance=GuidanceConfig(backend="onnx", bn_weight=0.1))
    twice = EagerTeacher(
        RunsTwice().eval(), mean=(0.5,) * 3, std=(0.25,) * 3, input_size=(32, 32), num_classes=teacher.num_classes
    )
    for one in (twice, EnsembleTeacher([twice])):
        with pytest.raises(UserError, match="bn:norm runs 2 times in a forward"):
            FastSampler(pipe, config, one, GATE)
        assert resolved(replace(config, guidance=GuidanceConfig(backend="auto", bn_weight=0.1)), one).guidance == (
            GuidanceConfig(backend="eager", bn_weight=0.1)
        )
