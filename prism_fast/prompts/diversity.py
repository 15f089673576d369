"""How different the prompts of a class are, and what simpler ways of making prompts reach.

- distinct-n: different n-grams among all n-grams of a class's prompts (Li et al. 2016, arXiv 1510.03055, section 5.2).
- self-BLEU: mean BLEU-4 of each prompt against the class's others (Zhu et al. 2018, arXiv 1802.01886); counts of 0 are
  smoothed to 0.1. Lower is more different.
- embedding distance: mean of 1 - cos over the pairs of a class's prompts, in the space of a sentence encoder.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prism_fast.prompts.articles import with_article
from prism_fast.prompts.draw import shuffled
from prism_fast.prompts.embedder import Embed
from prism_fast.prompts.prompt_list import PromptList
from prism_fast.prompts.templates import CLIP_TEMPLATES, SINGLE_TEMPLATE
from prism_fast.prompts.vocabulary import Vocabulary
from prism_fast.prompts.wordnet import words_of

_BLEU_ORDER = 4
_SMOOTH = 0.1


@dataclass(frozen=True, kw_only=True)
class Diversity:
    """Means over classes.

    Attributes:
        distinct_1: 0 to 1.
        distinct_2: 0 to 1.
        self_bleu: 0 to 1; 1 where a class has one prompt, again and again.
        distance: 0 to 2; None without an encoder.
    """

    distinct_1: float
    distinct_2: float
    self_bleu: float
    distance: float | None


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Different n-grams among all of them; 0 where there are none."""
    grams = [gram for text in texts for gram in _grams(words_of(text), n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def self_bleu(texts: Sequence[str]) -> float:
    """Mean BLEU-4 of each text against all others; 1 for a single text."""
    if len(texts) < 2:
        return 1.0
    words = [words_of(text) for text in texts]
    counts = [[Counter(_grams(each, n)) for n in range(1, _BLEU_ORDER + 1)] for each in words]
    return math.fsum(_bleu(place, words, counts) for place in range(len(texts))) / len(texts)


def mean_distance(vectors: NDArray[np.float32]) -> float:
    """Mean of 1 - cos over all pairs of the rows of [N, D]; 0 for a single row."""
    rows = vectors.astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    count = len(rows)
    # sum over pairs i != j of u_i . u_j = |sum of u|^2 - N
    similarity = (np.square(rows.sum(axis=0)).sum() - count) / (count * (count - 1)) if count > 1 else 1.0
    return max(0.0, float(1 - similarity))  # rounding


def measure(lists: Sequence[Sequence[str]], embed: Embed | None = None) -> Diversity:
    """The diversity of the prompts of several classes, one list a class."""
    mean = lambda values: math.fsum(values) / len(lists)  # noqa: E731
    return Diversity(
        distinct_1=mean(distinct_n(texts, 1) for texts in lists),
        distinct_2=mean(distinct_n(texts, 2) for texts in lists),
        self_bleu=mean(self_bleu(texts) for texts in lists),
        distance=None if embed is None else mean(mean_distance(embed(texts)) for texts in lists),
    )


def compare(
    prompts: PromptList,
    vocabulary: Vocabulary,
    embed: Embed | None = None,
    *,
    classes: int = 20,
    each: int = 40,
    seed: int = 0,
) -> dict[str, Diversity]:
    """A list beside the class names alone, one template and CLIP's 80, on the same classes and as many prompts.

    Args:
        prompts: the list.
        vocabulary: its classes.
        embed: a sentence encoder.
        classes: how many are looked at.
        each: prompts of each, and no more than the list has; measures of n-grams depend on it.
        seed: which.
    """
    shown = shuffled(prompts.class_indices(), seed, "diversity")[:classes]
    each = min(each, *(len(prompts.for_class(index)) for index in shown))
    ways: Mapping[str, Callable[[int], Sequence[str]]] = {
        "this list": lambda index: [p.prompt for p in prompts.for_class(index)],
        "class names": lambda index: [vocabulary.senses[index].bare],
        "one template": lambda index: [SINGLE_TEMPLATE.format(with_article(vocabulary.senses[index].bare))],
        "CLIP's 80 templates": lambda index: [t.format(vocabulary.senses[index].bare) for t in CLIP_TEMPLATES],
    }
    found = {}
    for name, way in ways.items():
        lists = []
        for index in shown:
            texts = shuffled(way(index), seed, index)
            lists.append([texts[place % len(texts)] for place in range(each)])
        found[name] = measure(lists, embed)
    return found


def diversity_text(found: Mapping[str, Diversity]) -> str:
    """A table for people."""
    lines = [f"{'diversity':<20} distinct-1  distinct-2  self-BLEU  distance"]
    for name, row in found.items():
        distance = "-" if row.distance is None else f"{row.distance:.3f}"
        lines.append(
            f"{name:<20} {row.distinct_1:>10.3f}  {row.distinct_2:>10.3f}  {row.self_bleu:>9.3f}  {distance:>8}"
        )
    return "\n".join(lines)


def _grams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[place : place + n]) for place in range(len(words) - n + 1)]


def _bleu(place: int, words: Sequence[Sequence[str]], counts: Sequence[Sequence[Counter[tuple[str, ...]]]]) -> float:
    """BLEU of one text against the others (Papineni et al. 2002): clipped precisions and the brevity penalty."""
    own = counts[place]
    logs = []
    for n in range(_BLEU_ORDER):
        total = sum(own[n].values())
        if not total:
            break
        hits = sum(
            min(count, max(other[n][gram] for k, other in enumerate(counts) if k != place))
            for gram, count in own[n].items()
        )
        logs.append(math.log(max(hits, _SMOOTH) / total))
    length = len(words[place])
    nearest = min((abs(len(w) - length), len(w)) for k, w in enumerate(words) if k != place)[1]
    brevity = min(0.0, 1 - nearest / length) if length else 0.0
    return math.exp(brevity + math.fsum(logs) / len(logs)) if logs else 0.0
