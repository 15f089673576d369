"""A network of grey images behind three channels."""

from __future__ import annotations

import copy

import torch
from PIL import Image

from prism_fast.energy.terms import guidance_energy
from prism_fast.teachers.eager import EagerTeacher
from prism_fast.teachers.fused import FusedGradient, raw_gradient
from prism_fast.teachers.grey import LUMA, grey_input


class Network(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Conv2d(1, 4, 3, stride=2)
        self.head = torch.nn.Linear(4, 5)

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        return self.body(images).tanh()

    def forward_head(self, maps: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        pooled = maps.mean((2, 3))
        return pooled if pre_logits else self.head(pooled)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(images))


def teacher(network: torch.nn.Module, dtype: torch.dtype = torch.float64) -> EagerTeacher:
    settings = {"mean": [0.3] * 3, "std": [0.2] * 3, "input_size": (12, 12), "num_classes": 5}
    return EagerTeacher(grey_input(network), **settings, dtype=dtype)  # type: ignore[arg-type]


def test_it_sees_the_luma_that_pil_makes() -> None:
    colours = (torch.rand(8, 8, 3) * 255).round().byte()
    pil = torch.tensor(list(Image.fromarray(colours.numpy()).convert("L").tobytes())).view(8, 8)
    ours = grey_input(torch.nn.Identity()).grey(colours.permute(2, 0, 1)[None].double())[0, 0]
    assert (ours - pil).abs().max() < 1.0  # PIL rounds to whole numbers
    assert abs(sum(LUMA) - 1) < 1e-12


def test_grey_images_pass_unchanged_and_preprocessing_commutes() -> None:
    network = Network().double()
    grey = torch.rand(3, 1, 12, 12, dtype=torch.float64)
    logits = teacher(copy.deepcopy(network)).outputs(grey.expand(-1, 3, -1, -1)).logits
    torch.testing.assert_close(logits, network((grey - 0.3) / 0.2), rtol=1e-6, atol=1e-6)  # luma's weights are fp32


def test_gradient_is_the_luma_of_the_networks() -> None:
    images = torch.rand(2, 3, 12, 12, dtype=torch.float64)
    targets = torch.tensor([1, 4])
    subject = teacher(Network().double())
    found = subject.energy_and_grad(images, targets, guidance_energy())
    images.requires_grad_()
    energy = guidance_energy().value(subject.outputs(images), targets)
    (truth,) = torch.autograd.grad(energy.sum(), images)
    torch.testing.assert_close(found.grad, truth)
    weights = torch.tensor(LUMA, dtype=torch.float64).view(1, 3, 1, 1)
    torch.testing.assert_close(
        found.grad / weights, (found.grad / weights)[:, :1].expand(-1, 3, -1, -1), rtol=1e-6, atol=1e-9
    )


def test_the_fused_gradient_sees_the_same() -> None:
    """What the fast levels use: it resizes and normalises three channels and calls the network itself."""
    raw, targets = 2 * torch.rand(3, 3, 20, 20) - 1, torch.tensor([0, 2, 4])
    subject = teacher(Network(), dtype=torch.float32)
    fused = raw_gradient(subject, low=-1.0, high=1.0, term=guidance_energy())
    assert isinstance(fused, FusedGradient)
    energy, gradient = fused(raw, targets)
    truth = subject.energy_and_grad((raw + 1) / 2, targets, guidance_energy())
    torch.testing.assert_close(energy, truth.energy)
    torch.testing.assert_close(gradient, truth.grad / 2)


def test_features_where_the_network_has_them() -> None:
    images = torch.rand(2, 3, 12, 12, dtype=torch.float64)
    subject = teacher(Network())
    features = subject.features(images)
    torch.testing.assert_close(subject.model.network.head(features), subject.outputs(images).logits)
    plain = grey_input(torch.nn.Sequential(torch.nn.Conv2d(1, 5, 12), torch.nn.Flatten()))
    assert not hasattr(plain, "forward_features")
