"""What every configuration shares: canonical form, content hash, devices, folders, environment fingerprint.

Environment variables are read here and nowhere else.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
import os
import platform
import resource
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prism_fast.errors import UserError

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16")
_FINGERPRINT_PACKAGES = ("torch", "diffusers", "transformers", "timm")


def canonical(value: Any) -> Any:
    """``value`` as plain JSON types: dataclasses to dicts, tuples to lists, paths to strings."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: canonical(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): canonical(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [canonical(v) for v in value]
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError(f"a configuration cannot hold a {type(value).__name__}")


def content_hash(value: Any) -> str:
    """First 16 hex digits of the SHA-256 of the canonical JSON (sorted keys, no spaces).

    A whole float hashes as the integer: ``--scale 1`` on the command line and ``scale=1`` in Python are one setting.
    """
    text = json.dumps(_whole(canonical(value)), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _whole(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _whole(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def save_yaml(value: Any, path: Path) -> None:
    """Writes the resolved configuration beside an output, atomically."""
    import yaml

    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(yaml.safe_dump(canonical(value), sort_keys=False, allow_unicode=True), encoding="utf-8")
    os.replace(temporary, path)


def make_own_folder(out: Path, what: str) -> None:
    """Makes ``out``, the folder of ``what``, or finds it empty.

    Raises:
        UserError: it is a file, holds something already, or cannot be made; nothing was touched.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} holds something else than {what}: give another output folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out} cannot be made ({error.strerror}): give another output folder") from error


def cache_dir() -> Path:
    """Where downloads and derived files go: ``$PRISM_FAST_CACHE`` or ``~/.cache/prism_fast``."""
    return Path(os.environ.get("PRISM_FAST_CACHE") or Path.home() / ".cache" / "prism_fast")


def data_dir() -> Path:
    """Where real data sets lie: ``$PRISM_FAST_DATA`` or a folder in the cache."""
    return Path(os.environ.get("PRISM_FAST_DATA") or cache_dir() / "data")


def resolve_device(name: str) -> torch.device:
    """``auto`` takes CUDA where there is one; an explicit name works or raises.

    Raises:
        UserError: no such device here.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"unknown device {name!r}: use auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device {name!r} is not supported: use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device {name!r}: torch sees {torch.cuda.device_count()} CUDA devices; use --device cpu")
    return device


def resolve_dtype(name: str) -> torch.dtype:
    """A dtype by its torch name.

    Raises:
        UserError: not one of :data:`DTYPES`.
    """
    import torch

    if name not in DTYPES:
        raise UserError(f"unknown dtype {name!r} (known: {', '.join(DTYPES)})")
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def peak_memory_bytes() -> int:
    """The most main memory that this process has held at once."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB


def environment(device: torch.device, dtype: str) -> dict[str, str]:
    """What, besides the configuration, can change the last bits of an image. Saved with every shard set."""
    import torch

    if device.type == "cuda":
        hardware = {"device_name": torch.cuda.get_device_name(device)}
    else:  # which vector instructions are used, and how many threads share a sum, decides the order of its terms
        name = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
        hardware = {"device_name": name, "threads": str(torch.get_num_threads())}
    versions = {package: metadata.version(package) for package in _FINGERPRINT_PACKAGES}
    # The full version names the build (+cpu, +cu130), which the package's metadata does not.
    return {**versions, "torch": str(torch.__version__), "device": device.type, **hardware, "dtype": dtype}
