"""Configuration to shards: the plan of a set, the worker that makes its rows, their labels, the files they go into."""

from __future__ import annotations
