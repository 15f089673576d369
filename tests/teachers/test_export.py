"""Exported teachers in ONNX Runtime and TensorRT's builder, against fp64 autograd."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import timm
import torch
from torch import Tensor

from prism_fast.energy.terms import CrossEntropy, Entropy, FreeEnergy, JointEnergy, WeightedSum, guidance_energy
from prism_fast.errors import UserError
from prism_fast.teachers import export as export_module
from prism_fast.teachers import tensorrt
from prism_fast.teachers.asked import asked_of
from prism_fast.teachers.backend import BackendTeacher
from prism_fast.teachers.check import check_backend, judge, self_check
from prism_fast.teachers.choice import make_backend
from prism_fast.teachers.decompositions import RULES
from prism_fast.teachers.eager import EagerTeacher
from prism_fast.teachers.export import INPUTS, OUTPUTS, export, write
from prism_fast.teachers.joint import joint_module
from prism_fast.teachers.onnx import OnnxRunner
from prism_fast.teachers.truth import Truth, in_batches, relative, truth
from tests.exports import exported
from tests.teachers.networks import random_classifier

CPU = torch.device("cpu")
PIXELS = 64
SMALL = {
    "resnet18": {},
    "resnet26d": {},  # average pooling in its shortcuts
    "tf_efficientnet_lite0": {"shallow": True},
    "tf_efficientnet_b0": {"shallow": True},
    "mobilenetv3_small_050": {"shallow": True},
    "regnety_002": {},
    "convnext_atto": {},
    "vgg11_bn": {"mlp_ratio": 0.02},
    "vit_tiny_patch16_224": {"img_size": PIXELS, "depth": 2},
    "deit_tiny_distilled_patch16_224": {"img_size": PIXELS, "depth": 2},
    "swin_tiny_patch4_window7_224": {"img_size": PIXELS, "window_size": 4, "depths": (1, 2, 1, 1), "embed_dim": 24},
    "densenet121": {"growth_rate": 8, "block_config": (2, 2)},
}
FULL = (
    "resnet18", "resnet34", "resnet50", "tf_efficientnet_lite0", "tf_efficientnet_b0", "mobilenetv3_large_100",
    "regnety_008", "convnext_tiny", "densenet121", "vgg11_bn", "vit_tiny_patch16_224", "deit_small_patch16_224",
    "swin_tiny_patch4_window7_224",
)  # fmt: skip


def _teacher(name: str, seed: int, size: int = PIXELS, **options: Any) -> EagerTeacher:
    return random_classifier(name, seed, size, **options)


def _small_teacher(seed: int) -> EagerTeacher:
    return _teacher("resnet10t", seed, 32, channels=[8, 8, 16, 16], stem_width=8)


@pytest.mark.parametrize("name", SMALL)
def test_the_traced_gradient_is_autograds_in_fp64(name: str, seed: int) -> None:
    teacher = _teacher(name, seed, **SMALL[name])
    right = truth(teacher, 3, seed=seed)
    module = joint_module(teacher, teacher.input_size, torch.float64)
    asked = asked_of(right.term)
    with torch.no_grad():
        energy, gradient, _ = module(
            right.images.double(),
            torch.nn.functional.one_hot(right.targets, 7).double(),
            torch.tensor(asked.temperature, dtype=torch.float64),
            torch.tensor(asked.weights, dtype=torch.float64),
        )
    assert torch.allclose(energy, right.energy, rtol=1e-11, atol=1e-11)
    # rounding in another order, times the depth; torch's hardsigmoid has a slope of 1/6 in single precision
    assert float(relative(gradient, right.gradient).max()) <= (1e-7 if name.startswith("mobilenetv3") else 1e-9)


EVERY_DAY = ("resnet18", "mobilenetv3_small_050", "vit_tiny_patch16_224", "densenet121")
"""Of the small ones. The others are slow tests, and so is each network at full size."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in EVERY_DAY else pytest.mark.slow) for name in SMALL]
)
def test_onnx_runtime_gives_the_gradient_of_a_small_one_and_tensorrt_builds_it(name: str, seed: int) -> None:
    teacher = _teacher(name, seed, **SMALL[name])
    made = exported(teacher)
    verdict = self_check(made, teacher, 4)  # raises out of tolerance
    assert verdict.cosine >= 0.99
    assert len(tensorrt.build(made.model, tensorrt.Profile.around(4), (8, 6), "tensorrt-rtx")) > 10_000


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", FULL)
def test_onnx_runtime_gives_the_gradient_at_full_size(name: str, seed: int) -> None:
    """32 images; and TensorRT's builder takes the same graph."""
    size = timm.get_pretrained_cfg(name).input_size[1]
    teacher = _teacher(name, seed, size)
    made = export(teacher)
    verdict = self_check(made, teacher, 32)  # raises out of tolerance
    print(name, verdict)
    assert verdict.cosine >= 0.99
    assert len(tensorrt.build(made.model, tensorrt.Profile.around(8), (12, 0), "tensorrt-rtx")) > 1_000_000


