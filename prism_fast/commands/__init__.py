"""One file a command: its flags, and what it prints; imports what it needs once its arguments are understood."""

from __future__ import annotations
