"""The target of a view is the target of exactly that view."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from prism_fast.data.augment_config import AugmentConfig
from prism_fast.distill.images import MemoryImages
from prism_fast.distill.targets import ViewLoader
from prism_fast.errors import UserError
from tests.distill.doubles import ColourTeacher, coloured_images, tiny_config

_CPU = torch.device("cpu")


def _source(seed: int, stored: bool = False) -> MemoryImages:
    images, labels = coloured_images(seed, 40)
    logits = torch.randn(40, 4, generator=torch.Generator().manual_seed(seed)).half() if stored else None
    return MemoryImages(images, labels, logits, num_classes=4)


@pytest.mark.parametrize("views", [None, 3])
@pytest.mark.parametrize("mixup", [0.0, 0.5])
def test_online_targets_are_the_teachers_opinion_of_the_view(
    views: int | None, mixup: float, seed: int, tmp_path: Any
) -> None:
    config = tiny_config(tmp_path, augment=AugmentConfig(pad=4, crop_scale=0.5, mixup=mixup, views=views), batch=7)
    teacher = ColourTeacher()
    loader = ViewLoader(config, _source(seed), teacher, _CPU)
    for view in (0, 2, 0):
        rows = torch.randperm(40, generator=torch.Generator().manual_seed(view))[:9]
        batch = loader.load(view, rows)
        images, targets = batch.images, batch.targets
        assert images.shape == (9, 3, 16, 16) and targets.shape == (9, 4)
        assert torch.allclose(targets, ColourTeacher().outputs(images).logits, atol=1e-5)
    assert not torch.allclose(loader.load(0, rows).images, loader.load(1, rows).images)


def test_each_kept_view_is_asked_once(seed: int, tmp_path: Any) -> None:
    config = tiny_config(tmp_path, augment=AugmentConfig(views=2), batch=16)
    teacher = ColourTeacher()
    loader = ViewLoader(config, _source(seed), teacher, _CPU)
    for view in (0, 1, 0, 1, 1):
        loader.load(view, torch.arange(5))
    assert teacher.calls == [16, 16, 8] * 2


def test_kept_targets_do_not_depend_on_what_was_asked_before(seed: int, tmp_path: Any) -> None:
    config = tiny_config(tmp_path, augment=AugmentConfig(views=2))
    rows = torch.tensor([5, 3, 30])
    one = ViewLoader(config, _source(seed), ColourTeacher(), _CPU)
    one.load(0, torch.arange(4))
    two = ViewLoader(config, _source(seed), ColourTeacher(), _CPU)
    a, b = one.load(1, rows), two.load(1, rows)
    assert torch.equal(a.images, b.images) and torch.equal(a.targets, b.targets)


def test_stored_targets_are_the_sets(seed: int, tmp_path: Any) -> None:
    config = tiny_config(tmp_path, targets="stored", augment=AugmentConfig(pad=0))
    source = _source(seed, stored=True)
    targets = ViewLoader(config, source, None, _CPU).load(0, torch.tensor([4, 2])).targets
    logits = source.batch(torch.tensor([4, 2])).logits
    assert logits is not None and torch.equal(targets, logits.float())
    with pytest.raises(UserError, match="has none"):
        ViewLoader(config, _source(seed), None, _CPU).load(0, torch.tensor([4]))


def test_labels_need_no_teacher(seed: int, tmp_path: Any) -> None:
    config = tiny_config(tmp_path, targets="labels")
    assert ViewLoader(config, _source(seed), None, _CPU).load(0, torch.tensor([4, 2])).targets.tolist() == [0, 2]


def test_unfit_teachers_are_refused(seed: int, tmp_path: Any) -> None:
    with pytest.raises(UserError, match="knows 3 classes, the set has 4"):
        ViewLoader(tiny_config(tmp_path), _source(seed), ColourTeacher(3), _CPU)
    with pytest.raises(UserError, match="need a teacher"):
        ViewLoader(tiny_config(tmp_path), _source(seed), None, _CPU)
    many = tiny_config(tmp_path, augment=AugmentConfig(views=2), ram_gib=1e-7)
    with pytest.raises(UserError, match="views"):
        ViewLoader(many, _source(seed), ColourTeacher(), _CPU)
