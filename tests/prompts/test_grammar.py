from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from prism_fast.errors import UserError
from prism_fast.prompts import fashion
from prism_fast.prompts.english import EnglishGrammar, with_article
from prism_fast.prompts.fashion import FashionGrammar, fashion_vocabulary
from prism_fast.prompts.grammar import GRAMMARS, load_grammar
from prism_fast.prompts.vocabulary import Sense
from prism_fast.zoo.fashion_captions import ATTRIBUTES, GLOSSES, NAMES, STYLES, caption

JUMPER = fashion_vocabulary().senses[2]
CRANE = Sense(name="crane", phrase="crane, a wading bird")


def test_fashion_says_what_captions_say() -> None:
    grammar = FashionGrammar()
    text = grammar.render(JUMPER.phrase, ("dark", "narrow", "plain"), "photo")
    assert text == "a photo of a dark narrow plain jumper, a knitted pullover with long sleeves"
    for style, words in itertools.product(("", *STYLES), [(), ("grey",), ("wide", "patterned")]):
        expected = caption(NAMES[2], style=style or None, attributes=words, gloss=GLOSSES[2])
        assert grammar.render(JUMPER.phrase, words, style) == expected
    assert grammar.render("jumper", (), "") == "jumper"


def test_fashion_axes_are_the_attributes_each_optional() -> None:
    assert [set(axis) for axis in FashionGrammar().content_axes(JUMPER)] == [{"", *w} for w in ATTRIBUTES.values()]


def test_english_prompt() -> None:
    grammar = EnglishGrammar()
    text = grammar.render(CRANE.phrase, ("seen from the side", "", "in daylight"), "amateur photo")
    assert text == "an amateur photo of a crane, a wading bird, seen from the side, in daylight"
    assert grammar.render(CRANE.phrase, ("indoors",), "") == "crane, a wading bird, indoors"
    assert grammar.render(CRANE.phrase, (), "") == CRANE.phrase


@pytest.mark.parametrize(
    ("phrase", "expected"),
    [
        ("crane, a bird", "a crane, a bird"),
        ("umbrella", "an umbrella"),
        ("unicycle", "a unicycle"),
        ("hourglass", "an hourglass"),
        ("uninhabited island", "an uninhabited island"),
        ("trousers, a garment for both legs", "trousers, a garment for both legs"),
        ("bus", "a bus"),
        ("lens", "a lens"),
        ("glass", "a glass"),
        ("the sea", "the sea"),
        ("Egyptian cat", "an Egyptian cat"),
        (", odd", "a , odd"),
    ],
)
def test_article(phrase: str, expected: str) -> None:
    if phrase.startswith(","):
        assert with_article(phrase) == phrase
    else:
        assert with_article(phrase) == expected


@pytest.mark.parametrize("name", GRAMMARS.names())
def test_every_grammar_keeps_its_contract(name: str) -> None:
    grammar = load_grammar(name)
    assert list(grammar.styles("none")) == [""]
    photo, wide = list(grammar.styles("photo")), list(grammar.styles("wide"))
    assert photo
    assert set(photo) < set(wide)
    assert len(set(wide)) == len(wide)
    axes = grammar.content_axes(JUMPER)
    texts = {grammar.render("jumper", choice, style) for choice in itertools.product(*axes) for style in ("", *wide)}
    expected = (len(wide) + 1) * len(list(itertools.product(*axes)))
    assert len(texts) == expected  # no two choices say the same
    assert all("jumper" in text and "  " not in text and text == text.strip() for text in texts)


def test_frequencies_exist_for_the_fashion_classes_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="needs measured attributes of class 'crane'"):
        EnglishGrammar().content_frequencies(CRANE)
    with pytest.raises(UserError, match="needs measured attributes of class 'crane'"):
        FashionGrammar().content_frequencies(CRANE)
    path = tmp_path / "attributes.json"
    monkeypatch.setattr(fashion, "ATTRIBUTES_FILE", path)
    with pytest.raises(UserError, match=r"needs .*attributes\.json, which is missing"):
        FashionGrammar().content_frequencies(JUMPER)
    path.write_text(json.dumps({"jumper": {"dark narrow plain": 0.25, "bright wide patterned": 0.75}}))
    expected = {("dark", "narrow", "plain"): 0.25, ("bright", "wide", "patterned"): 0.75}
    assert FashionGrammar().content_frequencies(JUMPER) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot read"),
        ("[]", "no attribute frequencies of class 'jumper'"),
        ('{"coat": {"dark": 1}}', "no attribute frequencies of class 'jumper'"),
        ('{"jumper": {"purple": 1}}', "'purple': 1, not an attribute frequency"),
        ('{"jumper": {"plain dark": 1}}', "'plain dark': 1, not"),
        ('{"jumper": {"dark grey": 1}}', "'dark grey': 1, not"),
        ('{"jumper": {"dark": true}}', "'dark': True, not"),
        ('{"jumper": {"dark": 0.5}}', "sum to 0.500, not 1"),
    ],
)
def test_bad_frequencies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str) -> None:
    path = tmp_path / "attributes.json"
    path.write_text(text)
    monkeypatch.setattr(fashion, "ATTRIBUTES_FILE", path)
    with pytest.raises(UserError) as caught:
        FashionGrammar().content_frequencies(JUMPER)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
