"""How a training view of an image is made."""

from __future__ import annotations

from dataclasses import dataclass

from prism_fast.config import MAX_COUNT, MAX_SIDE, require, require_whole


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How a training view of an image is made. Parameters are drawn per image and per view.

    Attributes:
        pad: random crop of the original size after zero-padding by this many pixels, fewer than an image has; 0 is off.
        flip: probability of a horizontal flip, in [0, 1].
        crop_scale: smallest share of the image's area that a random-resized-crop keeps, in (0, 1]; 1 is off.
        crop_ratio: largest aspect ratio (and inverse of the smallest) of that crop, in [1, 100].
        jitter: brightness, contrast and saturation change by factors in [1 - jitter, 1 + jitter], below 1; 0 is off.
        mixup: Beta(mixup, mixup) parameter of the mixing weight of two views (Zhang et al. 2018); 0 is off.
        cutmix: Beta(cutmix, cutmix) parameter of the share that a rectangle of another view leaves of an image (Yun et
            al. 2019); 0 is off. With mixup each image is mixed in one of the two ways, by a fair coin.
        views: how many different views of each image there are; None draws a new one every epoch. With ``views``
            the teacher labels each view once and its logits are kept (views x images x classes x 4 bytes).
    """

    pad: int = 2
    flip: float = 0.5
    crop_scale: float = 1.0
    crop_ratio: float = 4 / 3
    jitter: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    views: int | None = None

    def __post_init__(self) -> None:
        require_whole(self, "pad", 0, MAX_SIDE)
        require(0 <= self.flip <= 1, "flip", self.flip, "a probability")
        require(0 < self.crop_scale <= 1, "crop_scale", self.crop_scale, "in (0, 1]")
        require(1 <= self.crop_ratio <= 100, "crop_ratio", self.crop_ratio, "from 1 to 100")
        require(0 <= self.jitter < 1, "jitter", self.jitter, "in [0, 1)")
        for name in ("mixup", "cutmix"):
            value = getattr(self, name)
            require(value == 0 or 1e-3 <= value <= 1e3, name, value, "0, or from 0.001 to 1000")
        require_whole(self, "views", 1, MAX_COUNT)

    def check_side(self, side: int) -> None:
        """Refuses images of ``side`` pixels, the shorter of height and width, that crops could miss.

        Raises:
            UserError: they are not larger than the padding.
        """
        expected = f"below {side}, the shorter side of the views in pixels: crops could miss them"
        require(self.pad < side, "augment.pad", self.pad, expected)

    @property
    def mixes(self) -> bool:
        """Whether a view holds parts of two images."""
        return self.mixup > 0 or self.cutmix > 0

    @property
    def identity(self) -> bool:
        """Whether a view is always the whole image, unchanged."""
        return self.whole and self.flip == 0

    @property
    def whole(self) -> bool:
        """Whether a view is always the whole image, or its mirror image."""
        plain = AugmentConfig(pad=0, flip=self.flip, views=self.views, crop_ratio=self.crop_ratio)
        return self == plain
