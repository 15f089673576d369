"""Engines that were built, on disk: each under a name made from everything that it depends on.

A file is a line of JSON (the key, and the SHA-256 of what follows), then the engine. One that does not fit its key or
its checksum is built again. Files appear whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from prism_fast.config import cache_dir, canonical, content_hash, replacing

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EngineKey:
    """What an engine is good for.

    Attributes:
        model: SHA-256 of the exported ONNX model: network, energy, size and dtype, and how it was exported.
        flavour: ``tensorrt`` or ``tensorrt-rtx``.
        version: of that library.
        capability: compute capability.
        device: the GPU's name; tuning is for one.
        batch: that it is tuned for.
    """

    model: str
    flavour: str
    version: str
    capability: tuple[int, int]
    device: str
    batch: int

    @property
    def name(self) -> str:
        """Of the file."""
        return f"{self.flavour}-{content_hash(self)}.engine"


class EngineCache:
    """A folder of engines.

    Args:
        folder: None: ``engines`` in the cache folder of prism_fast.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder if folder is not None else cache_dir() / "engines"

    def get(self, key: EngineKey, build: Callable[[], bytes], *, renew: bool = False) -> bytes:
        """The engine of ``key``, from its file or built and kept.

        Args:
            key: which one.
            build: makes it.
            renew: build it even where there is a file.

        Raises:
            UserError: the folder cannot be written, or what ``build`` raises.
        """
        path = self.folder / key.name
        if not renew and path.exists():
            engine = _read(path, key)
            if engine is not None:
                return engine
            _log.warning("%s is damaged or of another engine: it is built again", path)
        engine = build()
        head = {"key": canonical(key), "sha256": hashlib.sha256(engine).hexdigest()}
        with replacing(path) as temporary:
            temporary.write_bytes(json.dumps(head).encode() + b"\n" + engine)
        return engine


def _read(path: Path, key: EngineKey) -> bytes | None:
    head, _, engine = path.read_bytes().partition(b"\n")
    try:
        found = json.loads(head)
    except ValueError:
        return None
    wanted = {"key": canonical(key), "sha256": hashlib.sha256(engine).hexdigest()}
    return engine if found == wanted else None
