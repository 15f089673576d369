"""Latent CutMix: a box of one row's clean latents from another's, before the final decode.

CutMix (Yun et al. 2019, arXiv 1905.04899) on latents, as DiffDFKD has it (Qi et al. 2025, arXiv 2504.00870). Who is
mixed with whom, and where, is a function of the plan: rows of a group, which lies within a shard, stand in a seeded
circle, and each takes its box from the next. So an image depends on two rows and not on what was drawn beside it; a row
that is drawn alone has its partner drawn with it.

Light to import: torch comes with the images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from prism_fast.synthesis.plan import Mix, Plan, Row, sampler_arguments

if TYPE_CHECKING:
    from torch import Tensor

    from prism_fast.sampling.pending import Pending, QueuingSampler


@dataclass(frozen=True, kw_only=True)
class Mixer:
    """Draws rows and mixes them with their partners.

    Args:
        plan: of the rows.
        decode: clean latents fp32 [n, C, h, w] to images uint8 [n, 3, H, W], n <= ``compute_batch``.
    """

    plan: Plan
    decode: Callable[[Tensor], Tensor]

    def begin(self, sampler: QueuingSampler, rows: Sequence[Row]) -> Pending:
        """As the sampler's ``begin``, and waits. Partners are those of the first attempt, whichever the row's is.

        Energies, gates and dropped guidances of the batch are those of the rows themselves.
        """
        import torch

        from prism_fast.sampling.pending import done

        size = self.plan.config.sampler.compute_batch
        drawn = {row.index for row in rows if not row.attempt}
        absent = sorted({row.mix.partner for row in rows if row.mix is not None} - drawn)
        others = [self.plan.row(index) for index in absent]
        parts = [others[first : first + size] for first in range(0, len(others), size)]
        batch = sampler.begin(*sampler_arguments(rows)).result()
        latents = {row.index: own for row, own in zip(rows, batch.latents, strict=True) if not row.attempt}
        for part in parts:
            found = sampler.begin(*sampler_arguments(part)).result()
            latents |= {row.index: own for row, own in zip(part, found.latents, strict=True)}
        places = [place for place, row in enumerate(rows) if row.mix is not None]
        if not places:
            return done(batch)
        boxes = [(place, rows[place].mix) for place in places]
        mixed = [mixed_latents(batch.latents[place], latents[mix.partner], mix) for place, mix in boxes if mix]
        all_latents, images = batch.latents.clone(), batch.images.clone()
        all_latents[places] = torch.stack(mixed)
        images[places] = self.decode(torch.stack(mixed))
        return done(replace(batch, latents=all_latents, images=images))


def mixed_latents(own: Tensor, other: Tensor, mix: Mix) -> Tensor:
    """[C, h, w]: ``own`` with the box of ``mix`` from ``other``; its edges lie on the nearest whole latent pixels."""
    height, width = own.shape[1:]
    top, left, bottom, right = mix.box
    rows = slice(round(top * height), round(bottom * height))
    columns = slice(round(left * width), round(right * width))
    found = own.clone()
    found[:, rows, columns] = other[:, rows, columns]
    return found
