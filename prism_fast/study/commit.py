"""Which version of the code made figures."""

from __future__ import annotations

import subprocess
from pathlib import Path


def commit() -> str | None:
    """The commit of the checkout this runs from, with ``+`` where it has changes; None outside a checkout."""
    folder = Path(__file__).parent
    described = _git(folder, "rev-parse", "HEAD")
    if described is None or _git(folder, "ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return described + ("+" if changed else "")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
