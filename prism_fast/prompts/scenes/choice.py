"""Which scenes are for which class."""

from __future__ import annotations

from functools import lru_cache

from prism_fast.prompts.scenes import Scenes
from prism_fast.prompts.scenes.animals import ANIMALS
from prism_fast.prompts.scenes.places import OTHER
from prism_fast.prompts.scenes.things import MADE, THING

ALL: tuple[Scenes, ...] = (*ANIMALS, *OTHER, *MADE)
_BY_WORD = {word: scenes for scenes in reversed(ALL) for word in scenes.words}


@lru_cache(maxsize=64)  # asked thousands of times about one class
def scenes_for(kinds: tuple[str, ...]) -> Scenes:
    """The scenes of the first kind that has some; those that suit anything where none has.

    Args:
        kinds: names of what a class is, the nearest first (``wading bird``, ``bird``, ``animal``).
    """
    return next((_BY_WORD[kind.lower()] for kind in kinds if kind.lower() in _BY_WORD), THING)
