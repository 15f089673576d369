"""Names that can mean several things, and whether the words of a class are near to the right one.

What a name can mean is known of ImageNet's and the built-in classes. Of a user's classes without a gloss it is looked
up in WordNet; a gloss of their own says enough.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from prism_fast.prompts.embedder import Embed
from prism_fast.prompts.vocabulary import Sense, Vocabulary
from prism_fast.prompts.wordnet import load_wordnet

_NAMED = 3  # classes in a report


@dataclass(frozen=True, kw_only=True)
class SenseCheck:
    """Where the words of one class lie, by a sentence encoder.

    Attributes:
        index: of the class.
        similarity: cosine of its words and its gloss.
        rival: the other meaning that its words are nearest to.
        rival_similarity: cosine of its words and that gloss.
    """

    index: int
    similarity: float
    rival: str
    rival_similarity: float

    @property
    def right(self) -> bool:
        """Whether the words are nearer to what is meant than to anything else that the name can mean."""
        return self.similarity > self.rival_similarity


def other_meanings(vocabulary: Vocabulary, index: int) -> tuple[str, ...]:
    """Glosses of what else a class's name can mean, other classes of the task included; of everything that it can
    mean where nothing says which is meant."""
    sense = vocabulary.senses[index]
    rivals = [vocabulary.senses[k].gloss for k in vocabulary.matches(sense.bare) if k != index]
    found = (*sense.other_senses, *rivals, *(_unsaid(sense) if not sense.gloss else ()))
    return tuple(dict.fromkeys(gloss for gloss in found if gloss and gloss != sense.gloss))


def _unsaid(sense: Sense) -> tuple[str, ...]:
    meanings = load_wordnet().senses(sense.bare)
    return tuple(meaning.gloss for meaning in meanings) if len(meanings) > 1 else ()


def ambiguity_text(vocabulary: Vocabulary) -> str:
    """How many names mean several things; of those that stand without a gloss, the first few.

    Empty where there is none.
    """
    found = {index: meanings for index in range(len(vocabulary)) if (meanings := other_meanings(vocabulary, index))}
    if not found:
        return ""
    bare = [index for index in found if not vocabulary.senses[index].gloss]
    lines = [f"names that can mean several things: {len(found)}, without a gloss {len(bare)}"]
    lines += [
        f"  {vocabulary.senses[index].name}: {len(found[index])} meanings, among them {found[index][0]!r}"
        for index in bare[:_NAMED]
    ]
    lines += ["  ..."] if len(bare) > _NAMED else []
    lines += ["  give each a gloss that says which is meant"] if bare else []
    return "\n".join(lines)


def check_senses(vocabulary: Vocabulary, embed: Embed) -> list[SenseCheck]:
    """Every class that has a gloss and whose name can mean something else too."""
    others = {
        index: meanings
        for index, sense in enumerate(vocabulary.senses)
        if sense.gloss and (meanings := other_meanings(vocabulary, index))
    }
    said = {index: (vocabulary.senses[index].phrase, vocabulary.senses[index].gloss) for index in others}
    texts = list(dict.fromkeys(text for index in others for text in (*said[index], *others[index])))
    vectors = dict(zip(texts, embed(texts), strict=True)) if texts else {}
    found = []
    for index, meanings in others.items():
        phrase, gloss = (vectors[text] for text in said[index])
        near = [float(np.dot(phrase, vectors[text])) for text in meanings]
        place = int(np.argmax(near))
        found.append(
            SenseCheck(
                index=index,
                similarity=float(np.dot(phrase, gloss)),
                rival=meanings[place],
                rival_similarity=near[place],
            )
        )
    return found


def senses_text(vocabulary: Vocabulary, checks: Sequence[SenseCheck]) -> str:
    """How many are right, and each that is not."""
    return "\n".join(_senses_lines(vocabulary, checks))


def _senses_lines(vocabulary: Vocabulary, checks: Sequence[SenseCheck]) -> Iterator[str]:
    if not checks:
        yield f"{vocabulary.name}: no name with a gloss that can mean something else too"
        return
    right = sum(check.right for check in checks)
    yield (
        f"{vocabulary.name}: of {len(checks)} classes whose name can mean something else too, the words of {right} "
        f"({right / len(checks):.1%}) are nearer to their gloss than to any other meaning's"
    )
    for check in checks:
        if not check.right:
            sense = vocabulary.senses[check.index]
            yield f"  {check.index} {sense.phrase}: {check.similarity:.2f} to {sense.gloss!r},"
            yield f"      {check.rival_similarity:.2f} to {check.rival!r}"