def test_bfloat16_is_checked_in_pytorch_and_of_an_opset_that_has_it(seed: int) -> None:
    teacher = _teacher("resnet18", seed)
    made = exported(teacher, dtype="bfloat16")
    onnx.checker.check_model(onnx.load_from_string(made.model), full_check=True)
    assert self_check(made, teacher).passed


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_tensorrt_builds_engines_in_half_precision(name: str, dtype: str, seed: int) -> None:
    made = exported(_teacher(name, seed, **SMALL[name]), dtype=dtype)
    engine = tensorrt.build(made.model, tensorrt.Profile.around(4), (8, 6), "tensorrt-rtx")
    assert len(engine) > 10_000


def test_weights_are_in_the_file_once(seed: int) -> None:
    teacher = _teacher("resnet18", seed)
    weights = sum(value.numel() * 4 for value in teacher.model.state_dict().values() if value.is_floating_point())
    assert len(exported(teacher).model) < 1.05 * weights
    assert len(exported(teacher, dtype="float16").model) < 0.55 * weights


def test_the_models_inputs_and_outputs(seed: int) -> None:
    teacher = _teacher("resnet18", seed)
    model = onnx.load_from_string(export(teacher, (48, 80)).model)
    onnx.checker.check_model(model, full_check=True)
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in [*model.graph.input, *model.graph.output]
    }
    batch = shapes["images"][0]
    assert isinstance(batch, str) and list(shapes) == [*INPUTS, *OUTPUTS]
    assert shapes["images"] == shapes["grad"] == [batch, 3, 48, 80]
    assert shapes["targets"] == shapes["logits"] == [batch, 7] and shapes["energy"] == [batch]
    refused = {"Scatter", "ScatterElements", "ScatterND", "GatherElements", "ConvTranspose", "MaxUnpool", "Loop", "If"}
    assert not refused & {node.op_type for node in model.graph.node}
    assert all(len([name for name in node.output if name]) == 1 for node in model.graph.node if "Norm" in node.op_type)


def test_every_term_temperature_and_batch_size_from_one_file_with_a_resize(seed: int) -> None:
    teacher = _teacher("convnext_atto", seed)  # no kinks: images can be compared one by one
    made = make_backend(teacher, "onnx")
    assert isinstance(made, BackendTeacher)
    generator = torch.Generator().manual_seed(seed)
    for term in (
        guidance_energy(free_weight=0.3, class_weight=2.0, temperature=4.0),
        FreeEnergy(temperature=0.5),
        JointEnergy(),
        CrossEntropy(),
        Entropy(),
        WeightedSum(terms=(FreeEnergy(temperature=2.0), Entropy(), JointEnergy()), weights=(1.0, -0.5, 0.1)),
    ):
        for batch in (1, 5):
            images = torch.rand(batch, 3, 50, 90, generator=generator)
            targets = torch.randint(7, (batch,), generator=generator)
            found, right = made.energy_and_grad(images, targets, term), teacher.energy_and_grad(images, targets, term)
            assert found.energy.shape == (batch,) and found.grad.shape == images.shape
            assert torch.allclose(found.energy, right.energy, rtol=1e-4, atol=1e-4)
            assert torch.allclose(found.outputs.logits, right.outputs.logits, rtol=1e-4, atol=1e-4)
            assert float(relative(found.grad, right.grad).median()) < 1e-4
    assert len(made._runners) == 1


@pytest.mark.usefixtures("shared_exports")
def test_results_are_the_callers_to_keep(seed: int) -> None:
    made = make_backend(_teacher("resnet18", seed), "onnx")
    images, targets = torch.rand(2, 3, PIXELS, PIXELS), torch.tensor([1, 2])
    first = made.energy_and_grad(images, targets, guidance_energy())
    kept = first.grad.clone(), first.energy.clone()
    made.energy_and_grad(images.flip(0), targets, guidance_energy())
    assert torch.equal(first.grad, kept[0]) and torch.equal(first.energy, kept[1])


def test_a_term_that_is_not_in_the_graph_is_refused() -> None:
    class Other:
        pass

    with pytest.raises(UserError, match="Other is not among the terms"):
        asked_of(Other())  # type: ignore[arg-type]
    two = WeightedSum(terms=(FreeEnergy(temperature=1.0), FreeEnergy(temperature=2.0)), weights=(1.0, 1.0))
    with pytest.raises(UserError, match="one temperature"):
        asked_of(two)


