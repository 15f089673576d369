"""Writing safetensors, and checking a state dict against its network."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from prism_fast.errors import UserError
from prism_fast.pipeline.weights import check_state, write_tensors


def test_tied_and_transposed_tensors_are_written_as_copies(tmp_path: Path) -> None:
    weight = torch.arange(6.0).view(2, 3)
    write_tensors({"a": weight, "b": weight, "c": weight.T}, tmp_path / "x.safetensors", {"format": "pt"})
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == {"a", "b", "c"}
    assert torch.equal(found["b"], weight) and torch.equal(found["c"], weight.T)


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_the_file_has_the_permissions_of_any_other(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        write_tensors({"a": torch.zeros(2)}, tmp_path / "x.safetensors", {})
    finally:
        os.umask(before)
    assert (tmp_path / "x.safetensors").stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_place_that_cannot_be_written_is_the_systems_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_tensors({"a": torch.zeros(2)}, tmp_path / "nowhere" / "x.safetensors", {})


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a": torch.zeros(2)}, r"file lacks 1 of the network's 2 tensors \(first: b\)"),
        ({"a": torch.zeros(2), "b": torch.zeros(3), "c": torch.zeros(1)}, r"file has 1 tensors .*\(first: c\)"),
        ({"a": torch.zeros(2), "b": torch.zeros(1, 3)}, r"file has b of shape \(1, 3\), the network has \(3,\)"),
        ({"a": torch.zeros(2), "b": torch.zeros(3).long()}, "file has b in torch.int64, the network in torch.float32"),
    ],
)
def test_a_state_dict_has_to_be_the_networks(tensors: dict[str, torch.Tensor], message: str) -> None:
    wanted = {"a": torch.zeros(2), "b": torch.zeros(3)}
    check_state({"a": torch.ones(2).half(), "b": torch.ones(3)}, wanted, "file")  # another precision is no matter
    with pytest.raises(UserError, match=message):
        check_state(tensors, wanted, "file")
