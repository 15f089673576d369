"""Everything is declared in pyproject.toml; native extensions, which a declaration cannot describe, are added here."""

from __future__ import annotations

from setuptools import setup

setup()
