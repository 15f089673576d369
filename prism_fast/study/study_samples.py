"""Samples of a method: two images of each class, a column a class."""

from __future__ import annotations

import base64

from torch import Tensor

from prism_fast.study.samples import paired_rows

ROWS = 2


def samples(images: Tensor, classes: Tensor) -> str:
    """PNG, in base64, of the first two images of each class, of images uint8 [N,3,H,W] and classes int64 [N].

    Classes that have fewer are left out.
    """
    columns = [
        rows[:ROWS].tolist() for index in classes.unique() if len(rows := (classes == index).nonzero()[:, 0]) > 1
    ]
    above, below = ([images[column[line]] for column in columns] for line in range(ROWS))
    return base64.b64encode(paired_rows(above, below)).decode()
