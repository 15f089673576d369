"""Extractors by name, Inception among them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from prism_fast.errors import UserError
from prism_fast.metrics.features import features
from prism_fast.teachers.extractors import load_extractor
from tests.tiny import save_tiny_teacher


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.nn.Module, Path]:
    """torch-fidelity's network with random weights, and these as ``prism-fast teacher import`` writes them."""
    from torch_fidelity import feature_extractor_inceptionv3 as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(torch.nn.Module, "load_state_dict", lambda *_, **__: None)
        network = module.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    folder = tmp_path_factory.mktemp("inception")
    save_file(network.state_dict(), folder / "model.safetensors")
    return network, folder


def test_inceptions_features_are_torch_fidelitys(
    inception: tuple[torch.nn.Module, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    network, folder = inception
    images = torch.randint(0, 256, (2, 3, 20, 24), dtype=torch.uint8)
    found = load_extractor(f"inception@{folder}")
    got = features(found, images)
    assert got.shape == (2, 2048) and got.equal(network(images)[0])
    monkeypatch.setenv("PRISM_FAST_CACHE", str(folder.parent))
    folder.with_name("inception").symlink_to(folder)
    assert load_extractor("inception").fingerprint == found.fingerprint


def test_inception_without_its_weights_says_where_they_are(
    inception: tuple[torch.nn.Module, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRISM_FAST_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="prism-fast teacher import"):
        load_extractor("inception")
    tensors = load_file(inception[1] / "model.safetensors")
    tensors.pop("fc.bias")
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"cannot load .*fc\.bias"):
        load_extractor(f"inception@{tmp_path}")
    (tmp_path / "model.safetensors").rename(tmp_path / "model.pth")
    with pytest.raises(UserError):
        load_extractor(f"inception@{tmp_path}")


def test_a_classifier_is_an_extractor(tmp_path: Path) -> None:
    judge = load_extractor(str(save_tiny_teacher(tmp_path / "judge")))
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    assert features(judge, images).shape[0] == 3
