"""Tokenizer and sizes of the built-in generator."""

from __future__ import annotations

import pytest

from prism_fast.prompts.clip_tokens import merge
from prism_fast.zoo import networks
from prism_fast.zoo.fashion_captions import ATTRIBUTES, GLOSSES, NAMES, caption


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return networks.build_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def test_every_caption_word_is_one_token(tokenizer):
    for word in networks.caption_words():
        assert len(tokenizer(word).input_ids) == 3, word


def test_the_longest_caption_fits(tokenizer):
    attributes = [words[0] for words in ATTRIBUTES.values()]
    for name, gloss in zip(NAMES, GLOSSES, strict=True):
        text = caption(name, style="inverted", attributes=attributes, gloss=gloss)
        assert len(tokenizer(text).input_ids) <= networks.MAX_LENGTH, text


def test_tokens_decode_to_the_text(tokenizer):
    text = caption("jumper", style="photo", attributes=["dark"], gloss=GLOSSES[2])
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ,", ",").strip() == text


def test_merges_reproduce_their_words():
    words = [("a", "b</w>"), ("b", "a", "b</w>")]
    merges = networks.byte_pair_merges(words)
    for pair in merges:
        words = [merge(word, pair) for word in words]
    assert words == [("ab</w>",), ("bab</w>",)]


def test_pinned_sizes():
    def count(module):
        return sum(p.numel() for p in module.parameters())

    assert count(networks.build_unet()) == 2_414_308
    assert count(networks.build_vae()) == 954_567
