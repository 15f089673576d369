"""Plain English for any classes: scenes that fit what the class is, and styles that fit the scene."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prism_fast.prompts.articles import with_article
from prism_fast.prompts.grammar import StyleMode, no_frequencies
from prism_fast.prompts.scenes import go_together, styles
from prism_fast.prompts.scenes.choice import scenes_for
from prism_fast.prompts.vocabulary import Sense

_OPENINGS = {**styles.PHOTOS, **styles.OTHER_MEDIA}


class EnglishGrammar:
    """``MEDIUM of a PHRASE, ACTION SETTING, COMPANY, VIEW, LENS, LIGHT,
    WEATHER, AGE, QUALITY``, most of it optional."""

    def content_axes(self, sense: Sense, /) -> Sequence[Sequence[str]]:
        """Actions, settings, company and views of the kind of thing that the class is."""
        scenes = scenes_for(sense.kinds)
        return [tuple(table) for table in (scenes.actions, scenes.settings, scenes.company, scenes.views)]

    def content_frequencies(self, sense: Sense) -> Mapping[tuple[str, ...], float]:
        """Nobody measured them: always raises."""
        raise no_frequencies(sense)

    def style_axes(self, mode: StyleMode) -> Sequence[Sequence[str]]:
        """``photo``: kinds of photos, lenses, light, weather, age, quality; ``wide``: other media as well."""
        if mode == "none":
            return [("",)]
        media = (*styles.PHOTOS, *styles.OTHER_MEDIA) if mode == "wide" else tuple(styles.PHOTOS)
        return [media, *styles.AXES]

    def go_together(self, sense: Sense, content: Sequence[str], style: Sequence[str]) -> bool:
        """Whether one picture can show all of it."""
        scenes = scenes_for(sense.kinds)
        tables = (scenes.actions, scenes.settings, scenes.company, scenes.views)
        conditions = [table.get(said, "") for table, said in zip(tables, content, strict=False)]
        return go_together([*conditions, *(styles.CONDITIONS.get(said, "") for said in style)])

    def join(self, content: Sequence[str]) -> str:
        """For instance ``standing in shallow water, with its mate, seen from the side``."""
        parts = [part for part in content if part]
        if len(content) > 1 and content[0].partition(" ")[0].endswith("ing") and content[1]:
            parts[:2] = [" ".join(parts[:2])]
        return ", ".join(parts)

    def render(self, phrase: str, content: Sequence[str], style: Sequence[str]) -> str:
        """For instance ``a photo of a crane, a bird, standing in shallow water, at dusk``."""
        opening = _OPENINGS.get(style[0]) if style else None
        subject = f"{opening} of {with_article(phrase)}" if opening else phrase
        return ", ".join(part for part in (subject, self.join(content), *(style[1:] if style else ())) if part)
