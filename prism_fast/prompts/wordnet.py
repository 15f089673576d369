"""WordNet 3.0 as far as ImageNet needs it: what its nouns can mean, and what kind of thing each meaning is.

Lemmas and glosses of ImageNet's classes are timm's (``ImageNetInfo``). ``wordnet.tsv.gz`` adds the hypernyms, the order
of each noun's senses, and the lemmas and glosses of senses that no class of ImageNet has;
:mod:`prism_fast.prompts.wordnet_source` made it.

Source: Fellbaum (ed.), WordNet: An Electronic Lexical Database, MIT Press 1998; release 3.0.
"""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

FILE = Path(__file__).with_name("wordnet.tsv.gz")


@dataclass(frozen=True, kw_only=True)
class Synset:
    """One meaning.

    Attributes:
        wnid: ``n`` and WordNet 3.0's offset of eight digits, which names it in ImageNet.
        lemmas: the nouns that have this meaning, the usual one first.
        gloss: its definition; empty where it shares no lemma with a class of ImageNet.
        is_class: whether the full ImageNet or ImageNet-1k has it.
        parents: wnids of the kinds that it directly belongs to (hypernyms).
        ranks: the place of this meaning among those of each lemma; 1 is the most frequent.
    """

    wnid: str
    lemmas: tuple[str, ...]
    gloss: str
    is_class: bool
    parents: tuple[str, ...]
    ranks: tuple[int, ...]


class WordNet:
    """Looks up nouns and meanings.

    Args:
        synsets: by wnid.
    """

    def __init__(self, synsets: Mapping[str, Synset]) -> None:
        self._synsets = synsets
        self._hypernyms: dict[str, tuple[Synset, ...]] = {}

    def __contains__(self, wnid: object) -> bool:
        return wnid in self._synsets

    def __getitem__(self, wnid: str) -> Synset:
        return self._synsets[wnid]

    def senses(self, lemma: str) -> tuple[Synset, ...]:
        """Every meaning of a noun, in any case and with spaces or underscores; its most frequent one first."""
        key = lemma_key(lemma)
        return tuple(sorted(self._by_lemma.get(key, ()), key=lambda s: _rank(s, key)))

    def hypernyms(self, wnid: str) -> tuple[Synset, ...]:
        """Every kind that the meaning belongs to, the nearest first."""
        if wnid not in self._hypernyms:
            self._hypernyms[wnid] = self._above(wnid)
        return self._hypernyms[wnid]

    def _above(self, wnid: str) -> tuple[Synset, ...]:
        found: dict[str, None] = {}
        level = self._synsets[wnid].parents
        while level:
            found |= dict.fromkeys(level)
            level = tuple(p for each in level for p in self._synsets[each].parents if p not in found)
        return tuple(self._synsets[each] for each in found)

    def kind_names(self, wnid: str) -> tuple[str, ...]:
        """Names of every kind that the meaning belongs to, the nearest first, and then its own."""
        names = [lemma for kind in self.hypernyms(wnid) for lemma in kind.lemmas]
        return tuple(dict.fromkeys((*names, *self[wnid].lemmas)))

    def breadth(self, wnid: str) -> int:
        """How many meanings in this file are of that kind."""
        return self._breadths.get(wnid, 0)

    def plainness(self, word: str) -> int:
        """In how many glosses of ImageNet's classes a word stands: definitions are written in plain words."""
        return len(self._glosses_with.get(word.lower(), ()))

    def mentions(self, lemma: str) -> int:
        """In how many glosses a lemma stands, of one word or more."""
        words = words_of(lemma)
        places = [self._glosses_with.get(word, frozenset()) for word in words]
        if not places:
            return 0
        return sum(f" {' '.join(words)} " in self._glosses[place] for place in frozenset.intersection(*places))

    @cached_property
    def _glosses(self) -> list[str]:
        return [f" {' '.join(words_of(synset.gloss))} " for synset in self._synsets.values() if synset.is_class]

    @cached_property
    def _glosses_with(self) -> dict[str, frozenset[int]]:
        found: dict[str, set[int]] = {}
        for place, gloss in enumerate(self._glosses):
            for word in gloss.split():
                found.setdefault(word, set()).add(place)
        return {word: frozenset(places) for word, places in found.items()}

    @cached_property
    def _by_lemma(self) -> dict[str, list[Synset]]:
        found: dict[str, list[Synset]] = {}
        for synset in self._synsets.values():
            for key in {lemma_key(lemma) for lemma in synset.lemmas}:
                found.setdefault(key, []).append(synset)
        return found

    @cached_property
    def _breadths(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for wnid in self._synsets:
            for kind in self.hypernyms(wnid):
                found[kind.wnid] = found.get(kind.wnid, 0) + 1
        return found


def lemma_key(lemma: str) -> str:
    """What two spellings of one noun have in common."""
    return " ".join(lemma.replace("_", " ").lower().split())


def is_wnid(text: str) -> bool:
    """Whether a text is a noun synset's name in ImageNet."""
    return len(text) == 9 and text[0] == "n" and text[1:].isdecimal()


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation."""
    cleaned = "".join(c if c.isalnum() or c in "-'" else " " for c in text.lower())
    return cleaned.split()


def imagenet_info(subset: str) -> dict[str, tuple[tuple[str, ...], str]]:
    """(lemmas, gloss) of each class of timm's list, by wnid, in the order of the class indices."""
    from timm.data import ImageNetInfo

    info, found = ImageNetInfo(subset), {}
    for index in range(info.num_classes()):
        lemmas = info.index_to_description(index)
        gloss = info.index_to_description(index, detailed=True).removeprefix(f"{lemmas}: ")
        found[info.index_to_label_name(index)] = (tuple(lemmas.split(", ")), gloss)
    return found


def every_class() -> dict[str, tuple[tuple[str, ...], str]]:
    """The full ImageNet, and the class of ImageNet-1k that it lacks (n04399382, teddy)."""
    return {**imagenet_info("imagenet-21k"), **imagenet_info("imagenet-1k")}


@cache
def load_wordnet() -> WordNet:
    """The file and timm's list together."""
    info = every_class()
    synsets = {}
    for line in gzip.decompress(FILE.read_bytes()).decode().splitlines():
        offset, parents, ranks, names, definition = line.split("\t")
        wnid = f"n{offset}"
        lemmas, gloss = info.get(wnid, (tuple(names.split("|")), definition))
        synsets[wnid] = Synset(
            wnid=wnid,
            lemmas=lemmas,
            gloss=gloss,
            is_class=wnid in info,
            parents=tuple(f"n{parent}" for parent in parents.split()),
            ranks=tuple(int(rank) for rank in ranks.split()),
        )
    return WordNet(synsets)


def _rank(synset: Synset, key: str) -> int:
    pairs = zip(synset.lemmas, synset.ranks, strict=True)
    return min(rank for lemma, rank in pairs if lemma_key(lemma) == key)
