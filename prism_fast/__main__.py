"""``python -m prism_fast`` is ``prism-fast``."""

from __future__ import annotations

import sys

from prism_fast.cli import main

if __name__ == "__main__":
    sys.exit(main())
