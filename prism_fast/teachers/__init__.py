"""Image to energy and its gradient: a classifier with its own preprocessing behind one protocol."""

from __future__ import annotations
