"""How many tokens CLIP's tokenizer makes of a text, without a pipeline at hand.

Stable Diffusion 1.x, 2.x and SDXL read prompts through CLIP's tokenizer (Radford et al. 2021, arXiv 2103.00020): byte
pairs (Sennrich et al. 2016, arXiv 1508.07909) of the lower-case words. ``clip_merges.txt.gz`` has its 48,894 merges:
lines 2 to 48,895 of CLIP's bpe_simple_vocab_16e6.txt.gz (github.com/openai/CLIP, MIT licence).
"""

from __future__ import annotations

import gzip
import re
import unicodedata
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

FILE = Path(__file__).with_name("clip_merges.txt.gz")
LIMIT = 77
"""Tokens of a prompt at most, the marker at its beginning and that at its end included."""
EARLY = 30
"""The words of the class end within so many tokens, the first marker included: later ones weigh less in the picture."""

_CONTRACTION = re.compile(r"'(?:s|t|re|ve|m|ll|d)")


def fits_clip(text: str) -> bool:
    """Whether CLIP's tokenizer takes a prompt uncut."""
    return clip_tokens(text) + 2 <= LIMIT


def names_early(prompt: str, phrase: str) -> bool:
    """Whether the words of the class, which are in the prompt, end within its first :data:`EARLY` tokens."""
    return clip_tokens(prompt[: prompt.index(phrase) + len(phrase)]) + 1 <= EARLY


def clip_tokens(text: str) -> int:
    """Tokens of a text, without the two markers.

    Broken text is not mended first, as CLIP's own code does with ftfy and the tokenizers of pipelines do not.
    """
    return sum(map(_word_tokens, unicodedata.normalize("NFC", text).lower().split()))


@cache
def _word_tokens(word: str) -> int:
    return sum(len(_symbols(piece)) for piece in _pieces(word))


def _pieces(word: str) -> Iterator[str]:
    """A word without spaces cut into contractions, runs of letters, single digits, and runs of anything else."""
    start = 0
    while start < len(word):
        contraction = _CONTRACTION.match(word, start)
        kind = _kind(word[start])
        end = contraction.end() if contraction else start + 1
        while not contraction and kind != "N" and end < len(word) and _kind(word[end]) == kind:
            end += 1
        yield word[start:end]
        start = end


def _kind(character: str) -> str:
    kind = unicodedata.category(character)[0]
    return kind if kind in "LN" else ""


def _symbols(piece: str) -> tuple[str, ...]:
    """What a piece is after all merges of pairs that the file has, in the order of the file."""
    *others, last = [_byte_letters()[byte] for byte in piece.encode()]
    symbols: tuple[str, ...] = (*others, f"{last}</w>")
    ranks = _ranks()
    while pairs := [pair for pair in pairwise(symbols) if pair in ranks]:
        symbols = merge(symbols, min(pairs, key=ranks.__getitem__))
    return symbols


def merge(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    """``word`` with every occurrence of ``pair``, left to right, joined."""
    joined: list[str] = []
    for part in word:
        if joined and (joined[-1], part) == pair:
            joined[-1] += part
        else:
            joined.append(part)
    return tuple(joined)


@cache
def _ranks() -> dict[tuple[str, str], int]:
    lines = gzip.decompress(FILE.read_bytes()).decode().splitlines()
    return {(left, right): rank for rank, (left, _, right) in enumerate(line.partition(" ") for line in lines)}


@cache
def _byte_letters() -> list[str]:
    """The letter that stands for each byte in the file: its own where that is printable, else one from 256 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]
