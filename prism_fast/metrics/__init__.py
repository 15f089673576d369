"""How good images and students are: accuracy, agreement, how features are distributed, and copies."""

from __future__ import annotations
