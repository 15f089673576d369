"""How alike variations are to the images that they start from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prism_fast.sampling.image_to_image import Sources, source_images
from prism_fast.teachers.extractors import Extractor


class Similarity:
    """Cosines of embeddings, in calls of one fixed shape.

    Args:
        embedding: images to features.
        sources: that rows start from.
        compute_batch: rows of every call.
    """

    def __init__(self, embedding: Extractor, sources: Sources, compute_batch: int) -> None:
        self._embedding, self._sources, self._batch = embedding, sources, compute_batch

    @torch.no_grad()
    def __call__(self, images: Tensor, classes: Sequence[int], seeds: Sequence[int]) -> list[float]:
        """Of each of n images its cosine with its source, which is shown at the image's size; -1 to 1.

        Args:
            images: uint8 [n, 3, H, W], n <= ``compute_batch``.
            classes, seeds: of their rows.
        """
        shown = source_images(self._sources, classes, seeds, (int(images.shape[2]), int(images.shape[3])))
        made, before = (self._embedded(part) for part in (images.cpu().float() / 255, shown))
        return [round(value, 6) for value in torch.cosine_similarity(made, before).tolist()]

    def _embedded(self, images: Tensor) -> Tensor:
        padded = torch.cat([images, images[-1:].expand(self._batch - len(images), -1, -1, -1)])
        return self._embedding.features(padded)[: len(images)].double().cpu()
