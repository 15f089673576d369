"""The TensorRT back-end: the exported graph as an engine, run on torch's stream and memory.

Two libraries with the same interface: TensorRT (``tensorrt``, from 11 on) and TensorRT for RTX
(``tensorrt_rtx_bindings`` with the libraries of ``onnxruntime-ep-nv-tensorrt-rtx-cu13``), which builds engines without
a GPU and runs them on GeForce and RTX chips. Networks are strongly typed: precision is that of the exported graph.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from prism_fast.errors import UserError
from prism_fast.teachers.asked import Further
from prism_fast.teachers.backend import Runner
from prism_fast.teachers.eager import EagerTeacher
from prism_fast.teachers.engines import EngineCache, EngineKey
from prism_fast.teachers.export import INPUTS, OUTPUTS, export

_RTX_LIBRARIES = "onnxruntime-ep-nv-tensorrt-rtx-cu13"
_RTX_NAMES = ("libtensorrt_rtx.so.", "libtensorrt_onnxparser_rtx.so.")
RTX_CAPABILITIES = ((7, 5), (8, 0), (8, 6), (8, 9), (12, 0), (12, 1))
"""What TensorRT for RTX 1.7 builds for; data-centre chips of 9.0 and 10.0 are not among them."""
TENSORRT_CAPABILITY = (7, 5)
"""The oldest that TensorRT 11 builds for."""
FLAVOURS = {"tensorrt": "trt", "tensorrt-rtx": "trt-rtx"}
"""Name and the extra that installs it, in the order of preference."""


@dataclass(frozen=True)
class Library:
    """A TensorRT that imports.

    Attributes:
        flavour: ``tensorrt`` or ``tensorrt-rtx``.
        version: of the package.
        module: the Python interface.
    """

    flavour: str
    version: str
    module: Any


@cache
def load_library(flavour: str | None = None) -> Library:
    """TensorRT of a flavour; None: the first that imports.

    Raises:
        UserError: it is not there, or does not load; the message names the extra.
    """
    reasons = []
    for name in [flavour] if flavour else FLAVOURS:
        if name not in FLAVOURS:
            raise UserError(f"unknown TensorRT {name!r} (known: {', '.join(FLAVOURS)})")
        try:
            return _load_rtx() if name == "tensorrt-rtx" else _load_proper()
        except (ImportError, OSError, metadata.PackageNotFoundError, AttributeError) as error:
            reasons.append(f"{name} does not load ({error}): pip install 'prism_fast[{FLAVOURS[name]}]'")
    raise UserError("; ".join(reasons))


def _load_proper() -> Library:
    module = importlib.import_module("tensorrt")
    version = str(module.__version__)
    if int(version.partition(".")[0]) < 11:
        raise ImportError(f"TensorRT {version} is older than 11, whose networks are always strongly typed")
    return Library("tensorrt", version, module)


def _load_rtx() -> Library:
    files = metadata.files(_RTX_LIBRARIES) or []
    for start in _RTX_NAMES:  # the parser needs the builder's symbols
        path = next((str(file.locate()) for file in files if file.name.startswith(start)), None)
        if path is None:
            raise ImportError(f"{_RTX_LIBRARIES} has no {start}*")
        ctypes.CDLL(path, ctypes.RTLD_GLOBAL)
    module = importlib.import_module("tensorrt_rtx_bindings.tensorrt_rtx")
    version = str(importlib.import_module("tensorrt_rtx_bindings").__version__)
    return Library("tensorrt-rtx", version, module)


def why_unusable(device: torch.device) -> str | None:
    """The reason why no engine can run on ``device``; None where one can."""
    try:
        library = load_library()
    except UserError as error:
        return str(error)
    if device.type != "cuda":
        return "TensorRT runs on CUDA devices only; engines can be built here all the same"
    capability = torch.cuda.get_device_capability(device)
    return refusal(library, capability)


def refusal(library: Library, capability: tuple[int, int]) -> str | None:
    """Why ``library`` has no engines for a compute capability; None where it has."""
    if library.flavour == "tensorrt" and capability < TENSORRT_CAPABILITY:
        return (
            f"TensorRT {library.version} does not build for compute capability {capability[0]}.{capability[1]} (from "
            f"{TENSORRT_CAPABILITY[0]}.{TENSORRT_CAPABILITY[1]} on): take the compiled back-end"
        )
    if library.flavour == "tensorrt-rtx" and capability not in RTX_CAPABILITIES:
        known = ", ".join(f"{major}.{minor}" for major, minor in RTX_CAPABILITIES)
        return (
            f"TensorRT for RTX {library.version} does not build for compute capability "
            f"{capability[0]}.{capability[1]} (it has {known}): take the compiled back-end"
        )
    return None


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Batch sizes of an engine: it takes ``least`` to ``most`` and is tuned for ``best``."""

    least: int
    best: int
    most: int

    @classmethod
    def around(cls, batch: int) -> Profile:
        """Anything up to twice the batch that is expected."""
        return cls(least=1, best=batch, most=2 * batch)


