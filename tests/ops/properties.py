"""hypothesis; where it is not installed, tests of properties are skipped and the others of their files still run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from hypothesis import given, settings
    from hypothesis import strategies as st
else:
    try:
        from hypothesis import given, settings
        from hypothesis import strategies as st
    except ModuleNotFoundError:

        class _Anything:
            """Takes whatever the decorators of a test ask of it."""

            def __getattr__(self, name: str) -> _Anything:
                return self

            def __call__(self, *_: Any, **__: Any) -> _Anything:
                return self

        def given(*_: Any, **__: Any) -> Any:
            return pytest.mark.skip(reason="hypothesis is not installed")

        def settings(*_: Any, **__: Any) -> Any:
            return lambda test: test

        st = _Anything()

__all__ = ["given", "settings", "st"]