def test_a_wrong_gradient_is_found_and_no_file_is_written(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    relu = RULES["aten::relu"]

    def wrong(x: Tensor) -> Any:
        y, pull = relu(x)
        return y, lambda g: (1.01 * pull(g)[0],)

    monkeypatch.setitem(RULES, "aten::relu", wrong)
    with pytest.raises(UserError, match="another gradient than autograd"):
        export(_small_teacher(seed))
    monkeypatch.setattr(export_module, "prove", lambda *_: None)  # as if the runtime, and not a rule, were wrong
    teacher = _small_teacher(seed)
    with pytest.raises(UserError, match=r"out of tolerance .* was not written"):
        self_check(export(teacher), teacher)


def test_a_median_out_of_tolerance_is_not_excused_by_one_kink() -> None:
    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn(32, 3, 4, 4, generator=generator, dtype=torch.float64)
    right = Truth(
        images=torch.zeros(32, 3, 4, 4), targets=torch.zeros(32, dtype=torch.int64), term=guidance_energy(),
        energy=torch.zeros(32, dtype=torch.float64), gradient=gradient,
    )  # fmt: skip
    energy, off = right.energy, gradient * (1 + 9e-5)
    off[0] *= 1.01
    explained = judge("onnx", energy, off, right, lambda *_: gradient[:1])
    assert (explained.outliers, explained.explained) == (1, 1) and not explained.passed
    near = gradient * (1 + 9e-6)
    near[0] *= 1.01
    assert judge("onnx", energy, near, right, lambda *_: gradient[:1]).passed


def test_the_file_is_new_and_whole(tmp_path: Path, seed: int) -> None:
    made = exported(_teacher("resnet18", seed))
    write(made, tmp_path / "a.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == made.model
    with pytest.raises(UserError, match="exists already"):
        write(made, tmp_path / "a.onnx")


def test_a_network_that_cannot_be_traced_is_refused_with_a_reason() -> None:
    class Odd(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3)) if float(x.sum()) > 0 else x.amax((2, 3))

    teacher = EagerTeacher(Odd(), mean=(0, 0, 0), std=(1, 1, 1), input_size=(8, 8), num_classes=3)
    with pytest.raises(UserError, match=r"Odd cannot be traced for export .*: take the eager or compiled back-end"):
        export(teacher)


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_fp16_inside_is_as_near_as_eager_fp16(name: str, seed: int) -> None:
    teacher = _teacher(name, seed, **SMALL[name])
    verdict = self_check(exported(teacher, dtype="float16"), teacher)
    assert verdict.passed


def test_fp16_does_not_lose_small_gradients(seed: int) -> None:
    """A certain answer has cotangents of 1e-7, which fp16 would flush to zero."""
    teacher = _teacher("resnet18", seed)
    runner = OnnxRunner(exported(teacher, dtype="float16"), CPU)
    made = BackendTeacher(teacher, "onnx", lambda *_: runner, capturable=False)
    images, targets = torch.rand(4, 3, PIXELS, PIXELS), torch.tensor([0, 1, 2, 3])
    small = WeightedSum(terms=(CrossEntropy(),), weights=(1e-7,))
    right = teacher.energy_and_grad(images, targets, small)
    cosine = torch.nn.functional.cosine_similarity(
        made.energy_and_grad(images, targets, small).grad.flatten(1), right.grad.flatten(1)
    )
    assert float(cosine.min()) > 0.99


def test_compiled_agrees_with_fp64(seed: int) -> None:
    teacher = _teacher("resnet18", seed)
    assert check_backend(teacher, "compiled", truth(teacher, 4, seed=seed), batch=4).passed


def test_the_verdict_notices_what_is_wrong(seed: int) -> None:
    teacher = _teacher("convnext_atto", seed)  # no kinks
    right = truth(teacher, 4, seed=seed)
    energy, gradient = in_batches(teacher.energy_and_grad, right.images, right.targets, right.term, 4)
    assert judge("eager", energy, gradient, right).passed
    assert not judge("eager", energy + 0.01, gradient, right).passed
    assert not judge("eager", energy, gradient * 1.001, right).passed
    turned = gradient.clone()
    turned[0] = turned[0].flip(-1)
    assert not judge("eager", energy, turned, right).passed
    assert not judge("eager", energy, torch.full_like(gradient, torch.nan), right).passed


def test_exporting_prints_nothing(capfd: pytest.CaptureFixture[str], seed: int) -> None:
    export(_small_teacher(seed))
    assert capfd.readouterr().out == ""


def test_the_opset_is_one_that_both_runtimes_read(seed: int) -> None:
    model = onnx.load_from_string(exported(_teacher("resnet18", seed)).model)
    assert {entry.domain: entry.version for entry in model.opset_import}[""] == export_module.OPSET
