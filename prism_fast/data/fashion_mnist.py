"""The real Fashion-MNIST images (Xiao et al. 2017, MIT licence): fetched, checked, read.

Only the zoo's training, the study and the evaluation read them; synthesis and distillation never do.
Sources, in order: the cache, an installed Debian package, the Debian package fetched without root, the mirror
that torchvision names. They compress the same four IDX files differently, so what is pinned is the content.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import subprocess
import tempfile
import urllib.request
import zlib
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from prism_fast.config import data_dir
from prism_fast.errors import UserError

HASHES: Mapping[str, str] = {
    "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
"""File to SHA-256 of its *uncompressed* content."""

SPLITS = ("T", "G", "J", "V")
"""Teacher, generator, judge, validation: disjoint parts of the 60,000 training images."""

_PACKAGE = "dataset-fashion-mnist"
_PACKAGE_FOLDER = Path("usr/share/datasets/fashion-mnist")
_MIRROR = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"  # plain HTTP, hence the pinned hashes
_TIMEOUT_S = 600
_PREFIX = {"train": "train", "test": "t10k"}


class _Unavailable(Exception):
    """One source did not give the files; the next one is tried, and the reason is told if none does."""


def fetch(root: Path | None = None) -> Path:
    """Makes the four files present and correct, downloading only what is needed; returns their folder.

    Args:
        root: folder of the data set; default ``$PRISM_FAST_DATA/fashion-mnist``.

    Raises:
        UserError: no source works; the message gives each one's reason and the cure.
    """
    folder = data_dir() / "fashion-mnist" if root is None else root
    if all(_content(folder, name) is not None for name in HASHES):
        return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write Fashion-MNIST to {folder} ({error}); set PRISM_FAST_DATA elsewhere") from error
    reasons = []
    for label, source in _SOURCES.items():
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as temporary:
            try:
                _publish(source(Path(temporary)), Path(temporary), folder)
                return folder
            except _Unavailable as error:
                reasons.append(f"{label}: {error}")
    raise UserError(
        f"Fashion-MNIST is not in {folder} and could not be fetched ({'; '.join(reasons)}). Cure: `apt-get update` "
        f"and retry, or put the files {', '.join(HASHES)} of github.com/zalandoresearch/fashion-mnist into {folder}"
    )


def load(part: str, root: Path | None = None) -> tuple[Tensor, Tensor]:
    """The official ``"train"`` (60,000) or ``"test"`` (10,000) images, fetched first where missing.

    Returns:
        Images uint8 [N,28,28] and class indices int64 [N].
    """
    if part not in _PREFIX:
        raise UserError(f"unknown part {part!r} of Fashion-MNIST (known: {', '.join(_PREFIX)})")
    names = [f"{_PREFIX[part]}-{suffix}" for suffix in ("images-idx3-ubyte.gz", "labels-idx1-ubyte.gz")]
    folder = data_dir() / "fashion-mnist" if root is None else root
    contents = [_content(folder, name) for name in names]
    if any(content is None for content in contents):
        folder = fetch(root)
        contents = [_content(folder, name) for name in names]
    images, labels = (_parse_idx(content) for content in contents if content is not None)
    return images, labels.long()


def load_split(name: str, root: Path | None = None) -> tuple[Tensor, Tensor]:
    """One of the committed splits of the training images: ``T``, ``G``, ``J`` or ``V``.

    Returns:
        Images uint8 [N,28,28] and class indices int64 [N], in the order of ``zoo/fashion/splits.npz``.
    """
    if name not in SPLITS:
        raise UserError(f"unknown split {name!r} of Fashion-MNIST (known: {', '.join(SPLITS)})")
    path = resources.files("prism_fast") / "zoo" / "fashion" / "splits.npz"
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as splits:
        indices = torch.from_numpy(splits[name].astype(np.int64))
    images, labels = load("train", root)
    return images[indices], labels[indices]


def as_images(x: Tensor) -> Tensor:
    """Grey uint8 [N,28,28] to the project's image form: zero-padded by 2 on each side, uint8 [N,3,32,32]."""
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2))
    return padded[:, None].expand(-1, 3, -1, -1).contiguous()


def _content(folder: Path, name: str) -> bytes | None:
    """The uncompressed file, or None where it is missing, truncated or not the pinned content."""
    try:
        content = gzip.decompress((folder / name).read_bytes())
    except (OSError, EOFError, zlib.error):  # gzip.BadGzipFile is an OSError
        return None
    return content if hashlib.sha256(content).hexdigest() == HASHES[name] else None


def _parse_idx(content: bytes) -> Tensor:
    """IDX: two zero bytes, type 8 (uint8), number of dimensions, big-endian uint32 sizes, data."""
    sizes = np.frombuffer(content, ">u4", count=content[3], offset=4).astype(np.int64)
    data = np.frombuffer(content, np.uint8, offset=4 + 4 * len(sizes)).reshape(tuple(sizes))
    return torch.from_numpy(data.copy())


def _publish(source: Path, temporary: Path, folder: Path) -> None:
    """Checks all four files of ``source``, then puts each in place by a rename inside one file system."""
    for name in HASHES:
        if not (source / name).is_file():
            raise _Unavailable(f"has no {name}")
        if _content(source, name) is None:
            raise _Unavailable(f"{name} does not match its SHA-256")
    for name in HASHES:
        staged = temporary / f"{name}.staged"
        shutil.copyfile(source / name, staged)
        os.replace(staged, folder / name)


def _installed_package(_: Path) -> Path:
    folder = Path("/") / _PACKAGE_FOLDER
    if not folder.is_dir():
        raise _Unavailable("not installed")
    return folder


def _debian_package(temporary: Path) -> Path:
    """``apt-get download`` and ``dpkg -x`` need no root and install nothing."""
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        raise _Unavailable("no apt-get or dpkg here")
    _command(["apt-get", "download", _PACKAGE], temporary)
    archives = sorted(temporary.glob("*.deb"))
    if not archives:
        raise _Unavailable(f"apt-get downloaded no {_PACKAGE}")
    _command(["dpkg", "-x", str(archives[0]), str(temporary)], temporary)
    return temporary / _PACKAGE_FOLDER


def _mirror(temporary: Path) -> Path:
    for name in HASHES:
        try:
            with urllib.request.urlopen(_MIRROR + name, timeout=60) as response:  # noqa: S310 - a constant URL
                (temporary / name).write_bytes(response.read())
        except OSError as error:  # urllib's errors are OSErrors
            raise _Unavailable(f"{_MIRROR + name}: {error}") from error
    return temporary


def _command(arguments: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(arguments, cwd=folder, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise _Unavailable(f"{' '.join(arguments)} took over {_TIMEOUT_S} s") from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise _Unavailable(f"{' '.join(arguments[:2])}: {lines[-1]}")


_SOURCES: Mapping[str, Callable[[Path], Path]] = {
    "installed package": _installed_package,
    "Debian package": _debian_package,
    "mirror": _mirror,
}