def build(
    model: bytes, profile: Profile, capability: tuple[int, int] | None = None, flavour: str | None = None
) -> bytes:
    """A serialised engine of an exported teacher.

    Args:
        model: ONNX.
        profile: batch sizes.
        capability: compute capability to build for; None: the present device's. Another than the present one only with
            TensorRT for RTX.
        flavour: which TensorRT; None: the first that imports.

    Raises:
        UserError: no TensorRT, it refuses the graph (its reasons are told), or it has no engines for the capability.
    """
    library = load_library(flavour)
    trt = library.module
    if capability is not None and (reason := refusal(library, capability)):
        raise UserError(reason)
    logger = _Log(trt)
    builder = trt.Builder(logger.of_library)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger.of_library)
    if not parser.parse(model):
        errors = [str(parser.get_error(index)) for index in range(parser.num_errors)]
        raise UserError(f"{library.flavour} {library.version} does not take the exported graph: {'; '.join(errors)}")
    config = builder.create_builder_config()
    shapes = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if -1 in tuple(tensor.shape):
            sizes = (profile.least, profile.best, profile.most)
            shapes.set_shape(tensor.name, *([batch, *tuple(tensor.shape)[1:]] for batch in sizes))
    config.add_optimization_profile(shapes)
    config.clear_flag(trt.BuilderFlag.TF32)  # fp32 is fp32, as in eager PyTorch's matrix products
    if capability is not None and library.flavour == "tensorrt-rtx":
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{capability[0]}{capability[1]}"), 0)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise UserError(f"{library.flavour} {library.version} could not build the engine: {logger.last}")
    return bytes(engine)


class _Log:
    """TensorRT's messages; errors are kept, for the message of the error that follows."""

    def __init__(self, trt: Any) -> None:
        self.last = "no reason given"
        outer = self

        class Logger(trt.ILogger):
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                    outer.last = message

        self.of_library = Logger()


class TensorRTRunner:
    """An engine on a CUDA device; see :class:`prism_fast.teachers.backend.Runner`.

    One execution context for each batch size, its shapes set once, so that a call enqueues and nothing else: it can be
    captured. Runs on torch's current stream.

    Raises:
        UserError: the engine is of another version or device.
    """

    def __init__(self, engine: bytes, library: Library, device: torch.device) -> None:
        trt = library.module
        self._library, self._device = library, device
        self._log = _Log(trt)
        self._runtime = trt.Runtime(self._log.of_library)
        self._engine = self._runtime.deserialize_cuda_engine(engine)
        if self._engine is None:
            raise UserError(f"{library.flavour} {library.version} cannot load the engine: {self._log.last}")
        self._contexts: dict[int, Any] = {}

    def __call__(
        self, images: Tensor, targets: Tensor, temperature: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        batch = len(images)
        if batch not in self._contexts:
            self._contexts[batch] = self._context((images, targets))
        context = self._contexts[batch]
        results = images.new_empty(batch), torch.empty_like(images), torch.empty_like(targets)
        tensors = (images, targets, temperature, weights, *results)
        for name, tensor in zip((*INPUTS, *OUTPUTS), tensors, strict=True):
            context.set_tensor_address(name, tensor.data_ptr())
        if not context.execute_async_v3(torch.cuda.current_stream(self._device).cuda_stream):
            raise RuntimeError(f"{self._library.flavour} could not run the engine: {self._log.last}")
        return results

    def _context(self, dynamic: tuple[Tensor, Tensor]) -> Any:
        trt = self._library.module
        config = self._engine.create_runtime_config() if self._library.flavour == "tensorrt-rtx" else None
        if config is not None:  # kernels that are specialised later would be compiled in the middle of a capture
            strategies = trt.DynamicShapesKernelSpecializationStrategy
            config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
        context = self._engine.create_execution_context(config) if config else self._engine.create_execution_context()
        for name, tensor in zip(INPUTS[:2], dynamic, strict=True):
            if not context.set_input_shape(name, tuple(tensor.shape)):
                raise UserError(
                    f"the engine does not take {len(tensor)} images at once ({self._log.last}): "
                    "build it for that batch, prism-fast teacher build --batch"
                )
        return context


def make_runner(
    teacher: EagerTeacher, size: tuple[int, int], further: Further, batch: int, cache_: EngineCache
) -> Runner:
    """The teacher's engine for this device, from the cache or built now."""
    library = load_library()
    capability = torch.cuda.get_device_capability(teacher.device)
    if reason := refusal(library, capability):
        raise UserError(reason)
    model = export(teacher, size, str(teacher.dtype).removeprefix("torch."), further).model
    key = EngineKey(
        model=hashlib.sha256(model).hexdigest(),
        flavour=library.flavour,
        version=library.version,
        capability=capability,
        device=torch.cuda.get_device_name(teacher.device),
        batch=batch,
    )

    def make() -> bytes:
        return build(model, Profile.around(batch), capability, library.flavour)

    engine = cache_.get(key, make)
    try:
        return TensorRTRunner(engine, library, teacher.device)
    except UserError:  # damaged in a way that its checksum does not show, or of a driver that is gone
        return TensorRTRunner(cache_.get(key, make, renew=True), library, teacher.device)
