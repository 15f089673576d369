"""Which views of a set's images are labelled by whom."""

from __future__ import annotations

from dataclasses import dataclass, field

from prism_fast.data.augment_config import AugmentConfig
from prism_fast.distill.config import DistillConfig
from prism_fast.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ViewsConfig:
    """A file of labelled views.

    Attributes:
        data: folder of a shard set.
        out: a new file.
        teacher: name, folder or hub id, as ``load_teacher`` takes it.
        augment: how views are made; its ``views`` says how many of each image.
        top_k: how many logits of a view are kept, the largest; the others are spread evenly. None: all.
        batch: images a call of the teacher.
        seed: decides the views.
        ram_gib: sets whose decoded images are larger are decoded batch by batch.
    """

    data: str
    out: str
    teacher: str = "fashion"
    augment: AugmentConfig = field(default_factory=lambda: AugmentConfig(views=8))
    top_k: int | None = None
    batch: int = 128
    seed: int = 0
    device: str = "auto"
    ram_gib: float = 2.0

    def __post_init__(self) -> None:
        if self.augment.views is None:
            raise UserError("augment.views says how many views of each image are stored: give a number, not null")
        self.run()

    def run(self) -> DistillConfig:
        """The run in which the teacher says the same, which also checks the settings."""
        return DistillConfig(
            data=self.data,
            out=self.out,
            teacher=self.teacher,
            augment=self.augment,
            batch=self.batch,
            seed=self.seed,
            device=self.device,
            ram_gib=self.ram_gib,
        )
