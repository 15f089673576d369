"""prism_fast: data-free knowledge distillation with an energy-guided diffusion sampler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prism_fast.sampling.config import GuidanceConfig
    from prism_fast.sampling.drop_in import FastPipeline
    from prism_fast.teachers.base import Teacher

__version__ = "0.1.0"


def compile(  # noqa: A001 - prism_fast.compile, beside torch.compile
    pipe: Any,
    teacher: Teacher | str | None = None,
    guidance: GuidanceConfig | Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
) -> FastPipeline:
    """A fast pipeline that is called like ``pipe``, guided by ``teacher`` if there is one.

    See ``prism_fast.sampling.drop_in.compile_pipeline`` and docs/drop-in.md.
    """
    from prism_fast.sampling.drop_in import compile_pipeline

    return compile_pipeline(pipe, teacher, guidance, config)
