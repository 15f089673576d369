"""Samples of a method: two images of each class, a column a class."""

from __future__ import annotations

import base64

from prism_fast.study.samples import paired_rows
from prism_fast.study.sources import Source, labels_of

ROWS = 2
COLUMNS = 12
"""As many classes as a page has room for."""


def samples(shown: Source) -> str:
    """PNG, in base64, of the first two images of each of the first classes.

    Classes that have fewer are left out.
    """
    classes = labels_of(shown)
    rows = [(classes == index).nonzero()[:ROWS, 0].tolist() for index in classes.unique()[:COLUMNS]]
    columns = [column for column in rows if len(column) == ROWS]
    above, below = ([shown.image(column[line]) for column in columns] for line in range(ROWS))
    return base64.b64encode(paired_rows(above, below)).decode()
