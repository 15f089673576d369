"""A user's own network: module, function, weights and settings, each of which can be wrong."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from prism_fast.energy.terms import guidance_energy
from prism_fast.errors import UserError
from prism_fast.prompts import load_vocabulary
from prism_fast.teachers.load import load_teacher
from prism_fast.teachers.own import is_own, with_weights
from tests.teachers import own_networks

SETTINGS = {
    "input_size": [16, 16],
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.25, 0.3],
    "classes": {0: {"name": "jumper", "gloss": "a knitted pullover."}, 1: "coat", 2: "bag", 3: "boot"},
}
MODULE = "networks_of_a_user"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder one is in, with code, weights and settings."""
    shutil.copy(own_networks.__file__, tmp_path / f"{MODULE}.py")
    save(own_networks.small(), tmp_path / "weights.safetensors")
    tell(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    yield tmp_path
    assert sys.path == before
    for name in (MODULE, "late_neighbour", "wrong_module"):
        sys.modules.pop(name, None)


def save(network: torch.nn.Module, file: Path) -> None:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_()
    save_file({name: tensor.clone() for name, tensor in network.state_dict().items()}, file)


def tell(folder: Path, **changes: Any) -> None:
    told = {name: value for name, value in {**SETTINGS, **changes}.items() if value is not None}
    (folder / "teacher.yaml").write_text(yaml.safe_dump(told))


def test_it_is_the_users_network(place: Path) -> None:
    teacher = load_teacher(f"{MODULE}:small", weights="weights.safetensors")
    assert teacher.num_classes == 4 and teacher.input_size == (16, 16)
    assert teacher.label_names == ("jumper", "coat", "bag", "boot")
    network = own_networks.small().eval()
    network.load_state_dict(load_file(place / "weights.safetensors"))
    images = torch.rand(3, 3, 16, 16)
    mean, std = (torch.tensor(SETTINGS[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    torch.testing.assert_close(teacher.outputs(images).logits, network((images - mean) / std).detach())
    assert not teacher.model.training


def test_every_way_to_say_it_is_the_same_teacher(place: Path) -> None:
    expected = load_teacher(f"{MODULE}:small", weights=place / "weights.safetensors").fingerprint
    assert load_teacher(f"{MODULE}:small@weights.safetensors").fingerprint == expected
    folder = place / "a folder @ home"
    folder.mkdir()
    shutil.copy("weights.safetensors", folder / "model.safetensors")
    shutil.copy("teacher.yaml", folder)
    assert load_teacher(f"{MODULE}:small@{folder}").fingerprint == expected
    (folder / "teacher.yaml").rename("other.yaml")
    assert load_teacher(f"{MODULE}:small", weights=folder, settings="other.yaml").fingerprint == expected
    tell(place, mean=[0.5, 0.5, 0.5])
    assert load_teacher(f"{MODULE}:small@weights.safetensors").fingerprint != expected


def test_a_network_of_one_channel_sees_the_luma(place: Path) -> None:
    save(own_networks.grey(), place / "weights.safetensors")
    tell(place, channels=1, mean=0.3, std=0.2)
    teacher = load_teacher(f"{MODULE}:grey@weights.safetensors")
    images = torch.rand(3, 3, 16, 16)
    network = own_networks.grey().eval()
    network.load_state_dict(load_file(place / "weights.safetensors"))
    luma = (images * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    torch.testing.assert_close(
        teacher.outputs(images).logits, network((luma - 0.3) / 0.2).detach(), rtol=1e-4, atol=1e-4
    )
    gradient = teacher.energy_and_grad(images, torch.tensor([0, 1, 2]), guidance_energy()).grad
    assert gradient.shape == images.shape and gradient.abs().amax((1, 2, 3)).gt(0).all()


def test_networks_in_other_precisions_are_widened(place: Path) -> None:
    teacher = load_teacher(f"{MODULE}:half@weights.safetensors")
    assert teacher.outputs(torch.rand(1, 3, 16, 16)).logits.dtype == torch.float32
    images = torch.rand(2, 3, 16, 16)
    exact = load_teacher(f"{MODULE}:small@weights.safetensors").outputs(images).logits
    assert torch.equal(teacher.outputs(images).logits, exact)  # the weights were never rounded
    assert load_teacher(f"{MODULE}:small@weights.safetensors", dtype=torch.bfloat16).dtype == torch.bfloat16


def test_neighbours_can_be_imported_late(place: Path) -> None:
    (place / "late_neighbour.py").write_text("import torch\nweights = 3 * torch.randn(3, 4)\n")
    save(own_networks.LateImport(), place / "weights.safetensors")
    assert load_teacher(f"{MODULE}:LateImport@weights.safetensors").num_classes == 4


def test_the_settings_are_a_vocabulary(place: Path) -> None:
    vocabulary = load_vocabulary(str(place / "teacher.yaml"))
    assert vocabulary.names == ("jumper", "coat", "bag", "boot")
    assert vocabulary.senses[0].phrase == "jumper, a knitted pullover"
    tell(place, classes=None)
    with pytest.raises(UserError, match="names no classes"):
        load_vocabulary(str(place / "teacher.yaml"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (f"{MODULE}:small", "needs weights: --weights FILE"),
        (f"{MODULE}:small@", "needs weights"),
        (f"{MODULE}:small@nowhere.safetensors", "no such weights: nowhere.safetensors"),
        (f"{MODULE}:small@.", "no such weights: model.safetensors"),
        ("no_such_module:small@weights.safetensors", "no module 'no_such_module', neither in /"),
        ("no_such_package.module:small@weights.safetensors", "no module 'no_such_package'"),
        (f"{MODULE}.inner:small@weights.safetensors", f"no module '{MODULE}.inner'"),
        (f"{MODULE}:smal@weights.safetensors", f"{MODULE} has no smal"),
        (f"{MODULE}:INSTANCE@weights.safetensors", "is of type Sequential: name a function without arguments"),
        (f"{MODULE}:NUMBER@weights.safetensors", "is of type int: name a function"),
        (f"{MODULE}:with_argument@weights.safetensors", "missing 1 required positional argument.*called without"),
        (f"{MODULE}:broken@weights.safetensors", r"broken\(\) failed \(ValueError"),
        (f"{MODULE}:no_network@weights.safetensors", r"no_network\(\) gave a str, not a torch.nn.Module"),
        (f"{MODULE}:grey@weights.safetensors", r"has 0.weight of shape \(6, 3, 3, 3\), the network has \(6, 1, 3, 3\)"),
        (f"{MODULE}:multi_label@weights.safetensors", "ends in a sigmoid, .*a multi-label teacher"),
        (f"{MODULE}:Tied@weights.safetensors", "lacks 4 of the network's 4 tensors .first: first.bias"),
    ],
)
def test_what_cannot_be_made_is_named(place: Path, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_teacher(name)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def f(:", "importing wrong_module failed .SyntaxError"),
        ("import no_such_neighbour", "importing wrong_module failed .ModuleNotFoundError.*no_such_neighbour"),
        ("x = undefined", "importing wrong_module failed .NameError"),
    ],
)
def test_modules_that_do_not_import(place: Path, code: str, message: str) -> None:
    (place / "wrong_module.py").write_text(code)
    with pytest.raises(UserError, match=message):
        load_teacher("wrong_module:f@weights.safetensors")


@pytest.mark.parametrize("name", ["x.pt", "x.pth", "x.bin", "x.ckpt"])
def test_pickled_weights_are_not_opened(place: Path, name: str) -> None:
    (place / name).write_bytes(b"not even a pickle")
    with pytest.raises(UserError, match=f"{name} is a pickle.*prism-fast teacher import {name} --out"):
        load_teacher(f"{MODULE}:small@{name}")


def test_weights_are_whole_and_no_more(place: Path) -> None:
    tensors = load_file(place / "weights.safetensors")
    for changed, message in (
        ({k: v for k, v in tensors.items() if k != "5.bias"}, "lacks 1 of the network's 9 tensors .first: 5.bias"),
        (tensors | {"6.bias": torch.zeros(4)}, "has 1 tensors that the network has not .first: 6.bias"),
        (
            tensors | {"5.bias": torch.zeros(4, dtype=torch.int64)},
            "5.bias in torch.int64, the network in torch.float32",
        ),
        (tensors | {"5.bias": torch.full((4,), float("nan"))}, "not finite: its weights are damaged"),
    ):
        save_file(changed, place / "weights.safetensors")
        with pytest.raises(UserError, match=message):
            load_teacher(f"{MODULE}:small@weights.safetensors")
    (place / "weights.safetensors").write_bytes(b"short")
    with pytest.raises(UserError, match="cut or no safetensors file"):
        load_teacher(f"{MODULE}:small@weights.safetensors")


def test_settings_have_to_fit(place: Path) -> None:
    name = f"{MODULE}:small@weights.safetensors"
    for changes, message in (
        ({"classes": ["a", "b", "c"]}, "expected one logit for each of its 3 classes"),
        ({"classes": None, "num_classes": 5}, "for each of its 5 classes"),
        ({"input_size": [2, 2]}, "cannot take images of 2x2 pixels .*correct teacher.yaml or the network"),
        ({"channels": 1, "mean": 0.3, "std": 0.2}, "cannot take images"),
        ({"activation": "sigmoid"}, "teacher.yaml: activation is 'sigmoid'"),
        ({"interpolation": "nearest"}, "interpolation is 'nearest'; it must be bilinear"),
        ({"inputsize": [16, 16]}, "no setting 'inputsize'; did you mean input_size"),
    ):
        tell(place, **changes)
        with pytest.raises(UserError, match=message):
            load_teacher(name)
    (place / "teacher.yaml").unlink()
    with pytest.raises(UserError, match=r"weights.safetensors has no teacher.yaml beside it: write one"):
        load_teacher(name)
    with pytest.raises(UserError, match=r"cannot read the configuration nowhere.yaml"):
        load_teacher(name, settings="nowhere.yaml")


def test_without_classes_the_network_says_how_many(place: Path) -> None:
    tell(place, classes=None)
    teacher = load_teacher(f"{MODULE}:small@weights.safetensors")
    assert teacher.num_classes == 4 and teacher.label_names is None


def test_weights_and_settings_are_for_own_networks_only() -> None:
    for extra in ({"weights": "x.safetensors"}, {"settings": "teacher.yaml"}):
        with pytest.raises(UserError, match=r"brings its own (weights|settings)"):
            load_teacher("fashion", **extra)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="names its weights already"):
        with_weights("a:b@c", "d")


def test_the_form_of_a_name() -> None:
    own = ["a:b", "a.b.c:d", "_a1:b2", "a:b@x y@z", "a:b@"]
    others = [
        "fashion",
        "a",
        "hf-hub:a/b",
        "local-dir:a",
        "./a:b",
        "a/b:c",
        "a.:b",
        ".a:b",
        "1a:b",
        "a:b c",
        "a:b.c",
        "a-b:c",
    ]
    assert [name for name in own if not is_own(name)] == []
    assert [name for name in others if is_own(name)] == []
