"""The networks that look at the study's images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from prism_fast.errors import UserError
from prism_fast.study.looking import Eyes
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
