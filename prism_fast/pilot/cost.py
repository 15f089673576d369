"""How long the planned synthesis takes, and what that costs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prism_fast.config import peak_memory_bytes

if TYPE_CHECKING:
    import torch


def cost(
    images: int,
    pilot_images: int,
    unguided_s: float,
    guided_s: float | None,
    price_per_hour: float | None,
    workers: int = 1,
) -> dict[str, float | int | None]:
    """Hours of workers like this process: the pilot unguided, by one of them, the set guided (unguided where nothing
    guides), by all.

    Args:
        images: of the set.
        pilot_images: unguided ones that the synthesis draws first.
        unguided_s, guided_s: seconds an image, of sampling; labels and files are not in it.
        price_per_hour: of one worker, in any currency; all are paid from beginning to end.
        workers: how many.
    """
    seconds = pilot_images * unguided_s + images * (unguided_s if guided_s is None else guided_s) / workers
    hours = seconds / 3600
    return {
        "images": images,
        "pilot_images": pilot_images,
        "unguided_images_per_s": 1 / unguided_s,
        "guided_images_per_s": None if guided_s is None else 1 / guided_s,
        "hours": hours,
        "price_per_hour": price_per_hour,
        "cost": None if price_per_hour is None else hours * workers * price_per_hour,
    }


def peak_memory(device: torch.device) -> dict[str, int]:
    """The most that was held at once, in bytes: of the process, and on CUDA of the device by torch."""
    import torch

    found = {"process_bytes": peak_memory_bytes()}
    if device.type == "cuda":
        found["device_bytes"] = int(torch.cuda.max_memory_allocated(device))
    return found
