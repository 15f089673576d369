"""Plain English for any classes: a few scenes, viewpoints and lightings that fit whatever the class is.

Nothing here may contradict another choice (no weather, as a scene may be indoors) or suppose what the class is
(no habitat, no table).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from prism_fast.prompts.grammar import StyleMode, no_frequencies
from prism_fast.prompts.vocabulary import Sense

VIEWPOINTS = (
    "",
    "seen from the front",
    "seen from the side",
    "seen from behind",
    "seen from above",
    "seen from below",
    "seen at an angle",
    "close up",
    "far away",
)
SCENES = (
    "",
    "on a plain background",
    "on a cluttered background",
    "in its usual surroundings",
    "indoors",
    "outdoors",
    "partly hidden",
    "next to other things",
)
LIGHTINGS = ("", "in daylight", "in soft light", "in harsh light", "in dim light", "lit from behind", "in warm light")

PHOTO_STYLES: Mapping[str, str] = {
    "photo": "a photo",
    "amateur photo": "an amateur photo",
    "professional photo": "a professional photo",
    "snapshot": "a snapshot",
    "blurry photo": "a slightly blurry photo",
}
OTHER_STYLES: Mapping[str, str] = {
    "black and white photo": "a black and white photo",
    "oil painting": "an oil painting",
    "watercolour": "a watercolour",
    "pencil sketch": "a pencil sketch",
    "line drawing": "a line drawing",
    "illustration": "an illustration",
    "cartoon": "a cartoon",
    "rendering": "a 3d rendering",
    "silhouette": "a silhouette",
}

_DETERMINERS = frozenset({"a", "an", "the", "some", "two", "three", "several", "my", "his", "her", "their"})
_VOWEL_SOUND = re.compile(r"[aeiou]|hour|honest|heir|honou?r", re.IGNORECASE)
_CONSONANT_SOUND = re.compile(r"uni[^nm]|us[ae]|ut[ei]|eu|ewe|one\b|once\b|ukulele|ur[aeio]", re.IGNORECASE)
_SINGULAR_IN_S = re.compile(r"(ss|us|is|as|lens|series|species)$", re.IGNORECASE)


class EnglishGrammar:
    """``STYLE of a PHRASE[, VIEWPOINT][, SCENE][, LIGHTING]``."""

    def content_axes(self, _sense: Sense) -> Sequence[Sequence[str]]:
        """The same neutral axes for every class."""
        return (VIEWPOINTS, SCENES, LIGHTINGS)

    def content_frequencies(self, sense: Sense) -> Mapping[tuple[str, ...], float]:
        """Nobody measured them: always raises."""
        raise no_frequencies(sense)

    def styles(self, mode: StyleMode) -> Sequence[str]:
        """``photo``: kinds of photos; ``wide``: also paintings, drawings, renderings."""
        presets: Mapping[str, Sequence[str]] = {
            "none": ("",),
            "photo": tuple(PHOTO_STYLES),
            "wide": (*PHOTO_STYLES, *OTHER_STYLES),
        }
        return presets[mode]

    def join(self, content: Sequence[str]) -> str:
        """For instance ``seen from the side, indoors``."""
        return ", ".join(part for part in content if part)

    def render(self, phrase: str, content: Sequence[str], style: str) -> str:
        """For instance ``a photo of a crane, a wading bird, seen from the side, indoors``."""
        opening = {**PHOTO_STYLES, **OTHER_STYLES}.get(style)
        subject = f"{opening} of {with_article(phrase)}" if opening else phrase
        said = self.join(content)
        return f"{subject}, {said}" if said else subject


def with_article(phrase: str) -> str:
    """``a``, ``an`` or, before a plural or another determiner, nothing.

    By spelling; a wrong article only reads badly, so rare words are left alone.
    """
    head = phrase.split(",", maxsplit=1)[0].split()
    if not head or head[0].lower() in _DETERMINERS:
        return phrase
    if head[-1].lower().endswith("s") and not _SINGULAR_IN_S.search(head[-1]):
        return phrase
    vowel = _VOWEL_SOUND.match(phrase) and not _CONSONANT_SOUND.match(phrase)
    return f"{'an' if vowel else 'a'} {phrase}"
