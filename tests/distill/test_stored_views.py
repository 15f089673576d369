"""A stored label belongs to its stored crop, and nothing else can be put in its place."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from prism_fast.data.augment_config import AugmentConfig
from prism_fast.distill.images import MemoryImages
from prism_fast.distill.stored_views import StoredViews, write_views
from prism_fast.distill.targets import ViewLoader
from prism_fast.distill.trainer import train
from prism_fast.errors import UserError
from tests.distill.doubles import ColourTeacher, coloured_images, tiny_config

AUGMENT = AugmentConfig(pad=2, crop_scale=0.4, mixup=0.3, views=3)
CPU = torch.device("cpu")


def _source(seed: int) -> MemoryImages:
    return MemoryImages(*coloured_images(seed, 24), num_classes=4)


def _write(path: Path, seed: int, top_k: int | None = None) -> Path:
    source = _source(seed)
    loader = ViewLoader(tiny_config(path, augment=AUGMENT, seed=seed), source, ColourTeacher(), CPU)
    write_views(path, AUGMENT, source, "colours", top_k, loader.labelled)
    return path


def _stored(path: Path, **changes: Any) -> Any:
    out = path.with_name("out")
    return tiny_config(
        out, **{"targets": "views", "views": str(path), "augment": AUGMENT, "teacher": "none", **changes}
    )


def test_the_label_is_the_teachers_of_that_crop(seed: int, tmp_path: Path) -> None:
    path = _write(tmp_path / "views.safetensors", seed)
    loader = ViewLoader(_stored(path, seed=seed + 1), _source(seed), None, CPU)  # the file's views, not the seed's
    rows = torch.randperm(24, generator=torch.Generator().manual_seed(seed))[:9]
    for view in (2, 0, 1):
        batch = loader.load(view, rows)
        assert torch.allclose(batch.targets, ColourTeacher().outputs(batch.images).logits, atol=2e-2)  # fp16
        assert loader.number(view + 3) == view
    assert not torch.allclose(loader.load(0, rows).images, loader.load(1, rows).images)


def test_a_student_of_stored_views_is_that_of_the_same_views_asked(seed: int, tmp_path: Path) -> None:
    path = _write(tmp_path / "views.safetensors", seed)
    stored = train(_stored(path), _source(seed), None)
    asked = tiny_config(tmp_path / "asked", augment=AUGMENT, seed=seed)
    same = train(dataclasses.replace(_stored(path), out=str(tmp_path / "same"), seed=seed), _source(seed), None)
    online = train(asked, _source(seed), ColourTeacher())
    assert same.history["loss"] == pytest.approx(online.history["loss"], rel=5e-2, abs=1e-3)
    assert stored.steps == 12


def test_the_largest_logits_alone(seed: int, tmp_path: Path) -> None:
    path = _write(tmp_path / "views.safetensors", seed, top_k=2)
    batch = ViewLoader(_stored(path), _source(seed), None, CPU).load(1, torch.arange(8))
    right = ColourTeacher().outputs(batch.images).logits.softmax(1)
    found = batch.targets.softmax(1)
    largest = right.topk(2, 1).indices
    assert torch.allclose(found.gather(1, largest), right.gather(1, largest), atol=1e-2)
    with pytest.raises(UserError, match="top_k is 4"):
        _write(tmp_path / "more.safetensors", seed, top_k=4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"augment": dataclasses.replace(AUGMENT, crop_scale=0.5)}, r"made with augment\.crop_scale 0\.4"),
        ({"augment": AugmentConfig(views=3)}, r"augment\.crop_scale 0\.4, augment\.mixup 0\.3"),
        ({"views": "nowhere.safetensors"}, "no such file of views"),
    ],
)
def test_other_views_are_refused(changes: dict[str, Any], message: str, seed: int, tmp_path: Path) -> None:
    path = _write(tmp_path / "views.safetensors", seed)
    with pytest.raises(UserError, match=message):
        train(_stored(path, **changes), _source(seed), None)
    assert not (tmp_path / "out").exists()


def test_another_set_is_refused(seed: int, tmp_path: Path) -> None:
    path = _write(tmp_path / "views.safetensors", seed)
    with pytest.raises(UserError, match="another set of images"):
        train(_stored(path), _source(seed + 1), None)


def test_another_file_is_another_run(seed: int, tmp_path: Path) -> None:
    path = _write(tmp_path / "views.safetensors", seed)
    train(_stored(path), _source(seed), None)
    other = _write(tmp_path / "other.safetensors", seed, top_k=2)
    with pytest.raises(UserError, match="holds another run"):
        train(_stored(other), _source(seed), None)


def test_damaged_files_are_told(seed: int, tmp_path: Path) -> None:
    path = _write(tmp_path / "views.safetensors", seed)
    tensors = load_file(path)
    with safe_open(path, framework="pt") as stream:
        about = stream.metadata()
    bad = tmp_path / "bad.safetensors"
    for name, change, message in [
        ("short", {"1/logits": tensors["1/logits"][:5]}, "does not hold 3 views of 24 images"),
        ("shifted", {"2/shift": tensors["2/shift"][1:].clone()}, "does not hold"),
        ("foreign", {"1/colour": tensors["1/flip"].clone()}, "does not hold"),
        ("cut", None, "damaged"),
        ("text", None, "damaged"),
    ]:
        bad.unlink(missing_ok=True)
        if change is not None:
            save_file({**tensors, **change}, bad, metadata=about)
        else:
            bad.write_bytes(path.read_bytes()[:900] if name == "cut" else b"text")
        with pytest.raises(UserError, match=message):
            StoredViews(str(bad), AUGMENT, _source(seed))
    infinite = tensors["1/logits"].clone()
    infinite.view(torch.float16)[0, 0] = torch.inf
    bad.unlink()
    save_file({**tensors, "1/logits": infinite}, bad, metadata=about)
    with pytest.raises(UserError, match="not finite in view 1"):
        StoredViews(str(bad), AUGMENT, _source(seed)).logits(1, torch.arange(3))


def test_nothing_is_overwritten(seed: int, tmp_path: Path) -> None:
    path = _write(tmp_path / "views.safetensors", seed)
    before = path.read_bytes()
    with pytest.raises(UserError, match="exists already"):
        _write(path, seed)
    assert path.read_bytes() == before
