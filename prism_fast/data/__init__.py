"""Reads what training and measuring need: published shards, real data sets."""

from __future__ import annotations
