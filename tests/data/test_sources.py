"""Images that rows start from: what they are, whatever files they are in and wherever these lie."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from prism_fast.data.sources import SourceImages, load_source_models
from prism_fast.errors import UserError
from prism_fast.inversion.record import RECORD_FILE
from prism_fast.sampling.config import SamplerConfig
from prism_fast.sampling.image_to_image_config import ImageToImageConfig
from prism_fast.synthesis.config import SynthesisConfig
from prism_fast.synthesis.images import encode_image
from tests.data.sets import CLASSES, label_of, plain, write_set

NAMES = tuple(f"class {index}" for index in range(CLASSES))


def _noise(seed: int, count: int) -> Tensor:
    return torch.randint(0, 256, (count, 8, 8, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def _write(folder: Path, images: Tensor, classes: list[int], name: str = "{}.png") -> None:
    for row, (image, index) in enumerate(zip(images, classes, strict=True)):
        path = folder / f"{index:04d}" / name.format(row)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_image(image.numpy(), "png"))


def _open(folder: Path) -> SourceImages:
    return SourceImages(folder, CLASSES, NAMES)


def test_content_decides_and_place_does_not(tmp_path: Path, seed: int) -> None:
    images, classes = _noise(seed, 6), [0, 1, 1, 4, 4, 4]
    _write(tmp_path / "here", images, classes)
    _write(tmp_path / "there", images.flip(0), classes[::-1], "other {}.png")  # other names, in another order
    here, there = _open(tmp_path / "here"), _open(tmp_path / "there")
    assert here.fingerprint == there.fingerprint and len(here) == 6
    assert [here.count(index) for index in range(CLASSES)] == [1, 2, 0, 0, 3, 0, 0]
    for index in (1, 4):
        for place in range(here.count(index)):
            assert torch.equal(here.image(index, place), there.image(index, place))
    images[3, 0, 0, 0] ^= 1
    _write(tmp_path / "changed", images, classes)
    _write(tmp_path / "moved", _noise(seed, 6), [0, 1, 1, 4, 4, 5])
    assert len({_open(tmp_path / name).fingerprint for name in ("here", "changed", "moved")}) == 3


def test_shards_and_a_folder_of_the_same_images_are_the_same_sources(tmp_path: Path) -> None:
    write_set(tmp_path / "set", [10, 4], kind="png")
    shards = _open(tmp_path / "set")
    rows = range(len(shards))
    images = torch.stack([torch.from_numpy(plain(row).copy()) for row in rows])
    _write(tmp_path / "folder", images, [label_of(row) for row in rows])
    folder = _open(tmp_path / "folder")
    assert len(shards) == 14 and shards.fingerprint == folder.fingerprint
    assert torch.equal(shards.image(label_of(3), 0), folder.image(label_of(3), 0))


def test_what_is_no_source_is_refused(tmp_path: Path, seed: int) -> None:
    with pytest.raises(UserError, match="no folder"):
        _open(tmp_path / "nowhere")
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "a.png").write_bytes(encode_image(_noise(seed, 1)[0].numpy(), "png"))
    with pytest.raises(UserError, match="without a folder for each class"):
        _open(tmp_path / "flat")
    write_set(tmp_path / "set", [4])
    with pytest.raises(UserError, match=f"images of {CLASSES} classes, the vocabulary 3"):
        SourceImages(tmp_path / "set", 3, NAMES[:3])


def test_an_inversion_that_is_not_finished_is_refused(tmp_path: Path, seed: int) -> None:
    _write(tmp_path, _noise(seed, 2), [0, 1])
    record = {"config": {}, "teacher": "x", "environment": {}, "complete": False, "groups": {}}
    (tmp_path / RECORD_FILE).write_text(json.dumps(record))
    with pytest.raises(UserError, match="not all there: the same prism-fast invert finishes them"):
        _open(tmp_path)
    (tmp_path / RECORD_FILE).write_text(json.dumps({**record, "complete": True}))
    assert len(_open(tmp_path)) == 2
    (tmp_path / RECORD_FILE).write_text("{}")
    with pytest.raises(UserError, match="is damaged"):
        _open(tmp_path)
    shutil.rmtree(tmp_path)


def test_a_synthesis_without_its_source_is_refused() -> None:
    config = SynthesisConfig(sampler=SamplerConfig(image_to_image=ImageToImageConfig()))
    with pytest.raises(UserError, match=r"sampler\.image_to_image\.source is not given"):
        load_source_models(config)
