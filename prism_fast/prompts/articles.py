"""English articles, by spelling; a wrong one only reads badly, so rare words are left alone."""

from __future__ import annotations

import re

_DETERMINERS = frozenset({"a", "an", "the", "some", "two", "three", "several", "my", "his", "her", "their"})
_VOWEL_SOUND = re.compile(r"[aeiou]|hour|honest|heir|honou?r", re.IGNORECASE)
_CONSONANT_SOUND = re.compile(r"uni[^nm]|us[ae]|ut[ei]|eu|ewe|one\b|once\b|ukulele|ur[aeio]", re.IGNORECASE)
_SINGULAR_IN_S = re.compile(r"(ss|us|is|as|lens|series|species|ceratops|pyrenees|flandres)$", re.IGNORECASE)


_UNCOUNTED_WORDS = """
    attire armor cattle clothing corn dough equipment food footwear furniture guacamole hair hay housing jewelry
    knitwear lotion makeup produce sunscreen swimwear swine velvet wood hosiery neckwear outerwear headgear soup
    meat seafood poultry wine coffee eggnog espresso consomme broccoli wool water mail powder carbonara thatch
    tissue
"""
_UNCOUNTED = frozenset(_UNCOUNTED_WORDS.split())
"""Nouns of the classes and of their kinds of which there is no single one."""


def is_plural(phrase: str) -> bool:
    """Whether a noun, or the last word of a phrase, is a plural, by spelling."""
    words = phrase.split()
    return bool(words) and words[-1].lower().endswith("s") and not _SINGULAR_IN_S.search(words[-1])


def is_uncounted(phrase: str) -> bool:
    """Whether there is no single one of what a noun, or the last word of a phrase, names."""
    words = phrase.split()
    return bool(words) and words[-1].lower() in _UNCOUNTED


def with_article(phrase: str) -> str:
    """``a``, ``an`` or, before a plural or another determiner, nothing."""
    head = phrase.split(",", maxsplit=1)[0].split()
    if not head or head[0].lower() in _DETERMINERS:
        return phrase
    if is_plural(head[-1]) or is_uncounted(head[-1]):
        return phrase
    vowel = _VOWEL_SOUND.match(phrase) and not _CONSONANT_SOUND.match(phrase)
    return f"{'an' if vowel else 'a'} {phrase}"
