"""Who may see which of Fashion-MNIST's 60,000 training images.

T trains the teacher (and the real-data ceiling), G the generator, J the judge; V is for tuning that is labelled
``oracle-tuned``. The parts are disjoint, so that what one of them knows cannot have come from another's images.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

SIZES = {"T": 25_000, "G": 20_000, "J": 10_000, "V": 5_000}
SEED = 20_250_916
PATH = Path(__file__).parent / "fashion" / "splits.npz"


def write_splits(path: Path = PATH) -> None:
    """Writes the committed indices: one seeded permutation, cut into the parts."""
    order = np.random.default_rng(SEED).permutation(sum(SIZES.values()))
    cuts = np.cumsum(list(SIZES.values()))[:-1]
    parts = {name: np.sort(part).astype(np.uint16) for name, part in zip(SIZES, np.split(order, cuts), strict=True)}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, allow_pickle=False, **parts)
