"""Exported teachers that several tests read: an export is most of such a test's time."""

from __future__ import annotations

from prism_fast.teachers.asked import NOTHING, Further
from prism_fast.teachers.eager import EagerTeacher
from prism_fast.teachers.export import Exported, export

_EXPORTED: dict[tuple[object, ...], Exported] = {}


def exported(
    teacher: EagerTeacher, size: tuple[int, int] | None = None, dtype: str = "float32", further: Further = NOTHING
) -> Exported:
    """As :func:`prism_fast.teachers.export.export`, but each graph is made once in a process.

    Not for tests that change rules or what is proven of a graph.
    """
    key = teacher.fingerprint, teacher.dtype, size or teacher.input_size, dtype, further.names
    if key not in _EXPORTED:
        _EXPORTED[key] = export(teacher, size, dtype, further)
    return _EXPORTED[key]
