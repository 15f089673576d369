from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

from prism_fast.errors import UserError
from prism_fast.teachers import load
from prism_fast.teachers.load import load_teacher
from tests.tiny import save_tiny_teacher


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_teacher(tmp_path_factory.mktemp("a folder"))


@pytest.mark.parametrize("prefix", ["", "local-dir:"])
def test_a_local_folder_is_timms_model(folder: Path, prefix: str, seed: int) -> None:
    teacher = load_teacher(f"{prefix}{folder}")
    assert teacher.num_classes == 10 and teacher.input_size == (32, 32)
    assert teacher.label_names is not None and teacher.label_names[3] == "class 3"
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    model = timm.create_model(f"local-dir:{folder}").eval()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    torch.testing.assert_close(teacher.outputs(images).logits, model((images - 0.5) / 0.25).detach())
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    torch.testing.assert_close(teacher.model.get_classifier()(teacher.features(images)), teacher.outputs(images).logits)


def test_number_of_classes_comes_from_the_folder(tmp_path: Path) -> None:
    assert load_teacher(str(save_tiny_teacher(tmp_path, num_classes=7))).num_classes == 7


def test_fingerprint_is_of_the_weights(folder: Path, tmp_path: Path) -> None:
    assert load_teacher(str(folder)).fingerprint == load_teacher(str(folder)).fingerprint
    assert load_teacher(str(save_tiny_teacher(tmp_path, seed=5))).fingerprint != load_teacher(str(folder)).fingerprint


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "last.ckpt"])
def test_pickled_weights_are_never_opened(tmp_path: Path, name: str) -> None:
    save_tiny_teacher(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / name).write_bytes(b"not even a pickle")
    with pytest.raises(UserError, match=f"{name}.*save_file"):
        load_teacher(str(tmp_path))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pth", "a.pth", "z.bin"])
def test_pickled_weights_beside_good_ones_are_not_opened(tmp_path: Path, name: str) -> None:
    """timm 1.0.20 would take them."""
    save_tiny_teacher(tmp_path)
    expected = load_teacher(str(tmp_path)).fingerprint
    (tmp_path / name).write_bytes(b"not even a pickle")
    assert load_teacher(str(tmp_path)).fingerprint == expected


def test_broken_folders_name_the_cure(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json"):
        load_teacher(str(tmp_path))
    save_tiny_teacher(tmp_path)
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[:1000])
    with pytest.raises(UserError, match="cannot load"):
        load_teacher(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(weights)
    config = json.loads((tmp_path / "config.json").read_text())
    for change in ({"architecture": "resnet_that_is_not"}, {"num_classes": 3}, {"model_args": {"channels": [4] * 4}}):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(UserError, match="cannot load"):
            load_teacher(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="cannot load"):
        load_teacher(str(tmp_path))
    (tmp_path / "model.safetensors").rename(tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="rename"):
        load_teacher(str(tmp_path))


def test_unknown_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="did you mean fashion"):
        load_teacher("fashon")
    with pytest.raises(UserError, match="no such teacher folder"):
        load_teacher(str(tmp_path / "nowhere"))
    monkeypatch.setitem(load.BUILT_IN, "fashion", "not/there")
    with pytest.raises(UserError, match="train it"):
        load_teacher("fashion")


def test_a_timm_name_takes_only_safetensors_from_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The download asks for two files by name; what comes is loaded like a local folder."""
    import huggingface_hub

    asked = []

    def fetched(repository: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((repository, revision, allow_patterns))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetched)
    load_teacher("resnet18.a1_in1k")
    load_teacher("hf-hub:org/name@v2")
    files = ["config.json", "model.safetensors"]
    assert asked == [("timm/resnet18.a1_in1k", None, files), ("org/name", "v2", files)]


def test_an_unreachable_hub_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def unreachable(*args: object, **kwargs: object) -> str:
        raise OSError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(UserError, match="no route"):
        load_teacher("hf-hub:org/name")
