"""Where workers run: in this process; later, in processes of this machine and on a cluster."""

from __future__ import annotations
