from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

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
    with pytest.raises(UserError, match=f"{name}.*prism-fast teacher import"):
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
    with pytest.raises(UserError, match="not valid JSON"):
        load_teacher(str(tmp_path))
    (tmp_path / "model.safetensors").rename(tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="rename"):
        load_teacher(str(tmp_path))


def test_unknown_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="did you mean fashion"):
        load_teacher("fashon")
    with pytest.raises(UserError, match="did you mean imagenet"):
        load_teacher("imagnet")
    with pytest.raises(UserError, match="no such teacher folder"):
        load_teacher(str(tmp_path / "nowhere"))
    monkeypatch.setitem(load.BUILT_IN, "fashion", "not/there")
    with pytest.raises(UserError, match="train it"):
        load_teacher("fashion")


def test_a_timm_name_takes_only_safetensors_from_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The download asks for two files by name; what comes is loaded like a local folder."""
    import huggingface_hub

    asked = []

    def fetched(repository: str, *, revision: str | None, allow_patterns: list[str], local_files_only: bool) -> str:
        assert not local_files_only
        asked.append((repository, revision, allow_patterns))
        return str(folder)

    monkeypatch.setattr(load, "why_unreachable", lambda *_: None)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetched)
    load_teacher("resnet18.a1_in1k")
    load_teacher("hf-hub:org/name@v2")
    files = ["config.json", "model.safetensors"]
    assert asked == [("timm/resnet18.a1_in1k", None, files), ("org/name", "v2", files)]


def test_an_unreachable_hub_is_one_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' ``HF_HUB_OFFLINE`` stands for a missing network."""
    import huggingface_hub

    with pytest.raises(UserError, match=r"teacher 'org/name' .* cannot be reached \(.*offline.*connect to the network"):
        load_teacher("hf-hub:org/name")

    def cached(*args: object, local_files_only: bool, **kwargs: object) -> str:
        assert local_files_only
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", cached)
    assert load_teacher("hf-hub:org/name").fingerprint == load_teacher(str(folder)).fingerprint


BAD_CONFIGURATIONS: dict[str, tuple[dict[str, Any], str]] = {
    "no architecture": ({"architecture": None}, "no 'architecture', timm's name"),
    "arguments that are no object": ({"model_args": [1]}, "model_args in its config.json is"),
    "a stem of nothing": ({"model_args": {"channels": [8, 8, 16, 16], "stem_width": 0}}, "cannot load"),
    "one layer": ({"model_args": {"layers": [1]}}, "cannot load"),
    "groups that do not divide": ({"model_args": {"cardinality": 0}}, "cannot load"),
    "a settings text": ({"pretrained_cfg": "foo"}, "pretrained_cfg in its config.json is 'foo'"),
    "a label number": ({"label_names": [1] * 10}, "label_names"),
    "two sides": ({"input_size": [28, 28]}, r"input_size is .*28, 28.*expected \[3, height, width\]"),
    "no pixels": ({"input_size": [3, 0, 0]}, "input_size is"),
    "half a pixel": ({"input_size": [3, 2.5, 2]}, "input_size is"),
    "a text of pixels": ({"input_size": "big"}, "input_size is|cannot load"),
    "mean as text": ({"mean": "foo"}, "teacher in .*three numbers each.*; correct its config.json"),
    "three labels": ({"label_names": ["a", "b", "c"]}, "10 classes but 3 label names; correct its config.json"),
    "mean of texts": ({"mean": ["a", "b", "c"]}, "three numbers each"),
    "grey": (
        {"model_args": {"channels": [8, 8, 16, 16], "stem_width": 8, "in_chans": 1}},
        "cannot load|channels|pixels",
    ),
    "another head": (
        {"model_args": {"channels": [8, 8, 16, 16], "stem_width": 8, "num_classes": 4}},
        "ask for 4 classes, its weights have 10|cannot load",
    ),
}


@pytest.mark.parametrize("case", BAD_CONFIGURATIONS)
def test_configurations_that_do_not_fit(tmp_path: Path, case: str) -> None:
    changes, message = BAD_CONFIGURATIONS[case]
    config = json.loads((save_tiny_teacher(tmp_path) / "config.json").read_text())
    for key, value in changes.items():
        own = key in config or key == "label_names"
        (config if own else config["pretrained_cfg"])[key] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        load_teacher(str(tmp_path))


@pytest.mark.parametrize("content", ["[1]", "null", "\xff", "[" * 100_000])
def test_configurations_that_are_none(tmp_path: Path, content: str) -> None:
    (save_tiny_teacher(tmp_path) / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match="save or download it again"):
        load_teacher(str(tmp_path))


def test_one_output_is_no_teacher(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has one output, as sigmoid teachers of two classes have"):
        load_teacher(str(save_tiny_teacher(tmp_path, num_classes=1)))


@pytest.mark.parametrize("key", ["fc.bias", "layer1.0.conv1.weight"])
def test_weights_are_whole(tmp_path: Path, key: str) -> None:
    file = save_tiny_teacher(tmp_path) / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    save_file({name: tensor for name, tensor in tensors.items() if name != key}, file)
    with pytest.raises(UserError, match=key):
        load_teacher(str(tmp_path))
    save_file(tensors | {"foreign": torch.zeros(1)}, file)
    with pytest.raises(UserError, match="foreign"):
        load_teacher(str(tmp_path))
