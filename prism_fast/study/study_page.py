"""The study's report: one page of its tables, charts and samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prism_fast.config import replacing
from prism_fast.study import page
from prism_fast.study.experiment import Experiment


def write_page(study: Experiment, figures: dict[str, Any], path: Path) -> None:
    with replacing(path) as staged:
        staged.write_text(page.page("study", []), encoding="utf-8")
