"""What every configuration shares: canonical form, content hash, devices, folders, environment fingerprint.

Environment variables are read here and nowhere else.
"""

from __future__ import annotations

import dataclasses
import enum
import errno
import hashlib
import json
import os
import platform
import resource
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prism_fast.errors import UserError

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16")
MAX_COUNT = 10**9
MAX_SIDE = 10**4
"""Pixels."""
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FINGERPRINT_PACKAGES = ("torch", "diffusers", "transformers", "timm")


def comma_separated(text: str) -> list[str]:
    """The names in ``text``, empty ones left out."""
    return [name.strip() for name in text.split(",") if name.strip()]


def require(condition: bool, name: str, value: object, expected: str) -> None:
    """Refuses an option's value in words.

    Raises:
        UserError: the condition does not hold.
    """
    if not condition:
        raise UserError(f"{name} is {value!r}; it must be {expected}")


def require_whole(config: object, name: str, low: int, high: int) -> None:
    """Refuses a field that is no whole number from ``low`` to ``high``; None passes where its annotation ends in it.

    Raises:
        UserError: it is another value.
    """
    value, optional = getattr(config, name), type(config).__annotations__[name].endswith("None")
    whole = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
    none = ", or none" if optional else ""
    require(whole or (optional and value is None), name, value, f"a whole number from {low} to {high}{none}")


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
    """Writes the resolved configuration beside an output, atomically.

    Raises:
        UserError: the place cannot be written.
    """
    import yaml

    text = yaml.safe_dump(canonical(value), sort_keys=False, allow_unicode=True)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def unwritable(path: Path, reason: OSError) -> UserError:
    """The message for a place that cannot be written."""
    cure = "make room, then run the same command again" if reason.errno in _NO_ROOM else "give another place"
    return UserError(f"cannot write {path} ({reason.strerror or reason}): {cure}")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path to write to; it takes the place of ``path`` once it is written, or nothing of it stays.

    Folders that lack on the way are made.

    Raises:
        UserError: the place cannot be written; what was there is as it was.
    """
    temporary = _beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def check_new_file(path: Path) -> None:
    """Finds that a file can be made at ``path``, and makes none.

    Raises:
        UserError: something is there already, or the place cannot be written.
    """
    try:
        if not path.is_dir() and (path.is_symlink() or path.exists()):
            raise UserError(f"{path} exists already and is left as it is: give another file, or move it away first")
    except OSError as error:
        raise unwritable(path, error) from error
    check_file(path)


def check_file(path: Path) -> None:
    """Finds that a file can be written at ``path``, in place of one that may be there, and makes none.

    Raises:
        UserError: it is a folder, or the place cannot be written.
    """
    try:
        if path.is_dir():
            raise UserError(f"{path} is a folder: give a file")
        with suppress(FileNotFoundError):
            _beside(path).lstat()  # a name that is too long
        with tempfile.TemporaryFile(dir=next(parent for parent in path.absolute().parents if parent.exists())):
            pass
    except OSError as error:
        raise unwritable(path, error) from error


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def make_own_folder(out: Path, what: str) -> None:
    """Makes ``out``, the folder of ``what``, or finds it empty.

    Raises:
        UserError: it is a file, holds something already, or cannot be made; nothing was touched.
    """
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"{out} holds something else than {what}: give another output folder")
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out} cannot be made ({error.strerror}): give another output folder") from error


def cache_dir() -> Path:
    """Where downloads and derived files go: ``$PRISM_FAST_CACHE`` or ``~/.cache/prism_fast``."""
    return Path(os.environ.get("PRISM_FAST_CACHE") or Path.home() / ".cache" / "prism_fast")


def data_dir() -> Path:
    """Where real data sets lie: ``$PRISM_FAST_DATA`` or a folder in the cache."""
    return Path(os.environ.get("PRISM_FAST_DATA") or cache_dir() / "data")


def torchrun_place() -> tuple[int, int, int]:
    """(rank, number of ranks, rank on this machine) of a process that torchrun started; (0, 1, 0) of any other.

    Raises:
        UserError: the variables are no such numbers.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if "WORLD_SIZE" not in os.environ:
        return 0, 1, 0
    texts = [os.environ.get(name, "") for name in names]
    if not all(text.isdigit() for text in texts) or not int(texts[0]) < int(texts[1]):
        told = ", ".join(f"{name}={text!r}" for name, text in zip(names, texts, strict=True))
        raise UserError(f"{told} are not what torchrun sets: start with torchrun, or unset them")
    return int(texts[0]), int(texts[1]), int(texts[2])


def ranks_here() -> int:
    """How many processes torchrun started on this machine; 1 where it started none."""
    text = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return max(1, int(text)) if text.isdigit() else 1


def secret(variable: str) -> str:
    """A key from the environment. It goes to whom it is for, and into no file and no message.

    Raises:
        UserError: there is none.
    """
    value = os.environ.get(variable, "").strip()
    if not value or not value.isascii() or not value.isprintable():
        raise UserError(f"the environment variable {variable} holds no key: set it, or name another")
    return value


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


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_gpus() -> list[str]:
    """The GPUs that torch sees, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    named = comma_separated(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    count = torch.cuda.device_count()
    return named[:count] if named else [str(index) for index in range(count)]


def use_gpu(name: str) -> None:
    """This process sees one GPU alone, from :func:`visible_gpus`; to be called before CUDA is."""
    os.environ["CUDA_VISIBLE_DEVICES"] = name


def malloc_is_set() -> bool:
    """Whether the user has told glibc by the environment which memory to give back to the system."""
    names = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_MAX_")
    return any(name in os.environ for name in names) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")


def without_usage_statistics() -> None:
    """A Ray that this process starts reports nothing to its makers."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"


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
    from importlib import metadata

    import torch

    if device.type == "cuda":
        hardware = {"device_name": torch.cuda.get_device_name(device)}
    else:  # which vector instructions are used, and how many threads share a sum, decides the order of its terms
        name = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
        hardware = {"device_name": name, "threads": str(torch.get_num_threads())}
    versions = {package: metadata.version(package) for package in _FINGERPRINT_PACKAGES}
    # The full version names the build (+cpu, +cu130), which the package's metadata does not.
    return {**versions, "torch": str(torch.__version__), "device": device.type, **hardware, "dtype": dtype}
