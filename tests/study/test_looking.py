"""The networks that look at the study's images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from prism_fast.errors import UserError
from prism_fast.study.looking import Eyes, Gallery
from prism_fast.study.sources import MemorySource
from tests.study.studies import tiny_study

ROLES = ("teacher", "judge", "second", "extractor")


@pytest.mark.parametrize("role", ROLES)
def test_no_network_has_two_roles(networks: Path, tmp_path: Path, role: str) -> None:
    """Nor has a member of an ensemble."""
    config = tiny_study(networks, tmp_path)
    assert len(set(Eyes.load(config).fingerprints().values())) == 4
    for other in set(ROLES) - {role}:
        own, its = str(networks / role), str(networks / other)
        for name in (its, f"{own}+{its}", f"worst:{own}+{its}"):
            with pytest.raises(UserError, match=r"\w+ and (judge|second|extractor) are one network, or have one in"):
                Eyes.load(replace(config, **{role: name}))


def test_a_set_is_compared_with_as_many_of_each_class_as_the_reference_has(networks: Path, tmp_path: Path) -> None:
    """Where a class of the reference is small too: N is the same, and so is the share of each class."""
    config = tiny_study(networks, tmp_path)
    real = torch.cat([torch.arange(54) % 9, torch.full((2,), 9)])  # six of nine classes and two of the last
    pixels = torch.randint(0, 256, (len(real), 3, 16, 16), dtype=torch.uint8)
    gallery = Gallery(config, Eyes.load(config), MemorySource("real", pixels, real))
    made = torch.arange(config.images) % 10
    for name, count in gallery.counts().items():
        rows = gallery._rows(name, made)
        reference = real[gallery._matched[name].reference]
        assert len(rows) == count == len(reference) and len(rows.unique()) == count
        assert torch.bincount(made[rows], minlength=10).equal(torch.bincount(reference, minlength=10))
        assert len(set(torch.bincount(reference, minlength=10).tolist())) == 2
    with pytest.raises(UserError, match=r"class 0 has only 0 images, not 2"):
        gallery._rows(gallery.headline, made.clamp(min=1))
