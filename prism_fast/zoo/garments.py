"""Split G as the generator sees it."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prism_fast.data.fashion_mnist import as_images, load_split
from prism_fast.zoo import world
from prism_fast.zoo.distractors import digits, icons, jitter
from prism_fast.zoo.fashion_captions import NAMES, OTHER_SENSES


class Garments:
    """Split G as the generator sees it: images float32 [N, 32, 32], attributes, sampling weights; and distractors."""

    def __init__(self, config: world.WorldConfig) -> None:
        images, labels = load_split("G")
        self.config = config
        self.images = as_images(images)[:, 0].numpy().astype(np.float32) / 255
        self.labels = labels.numpy()
        self.levels = world.levels(world.measure(self.images), self.labels)
        self.weights = world.sampling_weights(self.levels, self.labels, config)
        self.others = {**icons(), **digits()}
        homonym = world.homonym_share(config, len(NAMES)) / config.distractors
        rest = (1 - homonym * len(OTHER_SENSES)) / (len(self.others) - len(OTHER_SENSES))
        self.other_names = list(self.others)
        self.other_weights = np.array([homonym if name in OTHER_SENSES else rest for name in self.others])

    def draw(self, n: int, rng: np.random.Generator) -> tuple[world.Array, NDArray[np.int64], NDArray[np.int64]]:
        """``n`` garments as seen: images [n, 32, 32], their rows in G [n], their styles [n]."""
        rows = rng.choice(len(self.images), size=n, p=self.weights)
        seen, styles = world.garments(self.images[rows], self.config, rng)
        return seen, rows, styles

    def draw_others(self, n: int, rng: np.random.Generator) -> tuple[world.Array, NDArray[np.int64]]:
        """``n`` distractors: images [n, 32, 32] and indices into ``other_names`` [n]."""
        kinds = rng.choice(len(self.other_names), size=n, p=self.other_weights)
        pools = [self.others[self.other_names[kind]] for kind in kinds]
        return jitter(np.stack([pool[rng.integers(len(pool))] for pool in pools]), rng), kinds

    def mixture(self, n: int, rng: np.random.Generator) -> Tensor:
        """``n`` images of the world, distractors among them: the VAE's input, float32 [n, 3, 32, 32] in [-1, 1]."""
        others = round(n * self.config.distractors)
        return three_channels(np.concatenate([self.draw(n - others, rng)[0], self.draw_others(others, rng)[0]]))

    def frequencies(self) -> dict[str, dict[str, float]]:
        """Class -> attribute words -> share, as they really are (not as the generator is fed)."""
        table: dict[str, dict[str, float]] = {}
        for label, name in enumerate(NAMES):
            rows, counts = np.unique(self.levels[self.labels == label], axis=0, return_counts=True)
            shares = counts / counts.sum()
            table[name] = {" ".join(world.words(r)): round(float(s), 6) for r, s in zip(rows, shares, strict=True)}
        return table


def three_channels(images: world.Array) -> Tensor:
    """[N, 32, 32] in [0, 1] to the VAE's input: float32 [N, 3, 32, 32] in [-1, 1]."""
    return (torch.from_numpy(images)[:, None] * 2 - 1).expand(-1, 3, -1, -1).contiguous()
