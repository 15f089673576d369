"""Which commit is measured."""

from __future__ import annotations

import subprocess
from pathlib import Path


def git(*words: str) -> str | None:
    """What git prints, run in this folder; None in a copy without its repository."""
    done = subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None
