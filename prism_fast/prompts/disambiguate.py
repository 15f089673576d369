"""The shortest words that say which meaning of a class's name is meant.

A candidate is one of the class's lemmas, alone (``laptop computer``) or followed by a kind that the class belongs to
(``crane, a bird``). It separates where

- with a kind: nothing else that WordNet knows as that lemma, and no other class of the task that answers to it, is of
  that kind;
- alone: nothing else has that lemma, and it explains itself: its last word names a kind that the class belongs to
  (``golden retriever``), or it is a word that definitions are written in (``acorn``).

Of the candidates that separate, those with the class's usual name go first: its first lemma, or one that ends in it or
begins with it (``Cardigan Welsh corgi``). Among them the one of the fewest words is taken; then a lemma alone, then the
lemma that comes first, then the kind nearest to the class. Where none separates, the class's gloss follows its name, as
far as its first clause goes.

A kind is sayable where each of its words is plain (stands in at least :data:`PLAIN` glosses), where that word usually
means it (among the first :data:`USUAL` senses), where it is not of almost everything (at most :data:`BROAD` meanings
below it), and where it is none of :data:`AVOIDED`, nor uncountable (``a furniture``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from prism_fast.prompts.articles import is_plural, is_uncounted, with_article
from prism_fast.prompts.wordnet import Synset, WordNet, lemma_key

PLAIN = 4
USUAL = 2
BROAD = 1200
_AVOIDED_WORDS = """
    attire automatic body brass cover covering decapod flat good goods hose instrumentality java lodging long
    nourishment percoid piece placental produce protection sheet solid string structure system transport upright
    vertical viverrine wear work works
