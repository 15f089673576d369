"""Samples of a method: two images of each class, a column a class."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from prism_fast.study.samples import paired_columns, paired_rows
from prism_fast.study.sources import Source, labels_of

ROWS = 2
COLUMNS = 12
"""As many classes as a page has room for."""


@dataclass(frozen=True, kw_only=True)
class Samples:
    """What is shown of a method.

    Attributes:
        png: the picture, in base64.
        classes: class indices of its columns, from left to right; None where nothing says which they are.
    """

    png: str
    classes: tuple[int, ...] | None


def samples(shown: Source) -> dict[str, Any]:
    """The first two images of each of the first classes, as a record keeps them: see :func:`read_samples`.

    Classes that have fewer are left out.
    """
    classes = labels_of(shown)
    rows = {index: (classes == index).nonzero()[:ROWS, 0].tolist() for index in classes.unique()[:COLUMNS].tolist()}
    columns = {index: column for index, column in rows.items() if len(column) == ROWS}
    above, below = ([shown.image(column[line]) for column in columns.values()] for line in range(ROWS))
    return {"png": base64.b64encode(paired_rows(above, below)).decode(), "classes": list(columns)}


def read_samples(kept: str | Mapping[str, Any], num_classes: int) -> Samples:
    """What :func:`samples` gave, in this version or an earlier one, whose records have the picture alone.

    Args:
        kept: as a record has it.
        num_classes: K. A picture alone that has K columns left no class out.
    """
    if not isinstance(kept, str):
        return Samples(png=kept["png"], classes=tuple(kept["classes"]))
    whole = paired_columns(base64.b64decode(kept)) == num_classes
    return Samples(png=kept, classes=tuple(range(num_classes)) if whole else None)


def sample_figures(kept: Mapping[str, Any], names: Sequence[str]) -> str:
    """Pictures of methods, and which class a column is: once where it is the same in all of them.

    Args:
        kept: by method, what :func:`samples` gave.
        names: of the K classes.
    """
    shown = {name: read_samples(each, len(names)) for name, each in kept.items()}
    alike = len({each.classes for each in shown.values()}) == 1
    parts = []
    for name, each in shown.items():
        own = "" if alike or each.classes is None else f": {_from_left(each.classes, names)}"
        parts.append(
            f"<figure><figcaption><b>{escape(name)}</b>{own}</figcaption>"
            f'<img alt="samples of {escape(name, quote=True)}" src="data:image/png;base64,{each.png}"></figure>'
        )
    first = next(iter(shown.values()), None)
    which = f", {_from_left(first.classes, names)}" if alike and first is not None and first.classes is not None else ""
    note = (
        f"A column is a class{which}; classes of which there are fewer than {ROWS} images are left out. It has the "
        f"first {ROWS} images of its class. Of what is drawn these are the same rows of the plan in every method, with "
        "the same seed of the noise, where no row before them is left without an image; of <i>real</i> they are the "
        "first of the real test images."
    )
    return f'<div class="classes">{"".join(parts)}</div><p class="note">{note}</p>'


def _from_left(classes: Sequence[int], names: Sequence[str]) -> str:
    return f"from left to right: {escape(', '.join(names[index] for index in classes))}"
