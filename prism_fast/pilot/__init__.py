"""What does not fit among pipeline, classes and teacher, seen on a few unguided images before hours are spent."""

from __future__ import annotations