"""
AVOIDED = frozenset(_AVOIDED_WORDS.split())
"""Kinds that say nothing about a thing, that read as something else, or that only a zoologist says."""

_LONGEST_KIND = 3
_LONGEST_GLOSS = 10  # words
_BINOMIAL = re.compile(r"[A-Z][a-z]+ [a-z]+( [a-z]+)?")


@dataclass(frozen=True, kw_only=True)
class Disambiguated:
    """How a class is named in a prompt.

    Attributes:
        phrase: the words.
        lemma: the name in it.
        kind: the kind in it; empty where the lemma stands alone or the gloss follows.
        others: glosses of the other meanings of the class's first lemma, the most frequent first, and of other classes
            of the task that answer to it.
    """

    phrase: str
    lemma: str
    kind: str
    others: tuple[str, ...]


class Disambiguator:
    """Names the classes of one task.

    Args:
        wordnet: the meanings.
        classes: wnids of the task's classes.
        exceptions: phrases for wnids where the rule is known to go wrong.
    """

    def __init__(self, wordnet: WordNet, classes: Sequence[str], exceptions: Mapping[str, str]) -> None:
        self._wordnet, self._exceptions = wordnet, exceptions
        self._classes: dict[str, list[str]] = {}
        for wnid in classes:
            for key in {_stem(lemma) for lemma in wordnet[wnid].lemmas}:
                self._classes.setdefault(key, []).append(wnid)

    def __call__(self, wnid: str) -> Disambiguated:
        """The words for a class."""
        synset = self._wordnet[wnid]
        usual = self.usual_name(synset)
        best = min(self._candidates(synset), default=None, key=lambda c: c[0])
        phrase, lemma, kind = best[1] if best else (_glossed(usual, synset.gloss), usual, "")
        if wnid in self._exceptions:
            phrase, kind = self._exceptions[wnid], ""
        return Disambiguated(
            phrase=phrase,
            lemma=lemma,
            kind=kind,
            others=tuple(other.gloss for other in self._others(synset, synset.lemmas[0])),
        )

    def kinds(self, synset: Synset) -> Iterator[str]:
        """Sayable kinds of a class, the nearest first."""
        for kind in self._wordnet.hypernyms(synset.wnid):
            if self._wordnet.breadth(kind.wnid) > BROAD or kind.lemmas[0] in AVOIDED:
                continue
            for lemma, rank in zip(kind.lemmas, kind.ranks, strict=True):
                words = lemma.split()
                plain = all(self._wordnet.plainness(word) >= PLAIN for word in words) and len(words) <= _LONGEST_KIND
                odd = words[-1] in AVOIDED or is_uncounted(lemma) or (is_plural(lemma) and lemma != kind.lemmas[0])
                if plain and rank <= USUAL and not odd:
                    yield lemma

    def usual_name(self, synset: Synset) -> str:
        """The first lemma; where no gloss has that word, the first that one has and that means nothing else."""
        first, *rest = synset.lemmas
        if not self._wordnet.mentions(first):
            own = (name for name in rest if len(self._wordnet.senses(name)) == 1 and not _extends(first, name))
            return next((name for name in own if self._wordnet.mentions(name)), first)
        return first

    def _candidates(self, synset: Synset) -> Iterator[tuple[tuple[bool, int, bool, int, int], tuple[str, str, str]]]:
        """(order, (phrase, lemma, kind)) of what separates."""
        kinds = list(dict.fromkeys(self.kinds(synset)))
        names = {lemma_key(lemma) for lemma in synset.lemmas}
        usual = self.usual_name(synset)
        for place, lemma in enumerate([usual, *(other for other in synset.lemmas if other != usual)]):
            if place and self._is_latin(lemma):
                continue
            others = self._others(synset, lemma)
            foreign = not _extends(lemma, usual)
            if not others and self._explains_itself(synset, lemma):
                yield (foreign, len(lemma.split()), False, place, 0), (lemma, lemma, "")
            taken = {key for other in others for key in self._kind_names(other)}
            for distance, kind in enumerate(kinds):
                if lemma_key(kind) in names | taken or _stem(kind) == _stem(lemma):
                    continue
                phrase = f"{lemma}, {with_article(kind)}"
                yield (foreign, len(phrase.split()), True, place, distance), (phrase, lemma, kind)

    def _is_latin(self, lemma: str) -> bool:
        """Whether a lemma is a species' scientific name: the image generator's captions rarely have it."""
        return bool(_BINOMIAL.fullmatch(lemma)) and self._wordnet.plainness(lemma.rsplit(maxsplit=1)[-1]) < PLAIN

    def _others(self, synset: Synset, lemma: str) -> list[Synset]:
        """Everything else that is called so: in WordNet, or, but for an ending, in the task."""
        found = {other.wnid: other for other in self._wordnet.senses(lemma)}
        found |= {wnid: self._wordnet[wnid] for wnid in self._classes[_stem(lemma)]}
        return [other for wnid, other in found.items() if wnid != synset.wnid]

    def _kind_names(self, synset: Synset) -> set[str]:
        """Every name of every kind of a meaning, and its own."""
        kinds = (synset, *self._wordnet.hypernyms(synset.wnid))
        return {lemma_key(lemma) for kind in kinds for lemma in kind.lemmas}

    def _explains_itself(self, synset: Synset, lemma: str) -> bool:
        words = lemma.split()
        kinds = {lemma_key(name) for kind in self._wordnet.hypernyms(synset.wnid) for name in kind.lemmas}
        if len(words) > 1 and words[-1].lower() in kinds:
            return True
        return len(words) == 1 and self._wordnet.plainness(lemma) >= PLAIN


def _stem(lemma: str) -> str:
    """A noun without the ending of its plural, roughly: sunglasses and sunglass must be told apart."""
    return re.sub(r"(?<=ss)es$|(?<=[^s])s$", "", lemma_key(lemma))


def _extends(lemma: str, usual: str) -> bool:
    long, short = lemma_key(lemma), lemma_key(usual)
    return long == short or long.startswith(f"{short} ") or long.endswith(f" {short}")


def _glossed(lemma: str, gloss: str) -> str:
    """The name and the first clause of its gloss, or as much of it as a prompt has room for."""
    clause = " ".join(re.split(r"[;:]", re.sub(r"\([^)]*\)", "", gloss))[0].split())
    many = re.match(r"any of (various|numerous|several|the) ", clause)
    words = clause[many.end() if many else 0 :].removeprefix("usually ").split()
    if len(words) > _LONGEST_GLOSS:
        ends = [place for place, word in enumerate(words[:_LONGEST_GLOSS]) if word in _JOINS and place > 2]
        words = words[: ends[-1] if ends else _LONGEST_GLOSS]
    while len(words) > 1 and words[-1] in _JOINS:
        words.pop()
    said = " ".join(words).strip(" ,")
    return f"{lemma}, {said if many else _with_head_article(said)}" if said else lemma


def _with_head_article(said: str) -> str:
    """An article before a clause whose head is one thing: the head is the last word before the first joint."""
    words = said.split()
    end = next((place for place, word in enumerate(words) if place and word in _JOINS), len(words))
    group = " ".join(words[:end]).rstrip(",")
    return said if is_plural(group.split(",")[0]) or words[0] in _OPEN else f"{with_article(group)}{said[len(group) :]}"


_JOINS_WORDS = """
    that which who whose of for with having used in on to from by and or as where worn made covered consisting
    distinguished usually
"""
_JOINS = frozenset(_JOINS_WORDS.split())
_OPEN_WORDS = """
    any either only one each something anything someone
"""
_OPEN = frozenset(_OPEN_WORDS.split())
