"""A user's own network as a teacher: ``module:factory``, its weights, and ``teacher.yaml`` beside them."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from prism_fast.errors import UserError
from prism_fast.pipeline.weights import PICKLE_SUFFIXES, check_state, in_short, load_errors, tensor_names
from prism_fast.teachers.answer import check_answer
from prism_fast.teachers.eager import EagerTeacher
from prism_fast.teachers.grey import grey_input
from prism_fast.teachers.settings import SETTINGS_FILE, TeacherSettings, read_settings

WEIGHTS_FILE = "model.safetensors"

_NAME = re.compile(r"(?P<module>[^\W\d]\w*(\.[^\W\d]\w*)*):(?P<factory>[^\W\d]\w*)(@(?P<weights>.*))?", re.DOTALL)


def is_own(name: str) -> bool:
    """Whether ``name`` has the form ``package.module:factory``, perhaps with ``@WEIGHTS`` after it."""
    return _NAME.fullmatch(name) is not None


def with_weights(name: str, weights: str) -> str:
    """``module:factory`` and its weights as one name, which every setting that names a teacher takes.

    Raises:
        UserError: ``name`` has weights already, or brings its own.
    """
    found = _NAME.fullmatch(name)
    if found is None:
        raise UserError(f"teacher {name!r} brings its own weights: give weights with a teacher module:factory only")
    if found["weights"] is not None:
        raise UserError(f"teacher {name!r} names its weights already: give them once")
    return f"{name}@{weights}"


def make_own(name: str, what: str, arguments: Mapping[str, Any]) -> torch.nn.Module:
    """The network with the weights that the function behind ``package.module:factory`` gives it, in fp32 on the CPU.

    Args:
        name: as for :func:`load_own`, without weights.
        what: what it is to be, for messages.
        arguments: keyword arguments of the function.

    Raises:
        UserError: there is no such function, or it does not make a network.
    """
    found = _NAME.fullmatch(name)
    if found is None:
        raise UserError(f"{name!r} is not package.module:factory")
    with _current_folder():
        return _made(found["module"], found["factory"], what, arguments).to(device="cpu", dtype=torch.float32)


def load_own(
    name: str,
    settings: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> EagerTeacher:
    """The network that a user's function makes. Runs that function's module: name only code that you trust.

    Args:
        name: ``package.module:factory@WEIGHTS``. The module is looked for in the current folder, then where Python
            looks. ``factory`` takes no argument and returns a network, image [B, C, h, w] → logits [B, K].
            ``WEIGHTS`` is a safetensors file of its whole state dict, or a folder with ``model.safetensors``.
        settings: the :class:`TeacherSettings` file; None: ``teacher.yaml`` beside the weights.
        device: where the network runs.
        dtype: what it computes in.

    Raises:
        UserError: something is missing or does not fit, or the network does not answer with logits.
    """
    found = _NAME.fullmatch(name)
    if found is None:
        raise UserError(f"{name!r} is not package.module:factory")
    called = f"{found['module']}:{found['factory']}"
    if not found["weights"]:
        raise UserError(
            f"teacher {called!r} needs weights: --weights FILE, or {called}@FILE, with FILE in safetensors format"
        )
    file = _weights_file(Path(found["weights"]).expanduser())
    told = _settings(file, Path(settings).expanduser() if settings is not None else None)
    what = f"teacher {called!r}"
    with _current_folder():  # networks may import on their first call
        model = _made(found["module"], found["factory"], what).to(device="cpu", dtype=torch.float32)
        _fill(model, file, what)
        network = grey_input(model) if told.channels == 1 else model
        cure = f"{SETTINGS_FILE} or the network"
        classes = check_answer(network.eval().requires_grad_(False), told.input_size, told.num_classes, what, cure)
    return EagerTeacher(
        network,
        mean=told.mean,
        std=told.std,
        input_size=told.input_size,
        num_classes=classes,
        interpolation=told.interpolation,
        label_names=[each.name for each in told.classes] if told.classes is not None else None,
        device=device,
        dtype=dtype,
    )


def _weights_file(path: Path) -> Path:
    file = path / WEIGHTS_FILE if path.is_dir() else path
    if file.suffix in PICKLE_SUFFIXES:
        raise UserError(
            f"{file} is a pickle, and loading one can run code: "
            f"prism-fast teacher import {file} --out FOLDER makes safetensors of it; then give that folder"
        )
    if not file.is_file():
        raise UserError(f"no such weights: {file}")
    return file


def _settings(weights: Path, given: Path | None) -> TeacherSettings:
    path = given or weights.with_name(SETTINGS_FILE)
    if given is None and not path.is_file():
        raise UserError(
            f"{weights} has no {SETTINGS_FILE} beside it: write one with input_size, mean and std "
            "(README, 'Your own generator, classes and teacher')"
        )
    return read_settings(path)


@contextmanager
def _current_folder() -> Iterator[None]:
    """Modules of the current folder can be imported, as ``python -m`` lets them."""
    here = os.getcwd()
    before = list(sys.path)
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path[:] = before


def _made(module: str, factory: str, what: str, arguments: Mapping[str, Any] = MappingProxyType({})) -> torch.nn.Module:
    importlib.invalidate_caches()  # the file may be younger than Python's picture of its folder
    try:
        code = importlib.import_module(module)
    except load_errors() + (ImportError, SyntaxError, NameError) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and f"{module}.".startswith(f"{missing}."):
            raise UserError(f"{what}: no module {missing!r}, neither in {os.getcwd()} nor installed") from error
        raise UserError(f"{what}: importing {module} failed ({in_short(error)})") from error
    make = getattr(code, factory, None)
    if make is None:
        raise UserError(f"{what}: {module} has no {factory}")
    if isinstance(make, torch.nn.Module) or not callable(make):
        raise UserError(
            f"{what} is of type {type(make).__name__}: name a function without arguments that makes the network"
        )
    called = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    try:
        model = make(**arguments)
    except load_errors() + (ImportError, NameError) as error:
        how = f"with {called}" if called else "without arguments"
        raise UserError(f"{what}: {factory}() failed ({in_short(error)}); it is called {how}") from error
    if not isinstance(model, torch.nn.Module):
        raise UserError(f"{what}: {factory}() gave a {type(model).__name__}, not a torch.nn.Module")
    return model


def _fill(model: torch.nn.Module, file: Path, what: str) -> None:
    """Loads the whole state dict: every tensor of the network, and no other."""
    from safetensors.torch import load_file

    tensor_names(file, what)
    tensors = load_file(file)
    check_state(tensors, model.state_dict(), f"{what}: {file}")
    model.load_state_dict(tensors)
