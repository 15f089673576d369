"""Where workers run: in this process, in several of this machine, on a Ray cluster."""

from __future__ import annotations
