"""State dicts out of pickled files: what is taken, and what is never run."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from prism_fast.errors import UserError
from prism_fast.teachers.pickled import read_pickled

STATE = OrderedDict({"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(2), "n": torch.tensor(3)})


def prefixed(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in STATE.items()}


@pytest.mark.parametrize(
    ("content", "wrapper", "left_out"),
    [
        (STATE, "", ()),
        (dict(STATE), "", ()),
        ({"state_dict": STATE, "epoch": 3, "state_dict_ema": STATE}, "state_dict", ("epoch", "state_dict_ema")),
        ({"model_state_dict": STATE, "optimizer": {"lr": 0.1}}, "model_state_dict", ("optimizer",)),
        ({"model": STATE, "args": None}, "model", ("args",)),
        (prefixed("module."), "", ()),
        (prefixed("_orig_mod.module."), "", ()),
        ({"state_dict": prefixed("module._orig_mod.")}, "state_dict", ()),
        (
            {name: nn.Parameter(tensor, requires_grad=tensor.is_floating_point()) for name, tensor in STATE.items()},
            "",
            (),
        ),
    ],
)
def test_state_dicts_in_every_usual_wrapping(
    tmp_path: Path, content: Any, wrapper: str, left_out: tuple[str, ...]
) -> None:
    torch.save(content, tmp_path / "x.pt")
    found = read_pickled(tmp_path / "x.pt")
    assert (found.wrapper, found.left_out) == (wrapper, left_out)
    assert found.tensors.keys() == STATE.keys()
    assert all(torch.equal(found.tensors[name], STATE[name]) for name in STATE)
    assert not any(tensor.requires_grad for tensor in found.tensors.values())


def test_a_prefix_that_not_all_have_is_part_of_the_names(tmp_path: Path) -> None:
    torch.save({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "x.pt")
    assert read_pickled(tmp_path / "x.pt").tensors.keys() == {"module.a", "b"}


def test_layers_named_like_a_wrapper_are_layers(tmp_path: Path) -> None:
    """``model`` holds no mapping here, so it is a tensor like others."""
    torch.save({"model": torch.ones(1), "b": torch.ones(1)}, tmp_path / "x.pt")
    assert read_pickled(tmp_path / "x.pt").tensors.keys() == {"model", "b"}


class Evil:
    """Makes a file where it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.witness),)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("wrap", [lambda evil: evil, lambda evil: {"state_dict": STATE, "extra": evil}])
def test_code_is_never_run(tmp_path: Path, wrap: Any, legacy: bool) -> None:
    content = wrap(Evil(tmp_path / "witness"))
    torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match="holds other things than tensors"):
        read_pickled(tmp_path / "x.pt")
    assert not (tmp_path / "witness").exists()


def test_a_whole_model_is_refused_with_the_cure(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 3), tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"torch.save\(model.state_dict\(\), FILE\)"):
        read_pickled(tmp_path / "x.pt")


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(1)], "holds a list, not a state dict"),
        (torch.ones(1), "holds a Tensor, not a state dict"),
        ({}, "holds no tensor"),
        ({"state_dict": {}}, "holds no tensor"),
        ({"a": torch.ones(1), "epoch": 3}, "'epoch' is of type int, not a tensor"),
        ({"state_dict": {"a": {"b": torch.ones(1)}}}, "state_dict, 'a' is of type dict, not a tensor"),
        ({1: torch.ones(1)}, "1 is no name of a tensor"),
        ({"a": torch.ones(2, 2).to_sparse()}, "'a' is not a plain dense tensor"),
    ],
)
def test_what_is_no_state_dict(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(UserError, match=message):
        read_pickled(tmp_path / "x.pt")


@pytest.mark.parametrize("legacy", [False, True])
def test_damaged_files_are_one_error(tmp_path: Path, legacy: bool) -> None:
    """Cut anywhere; a legacy file whose pickles are whole may still miss tensor bytes."""
    file = tmp_path / "x.pt"
    torch.save(STATE, file, _use_new_zipfile_serialization=not legacy)
    whole = file.read_bytes()
    for length in (*range(64), *range(64, len(whole), 41)):
        file.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"damaged|cannot read"):
            read_pickled(file)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_pickled(tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"cannot read .*irectory"):
        read_pickled(tmp_path)
