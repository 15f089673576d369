from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from prism_fast.errors import UserError
from prism_fast.prompts import fashion
from prism_fast.prompts.articles import with_article
from prism_fast.prompts.draw import dealt
from prism_fast.prompts.english import EnglishGrammar
from prism_fast.prompts.fashion import FashionGrammar, fashion_vocabulary
from prism_fast.prompts.grammar import GRAMMARS, load_grammar
from prism_fast.prompts.scenes import DIMENSIONS, Scenes, styles
from prism_fast.prompts.scenes.choice import ALL, scenes_for
from prism_fast.prompts.scenes.things import THING
from prism_fast.prompts.vocabulary import Sense
from prism_fast.zoo.fashion_captions import ATTRIBUTES, GLOSSES, NAMES, STYLES, caption

JUMPER = fashion_vocabulary().senses[2]
CRANE = Sense(name="crane", phrase="crane, a wading bird")


def test_fashion_says_what_captions_say() -> None:
    grammar = FashionGrammar()
    text = grammar.render(JUMPER.phrase, ("dark", "narrow", "plain"), ("photo",))
    assert text == "a photo of a dark narrow plain jumper, a knitted pullover with long sleeves"
    for style, words in itertools.product(("", *STYLES), [(), ("grey",), ("wide", "patterned")]):
        expected = caption(NAMES[2], style=style or None, attributes=words, gloss=GLOSSES[2])
        assert grammar.render(JUMPER.phrase, words, (style,)) == expected
    assert grammar.render("jumper", (), ()) == "jumper"


def test_fashion_axes_are_the_attributes_each_optional() -> None:
    assert [set(axis) for axis in FashionGrammar().content_axes(JUMPER)] == [{"", *w} for w in ATTRIBUTES.values()]


def test_english_prompt() -> None:
    grammar = EnglishGrammar()
    content, style = ("standing", "in shallow water", "", "seen from the side"), ("amateur photo", "", "at dusk")
    text = grammar.render(CRANE.phrase, content, style)
    assert text == "an amateur photo of a crane, a wading bird, standing in shallow water, seen from the side, at dusk"
    assert grammar.render(CRANE.phrase, ("", "indoors"), ()) == "crane, a wading bird, indoors"
    assert grammar.render(CRANE.phrase, (), ()) == CRANE.phrase


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
        ("hay", "hay"),
        ("velvet, a fabric", "velvet, a fabric"),
        ("Great Pyrenees, a dog", "a Great Pyrenees, a dog"),
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
    assert [list(axis) for axis in grammar.style_axes("none")] == [[""]]
    photo, wide = list(grammar.style_axes("photo")[0]), list(grammar.style_axes("wide")[0])
    assert photo
    assert set(photo) < set(wide)
    assert len(set(wide)) == len(wide)
    axes = grammar.content_axes(JUMPER)
    assert all("" in axis for axis in axes)
    texts = {grammar.render("jumper", cell, (style,)) for cell in itertools.product(*axes) for style in ("", *wide)}
    assert len(texts) == (len(wide) + 1) * len(list(itertools.product(*axes)))  # no two choices say the same
    assert all("jumper" in text and "  " not in text and text == text.strip() for text in texts)


def scenes_name(scenes: Scenes) -> str:
    return scenes.words[0] if scenes.words else "anything"


@pytest.mark.parametrize("scenes", [*ALL, THING], ids=scenes_name)
def test_scenes_can_be_dealt_for_ever_and_each_choice_comes_up(scenes: Scenes, seed: int) -> None:
    grammar = EnglishGrammar()
    sense = Sense(name="x", phrase="x", kinds=scenes.words)
    assert scenes_for(sense.kinds) is scenes
    axes = [*grammar.content_axes(sense), *grammar.style_axes("wide")]
    dealt_cells = dealt(axes, lambda c: grammar.go_together(sense, c[:4], c[4:]), seed)
    cells = list(itertools.islice(dealt_cells, 400))
    assert all(grammar.go_together(sense, cell[:4], cell[4:]) for cell in cells)
    for number, axis in enumerate(axes[:5]):
        assert {cell[number] for cell in cells} == set(axis)


def test_a_condition_is_a_word_of_some_dimension() -> None:
    known = frozenset().union(*DIMENSIONS)
    tables = [t for s in (*ALL, THING) for t in (s.settings, s.actions, s.company, s.views)]
    for table in (*tables, styles.CONDITIONS):
        assert {word for conditions in table.values() for word in conditions.split()} <= known


@pytest.mark.parametrize(
    ("kinds", "content", "style", "possible"),
    [
        (("fish",), ("swimming", "in clear water"), (), True),
        (("fish",), ("swimming", "on a white table"), (), False),
        (("shark", "fish"), ("swimming", "on the deck of a boat"), (), False),
        (("penguin", "bird"), ("standing", "on ice"), ("photo", "", "", "on a hot day"), False),
        (("dog",), ("", "in a living room"), ("photo", "", "", "in fog"), False),
        (("dog",), ("", "in deep snow"), ("photo", "", "", "on a hot day"), False),
        (("dog",), ("", "", "", "close-up of its head"), ("photo", "taken with a wide-angle lens"), False),
        (("dog",), (), ("phone photo", "", "", "", "from the 1950s"), False),
        (("dog",), (), ("oil painting", "taken with a macro lens"), False),
        (("dog",), ("sitting", "on a sofa", "", "at eye level"), ("photo", "", "in window light"), True),
        (("dog",), ("sitting", "on a sofa"), ("photo", "", "in bright sunlight"), False),
        (("dog",), ("sitting",), ("photo", "", "at night", "under a cloudless sky"), False),
    ],
)
def test_what_goes_together(kinds: Any, content: Any, style: Any, possible: bool) -> None:
    assert EnglishGrammar().go_together(Sense(name="x", phrase="x", kinds=kinds), content, style) is possible


def test_scenes_follow_the_nearest_kind() -> None:
    assert "in shallow water" in scenes_for(("wader", "wading bird", "bird", "animal")).settings
    assert "perched" in scenes_for(("thrush", "bird", "animal")).actions
    assert "perched" not in scenes_for(("ratite", "flightless bird", "bird")).actions
    assert scenes_for(("lifting device", "device")) is scenes_for(("machine",))
    assert scenes_for(("no such kind",)) is THING


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
