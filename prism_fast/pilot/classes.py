"""Which classes a pilot looks at: ``0-99``, ``3,7`` or names."""

from __future__ import annotations

import re

from prism_fast.errors import UserError
from prism_fast.prompts.vocabulary import Vocabulary


def choose_classes(text: str | None, vocabulary: Vocabulary) -> list[int]:
    """Class indices in rising order; all of them where ``text`` is None.

    Raises:
        UserError: no such class, a range that runs backwards, or nothing named.
    """
    if text is None:
        return list(range(len(vocabulary)))
    found: set[int] = set()
    for part in (part.strip() for part in text.strip("[] ").split(",")):
        if part:
            found |= set(_part(part, vocabulary))
    if not found:
        raise UserError(f"classes is {text!r}: name some, like 0-99 or 3,7,{vocabulary.names[0]}")
    return sorted(found)


def _part(part: str, vocabulary: Vocabulary) -> range:
    numbers = re.fullmatch(r"(\d+)(?:\s*-\s*(\d+))?", part)
    if numbers is None:
        index = vocabulary.index(part)
        return range(index, index + 1)
    first = int(numbers[1])
    last = int(numbers[2]) if numbers[2] else first
    if last < first or last >= len(vocabulary):
        raise UserError(f"classes has {part!r}: {vocabulary.name!r} has the classes 0-{len(vocabulary) - 1}")
    return range(first, last + 1)
