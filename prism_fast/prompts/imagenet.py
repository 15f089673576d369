"""ImageNet's classes as vocabularies: timm's lists, and the subsets that people train on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from prism_fast.errors import UserError
from prism_fast.prompts.disambiguate import Disambiguator
from prism_fast.prompts.vocabulary import Sense, Vocabulary
from prism_fast.prompts.wordnet import WordNet, imagenet_info, is_wnid, load_wordnet


class Named(NamedTuple):
    """A phrase, and the kind that its scenes are for."""

    phrase: str
    kind: str


EXCEPTIONS: Mapping[str, Named] = {
    # the rule goes wrong
    "n02134084": Named("polar bear", "bear"),  # WordNet has the rare name ice bear first, and no gloss has either
    "n02704792": Named("amphibious vehicle", "vehicle"),  # WordNet counts wheeled vehicles as containers
    "n03710721": Named("maillot, a bathing suit", "clothing"),  # WordNet's tights are no garment; to the eye they are
    "n04118776": Named("ruler, a measuring stick", "measuring device"),  # rule, an instrument: of music?
    "n04456115": Named("burning torch", "source of illumination"),  # torch, a light: electric torches are one too
    "n09229709": Named("bubble, a hollow globule of gas", "bubble"),  # bubble, a globe: of the earth?
    # the pictures of the class show something else than its synset
    "n01514668": Named("rooster", "domestic fowl"),  # WordNet: any adult male bird
    "n01514859": Named("hen, a female chicken", "domestic fowl"),  # WordNet: any adult female bird
    "n03782006": Named("computer monitor", "electronic equipment"),  # WordNet: to check transmissions with
    "n04404412": Named("television set", "electronic equipment"),  # WordNet: the system
    "n06359193": Named("website shown on a screen", "website"),  # WordNet: a computer that serves pages
    "n07930864": Named("cup, a small container for drinking", "container"),  # WordNet: a punch
    "n13133613": Named("ear of corn", "vegetable"),  # WordNet: the fruiting spike of any cereal
}
"""Words of classes for which those of the rule would not do."""


def imagenet_1k() -> Vocabulary:
    """The 1,000 classes of ILSVRC 2012, in the usual order."""
    return imagenet_vocabulary("imagenet-1k", list(imagenet_info("imagenet-1k")))


def imagenet_12k() -> Vocabulary:
    """timm's 11,821 classes of the full ImageNet that have enough images."""
    return imagenet_vocabulary("imagenet-12k", list(imagenet_info("imagenet-12k")))


def imagenet_21k() -> Vocabulary:
    """The full ImageNet, 21,843 classes in the order of Google's models, which is timm's."""
    return imagenet_vocabulary("imagenet-21k", list(imagenet_info("imagenet-21k")))


def imagenet_100() -> Vocabulary:
    """The 100 classes of Tian et al. 2019 (arXiv 1906.05849), sorted by wnid as a folder of them is."""
    return _subset("imagenet-100")


def imagenette() -> Vocabulary:
    """Ten easy classes (github.com/fastai/imagenette), sorted by wnid."""
    return _subset("imagenette")


def imagewoof() -> Vocabulary:
    """Ten dogs (github.com/fastai/imagenette), sorted by wnid."""
    return _subset("imagewoof")


def imagenet_vocabulary(name: str, wnids: Sequence[str]) -> Vocabulary:
    """A vocabulary of ImageNet classes, each named so that it is told from everything else of its name.

    Args:
        name: of the vocabulary.
        wnids: of its classes, in the order of their indices.

    Raises:
        UserError: no such class in ImageNet, or one twice.
    """
    wordnet = load_wordnet()
    for wnid, count in Counter(wnids).items():
        if not is_wnid(wnid) or wnid not in wordnet or not wordnet[wnid].is_class:
            raise UserError(f"ImageNet has no class {wnid!r}: a wnid is like n02012849")
        if count > 1:
            raise UserError(f"class {wnid} is named {count} times: a class has one index")
    disambiguator = Disambiguator(wordnet, wnids, {wnid: named.phrase for wnid, named in EXCEPTIONS.items()})
    senses = [_sense(wordnet, disambiguator, wnid) for wnid in wnids]
    return Vocabulary(name=name, senses=tuple(_with_own_names(senses)))


def _sense(wordnet: WordNet, disambiguator: Disambiguator, wnid: str) -> Sense:
    synset, found = wordnet[wnid], disambiguator(wnid)
    own = (EXCEPTIONS[wnid].kind,) if wnid in EXCEPTIONS else ()
    return Sense(
        name=synset.lemmas[0],
        phrase=found.phrase,
        gloss=synset.gloss,
        other_senses=found.others,
        parent=found.kind or next(disambiguator.kinds(synset), ""),
        synonyms=synset.lemmas[1:],
        kinds=tuple(dict.fromkeys((*own, *wordnet.kind_names(wnid)))),
        word=synset.lemmas[0],
        wnid=wnid,
    )


def _with_own_names(senses: Sequence[Sense]) -> list[Sense]:
    """Senses whose names differ: a name of several classes gets its kind behind it, or where that is shared its wnid.

    Without it the name becomes a synonym, so that asking for it tells which classes have it.
    """
    shared = Counter(sense.name.lower() for sense in senses)
    kinded = Counter(f"{sense.name} ({sense.parent})".lower() for sense in senses)
    made = []
    for sense in senses:
        if shared[sense.name.lower()] > 1:
            kind = f"{sense.name} ({sense.parent})"
            own = kind if sense.parent and kinded[kind.lower()] == 1 else f"{sense.name} ({sense.wnid})"
            sense = replace(sense, name=own, synonyms=(sense.name, *sense.synonyms))
        made.append(sense)
    return made


def _subset(name: str) -> Vocabulary:
    lines = Path(__file__).with_name("subsets").joinpath(f"{name}.txt").read_text().split()
    return imagenet_vocabulary(name, lines)
