"""Which back-end computes a teacher's gradient."""

from __future__ import annotations

import logging
from functools import partial
from importlib import metadata

from prism_fast.errors import UserError
from prism_fast.registry import unknown
from prism_fast.teachers import compiled, onnx, tensorrt
from prism_fast.teachers.asked import NOTHING, Further
from prism_fast.teachers.backend import BackendTeacher
from prism_fast.teachers.base import Teacher
from prism_fast.teachers.eager import EagerTeacher
from prism_fast.teachers.engines import EngineCache
from prism_fast.teachers.proof import why_unprovable

_log = logging.getLogger(__name__)

BACKENDS = ("eager", "compiled", "onnx", "tensorrt")
_FASTEST_FIRST = {"cuda": ("tensorrt", "compiled"), "cpu": ("onnx",)}
"""What ``auto`` tries before ``eager``. Not ``compiled`` on the CPU: a minute of compiling gains little there."""


def why_not(teacher: EagerTeacher, name: str, further: Further = NOTHING) -> str | None:
    """The reason why a back-end cannot serve ``teacher`` where it is; None where it can.

    Args:
        teacher: the classifier.
        name: of the back-end.
        further: terms of the energy beyond those on logits.
    """
    if name == "eager" or (name == "compiled" and not further.kinds):
        return None
    reason = None
    if name == "onnx":
        reason = onnx.why_unusable(teacher.device, teacher.dtype)
    elif name == "tensorrt":
        reason = tensorrt.why_unusable(teacher.device)
    # seconds, against minutes of sampling with a teacher whose graph turns out to be wrong
    return why_unprovable(teacher, further) if reason is None else reason


def choose(teacher: EagerTeacher, name: str = "auto", further: Further = NOTHING) -> str:
    """The back-end to take: ``name``, or for ``auto`` the first usable one of those that are fast on the device.

    Raises:
        UserError: no such back-end, or ``name`` is not usable here.
    """
    if name == "auto":
        reasons: list[str] = []
        for candidate in _FASTEST_FIRST.get(teacher.device.type, ()):
            reason = why_not(teacher, candidate, further)
            if reason is None:
                skipped = f" ({'; '.join(reasons)})" if reasons else ""
                _log.info("teacher on %s, the fastest that is usable on %s%s", candidate, teacher.device, skipped)
                return candidate
            reasons.append(f"not {candidate}: {reason}")
        _log.info(
            "the teacher runs eagerly (%s)", "; ".join(reasons) or f"nothing faster is known for {teacher.device}"
        )
        return "eager"
    if name not in BACKENDS:
        raise UserError(unknown("teacher back-end", name, (*BACKENDS, "auto")))
    if reason := why_not(teacher, name, further):
        raise UserError(f"the back-end {name} is not usable for this teacher: {reason}")
    return name


def runtime_version(name: str) -> str | None:
    """Library and version behind a back-end; None for torch's own."""
    if name == "onnx":
        return f"onnxruntime {metadata.version('onnxruntime')}"
    if name == "tensorrt":
        library = tensorrt.load_library()
        return f"{library.flavour} {library.version}"
    return None


def make_backend(
    teacher: EagerTeacher,
    name: str = "auto",
    *,
    batch: int = 32,
    cache: EngineCache | None = None,
    provider: str | None = None,
) -> Teacher:
    """The teacher on a back-end; the eager one is itself.

    Args:
        teacher: as loaded.
        name: ``auto`` or one of :data:`BACKENDS`.
        batch: images a call, which TensorRT tunes for.
        cache: of TensorRT engines; None: the usual folder.
        provider: ONNX Runtime's execution provider; None: the device's own.

    Raises:
        UserError: no such back-end, or it is not usable here.
    """
    chosen = choose(teacher, name)
    if chosen == "onnx":
        return BackendTeacher(teacher, chosen, partial(onnx.make_runner, teacher, provider=provider), capturable=False)
    if chosen == "compiled":
        return BackendTeacher(teacher, chosen, partial(compiled.make_runner, teacher), capturable=True)
    if chosen == "tensorrt":
        make = partial(tensorrt.make_runner, teacher, batch=batch, cache_=cache or EngineCache())
        return BackendTeacher(teacher, chosen, make, capturable=True)
    return teacher
