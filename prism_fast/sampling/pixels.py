"""Sizes of images in pixels, and what an SDXL is told of them."""

from __future__ import annotations

from typing import Any


def image_size(pipe: Any, height: int | None, width: int | None, xl: bool) -> tuple[int, int]:
    """(height, width) in pixels, with the pipeline's defaults."""
    size, factor = pipe.unet.config.sample_size, int(pipe.vae_scale_factor)
    if xl:
        own = pipe.default_sample_size * factor
        return int(height or own), int(width or own)
    if height and width:
        return int(height), int(width)
    rows, columns = (size, size) if isinstance(size, int) else size
    return int(rows) * factor, int(columns) * factor


def time_ids(others: dict[str, Any], size: tuple[int, int]) -> tuple[list[int], list[int]]:
    """SDXL's micro-conditioning, six numbers each: of the negative half, of the other."""
    crop = tuple(others.get("crops_coords_top_left") or (0, 0))
    own = [*(others.get("original_size") or size), *crop, *(others.get("target_size") or size)]
    original, target = others.get("negative_original_size"), others.get("negative_target_size")
    if original is None or target is None:
        return own, own
    return [*original, *(others.get("negative_crops_coords_top_left") or (0, 0)), *target], own
