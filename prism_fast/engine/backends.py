"""What this machine can run: devices, versions, and for every optional back-end whether it is usable, and why not."""

from __future__ import annotations

import importlib
import importlib.util
import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from typing import Any

import prism_fast
from prism_fast.config import cores
from prism_fast.errors import UserError

_PACKAGES = ("torch", "torchvision", "diffusers", "transformers", "timm", "numpy", "pyarrow", "onnx")


@dataclass(frozen=True, kw_only=True)
class Backend:
    """One optional back-end.

    Attributes:
        name: as the command line says it.
        version: of the installed package; None where it is not installed.
        usable: whether prism_fast can use it here and now.
        reason: why not; empty where it is usable.
    """

    name: str
    version: str | None
    usable: bool
    reason: str


@dataclass(frozen=True)
class _Probe:
    """How a back-end is looked for.

    Attributes:
        distribution: its package's name in the registry.
        module: what is imported to see whether it loads.
        install: what to type where it is missing.
        adapter: the module of prism_fast that uses it.
        check: the reason why it does not work on this machine, or None.
    """

    distribution: str
    module: str
    install: str
    adapter: str | None = None
    check: Callable[[], str | None] = lambda: None


def _no_cuda() -> str | None:
    import torch

    if torch.cuda.is_available():
        return None
    return "torch is built without CUDA" if torch.version.cuda is None else "torch sees no CUDA device"


def _no_xformers() -> str | None:
    from prism_fast.pipeline.attention import why_no_xformers

    return _no_cuda() or _does_not_load("xformers.ops") or why_no_xformers()


def _no_engines(flavour: str) -> str | None:
    import torch

    from prism_fast.teachers.tensorrt import load_library, refusal

    try:
        library = load_library(flavour)
    except UserError as error:
        return str(error)
    if reason := _no_cuda():
        return f"{reason}; engines can be built here all the same"
    return refusal(library, torch.cuda.get_device_capability())


def _no_exporter() -> str | None:
    import torch

    from prism_fast.teachers.onnx import why_unusable

    return why_unusable(torch.device("cuda" if torch.cuda.is_available() else "cpu"), torch.float32)


def _extra(name: str) -> str:
    return f"pip install 'prism_fast[{name}]'"


_PROBES = {
    "triton": _Probe("triton", "triton", "pip install triton", "prism_fast.kernels", _no_cuda),
    "xformers": _Probe("xformers", "xformers.ops", _extra("xformers"), None, _no_xformers),
    "tensorrt": _Probe(
        "tensorrt", "tensorrt", _extra("trt"), "prism_fast.teachers.tensorrt", partial(_no_engines, "tensorrt")
    ),
    "tensorrt-rtx": _Probe(
        "tensorrt-rtx-cu13-bindings",
        "tensorrt_rtx_bindings",
        _extra("trt-rtx"),
        "prism_fast.teachers.tensorrt",
        partial(_no_engines, "tensorrt-rtx"),
    ),
    "dali": _Probe("nvidia-dali-cuda130", "nvidia.dali", _extra("dali"), "prism_fast.data.dali"),
    "onnxruntime": _Probe("onnxruntime", "onnxruntime", _extra("onnx"), "prism_fast.teachers.onnx", _no_exporter),
    "ray": _Probe("ray", "ray", _extra("ray"), "prism_fast.engine.ray"),
    "llm": _Probe("pydantic", "pydantic", _extra("llm"), "prism_fast.prompts.llm.answers"),
    "gguf": _Probe("gguf", "gguf", _extra("llm"), "prism_fast.prompts.llm.local"),
}


def backends() -> list[Backend]:
    """CUDA and every optional back-end. Imports those that are installed: some fail only then."""
    import torch

    reason = _no_cuda()
    cuda = Backend(name="cuda", version=torch.version.cuda, usable=reason is None, reason=reason or "")
    return [cuda, *(_probe(name, probe) for name, probe in _PROBES.items())]


def _probe(name: str, probe: _Probe) -> Backend:
    version = _version(probe.distribution)
    if version is None:
        return Backend(name=name, version=None, usable=False, reason=f"not installed: {probe.install}")
    reason = probe.check() or _does_not_load(probe.module) or _no_adapter(probe.adapter)
    return Backend(name=name, version=version, usable=reason is None, reason=reason or "")


def _does_not_load(module: str) -> str | None:
    try:
        importlib.import_module(module)
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        # Native libraries that do not fit raise any of these
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return f"installed, but does not load: {first}"
    return None


def _no_adapter(module: str | None) -> str | None:
    if module is None or importlib.util.find_spec(module) is not None:
        return None
    return "installed, but this version of prism_fast does not use it yet"


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def devices() -> list[dict[str, Any]]:
    """Every device torch can use: ``name`` for ``--device``, ``description``, ``memory_bytes`` (None for the CPU)."""
    import torch

    model = platform.processor() or platform.machine()
    found: list[dict[str, Any]] = [
        {
            "name": "cpu",
            "description": f"{model}, {cores()} cores, {torch.get_num_threads()} threads",
            "memory_bytes": None,
        }
    ]
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(index)
        description = f"{properties.name}, compute capability {properties.major}.{properties.minor}"
        found.append({"name": f"cuda:{index}", "description": description, "memory_bytes": properties.total_memory})
    return found


def versions() -> dict[str, str | None]:
    """Of prism_fast, Python and the packages it stands on; None where one is missing."""
    own = {"prism_fast": prism_fast.__version__, "python": platform.python_version()}
    return {**own, **{package: _version(package) for package in _PACKAGES}}
