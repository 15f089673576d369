from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prism_fast.errors import UserError
from prism_fast.prompts import PromptConfig, Sense, Vocabulary, build_prompts, fashion, load_vocabulary, sample_text
from prism_fast.prompts.choices import choices
from prism_fast.prompts.english import EnglishGrammar
from prism_fast.prompts.prompt_list import placeholder
from prism_fast.zoo.fashion_captions import GLOSSES, NAMES, caption

FASHION = load_vocabulary("fashion")
ANIMALS = Vocabulary(
    name="animals",
    senses=(
        Sense(name="crane", phrase="crane, a tall wading bird", gloss="a tall wading bird"),
        Sense(name="golden_retriever", phrase="golden retriever"),
    ),
)


def at_most(words: int) -> Callable[[str], bool]:
    """A tokenizer of words and commas, as the built-in one, whose model takes ``words`` of them."""
    return lambda text: len(re.findall(r"\w+|,", text)) <= words


def test_bare_names_are_just_the_names() -> None:
    config = PromptConfig(sense="name", content="none", style="none")
    made = build_prompts(FASHION, config)
    assert [prompt.prompt for prompt in made] == list(NAMES)
    assert {(p.content, p.style, p.source) for p in made} == {("none", "none", "grammar:fashion")}
    assert [p.prompt for p in build_prompts(ANIMALS, config)] == ["crane", "golden retriever"]


def test_a_learned_word_stands_before_the_name_and_other_words_beside_it() -> None:
    config = PromptConfig(sense="name", content="none", style="none", token="<class-{}>")
    assert build_prompts(FASHION, config).prompts[3].prompt == "<class-3> dress"
    config = replace(config, token="a <class-{}>")
    made = build_prompts(FASHION, config)
    assert made.prompts[3].prompt == "a <class-3> dress" and made.prompts[3].sense == "dress"
    assert [placeholder(token, 12) for token in ("<class-{}>", "a <class-{}>", "{}th kind of")] == [
        "<class-12>", "<class-12>", "12th"
    ]  # fmt: skip
    for token in ("a class", "<{}> <{}>", "a  <{}>", " <{}>"):
        with pytest.raises(UserError, match="expected one word with"):
            replace(config, token=token)


def test_a_prompt_is_made_of_its_columns(seed: int) -> None:
    made = build_prompts(FASHION, PromptConfig(style="wide", seed=seed))
    assert len(made) == 10 * 4 * 3 * 3 * 4
    for prompt in made:
        attributes = [] if prompt.content == "none" else prompt.content.split()
        name = NAMES[prompt.class_index]
        assert prompt.prompt == caption(
            name, style=prompt.style, attributes=attributes, gloss=GLOSSES[prompt.class_index]
        )
        assert prompt.sense == caption(name, gloss=GLOSSES[prompt.class_index])


def test_every_prompt_of_the_fashion_language_fits_its_tokenizer() -> None:
    made = build_prompts(FASHION, PromptConfig(style="wide"), fits=at_most(22))  # 24 with begin and end
    assert made.report["shortened"] == 0


@pytest.mark.parametrize("per_class", [1, 7, 50, 144])
def test_prompts_are_unique_and_balanced_over_content_and_style(seed: int, per_class: int) -> None:
    made = build_prompts(FASHION, PromptConfig(style="wide", per_class=per_class, seed=seed))
    for index in range(10):
        prompts = made.for_class(index)
        assert len({p.prompt for p in prompts}) == len(prompts) == per_class
        styles = Counter(p.style for p in prompts)
        contents = Counter(p.content for p in prompts)
        assert max(styles.values()) - min(styles[s] for s in ("photo", "inverted", "edges", "silhouette")) <= 1
        assert max(contents.values()) - (min(contents.values()) if len(contents) == 36 else 0) <= 1
        for word in ("dark", "grey", "bright"):
            assert abs(sum(word in p.content.split() for p in prompts) - per_class / 4) <= 1


def test_english_prompts_are_unique_and_nearly_balanced_over_each_axis(seed: int) -> None:
    birds = Vocabulary(name="birds", senses=tuple(replace(s, kinds=("bird",)) for s in ANIMALS.senses))
    made = build_prompts(birds, PromptConfig(per_class=200, seed=seed))
    assert made.report["prompts"] == made.report["unique"] == 400
    grammar = EnglishGrammar()
    for index in range(2):
        prompts = made.for_class(index)
        assert all(p.sense in p.prompt for p in prompts)
        media = Counter(p.style.split(", ")[0] for p in prompts)
        assert max(media.values()) - min(media.values()) <= 1
        assert set(media) == set(grammar.style_axes("photo")[0])
        for axis in grammar.content_axes(birds.senses[index]):
            counts = Counter(choice for choice in axis for p in prompts if choice and choice in p.content)
            assert set(counts) == set(axis) - {""}  # rules make some rarer, none is left out
            assert max(counts.values()) < 2.5 * 200 / len(axis)


def test_the_long_name_of_a_preset_is_the_same_preset() -> None:
    assert PromptConfig(style="photo-only") == PromptConfig(style="photo")


def test_a_small_grammar_makes_a_shorter_list_and_says_so() -> None:
    report = build_prompts(FASHION, PromptConfig(per_class=200)).report
    assert (report["requested"], report["prompts"], report["short_classes"]) == (2000, 360, 10)


def test_the_seed_decides_and_nothing_else_does(seed: int) -> None:
    config = PromptConfig(per_class=20, seed=seed)
    made = build_prompts(FASHION, config)
    assert made == build_prompts(FASHION, config)
    assert made.fingerprint == build_prompts(FASHION, config).fingerprint
    assert made.fingerprint != build_prompts(FASHION, PromptConfig(per_class=20, seed=seed ^ 1)).fingerprint
    backwards = Vocabulary(name="backwards", senses=FASHION.senses[::-1], grammar="fashion")
    turned = build_prompts(backwards, config)
    assert [p.prompt for p in turned.for_class(9)] == [p.prompt for p in made.for_class(0)]  # by name, not index


def test_the_same_in_another_process_and_without_torch() -> None:
    code = (
        "import sys; from prism_fast.prompts import *;"
        "print(build_prompts(load_vocabulary('fashion'), PromptConfig(seed=5, per_class=9)).fingerprint,"
        " 'torch' in sys.modules, 'pyarrow' in sys.modules)"
    )
    expected = build_prompts(FASHION, PromptConfig(seed=5, per_class=9)).fingerprint
    for hash_seed in ("1", "2"):
        run = subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": hash_seed}, capture_output=True, text=True, check=True
        )
        assert run.stdout.split() == [expected, "False", "False"]


def test_too_long_drops_style_then_content_from_the_end_and_counts() -> None:
    config = PromptConfig(style="photo", per_class=36)
    full = {p.content: p for p in build_prompts(FASHION, config).for_class(5)}  # sandal, + 6 words of gloss
    for limit, expected in [
        (14, "a photo of a dark narrow plain sandal, an open shoe with straps"),
        (13, "dark narrow plain sandal, an open shoe with straps"),
        (9, "dark narrow sandal, an open shoe with straps"),
        (8, "dark sandal, an open shoe with straps"),
        (7, "sandal, an open shoe with straps"),
    ]:
        one = Vocabulary(name="one", senses=FASHION.senses[5:6], grammar="fashion")
        made = build_prompts(one, config, fits=at_most(limit))
        assert expected in [p.prompt for p in made], limit
        assert all(at_most(limit)(p.prompt) and p.sense in p.prompt for p in made)
        assert made.report["unique"] == len(made)
        whole = sum(at_most(limit)(p.prompt) for p in full.values())
        assert made.report["shortened"] == len(made) - whole
        assert made.report["duplicates"] == 36 - len(made)
        for prompt in made:
            cut = "photo of" not in prompt.prompt
            assert (prompt.style == "none") == cut


def test_classes_that_do_not_fit_are_refused_all_at_once() -> None:
    with pytest.raises(UserError, match=r"1 of 2 classes.*class 0 \('crane': .*\); shorten.*--prompts\.sense name$"):
        build_prompts(ANIMALS, PromptConfig(), fits=at_most(5))
    made = build_prompts(ANIMALS, PromptConfig(sense="name"), fits=at_most(2))
    assert {p.prompt for p in made} == {"crane", "golden retriever"}
    with pytest.raises(UserError, match=r"class 1 \('golden_retriever'.*give a shorter name$"):
        build_prompts(ANIMALS, PromptConfig(sense="name"), fits=at_most(1))
    senses = tuple(Sense(name=f"kind {i}", phrase=f"kind {i}, {'very ' * 30}long") for i in range(200))
    with pytest.raises(UserError, match=r"200 of 200 classes .*'kind 0'.*'kind 2'.* and 197 more; shorten") as caught:
        build_prompts(Vocabulary(name="many", senses=senses), PromptConfig(), fits=at_most(20))
    assert len(str(caught.value)) < 1000


class Ascii:
    """A tokenizer that takes everything and drops what is not ASCII."""

    def __call__(self, text: str) -> bool:
        return True

    def lost(self, text: str) -> str:
        return "".join(character for character in text if not character.isascii())


def test_a_class_whose_letters_the_tokenizer_drops_is_refused(tmp_path: Path) -> None:
    senses = tuple(Sense(name=name, phrase=name) for name in ("crane", "caf\u00e9", "\u9db4"))
    vocabulary = Vocabulary(name="birds", senses=senses)
    words = r"2 of 3 classes.*class 1 \(.caf\u00e9.\) loses '\u00e9', class 2 \('\u9db4'\) loses '\u9db4'; spell"
    with pytest.raises(UserError, match=words):
        build_prompts(vocabulary, PromptConfig(), fits=Ascii())
    build_prompts(vocabulary, PromptConfig(per_class=2)).save(tmp_path / "p.parquet")
    with pytest.raises(UserError, match=words):
        build_prompts(vocabulary, PromptConfig(file=str(tmp_path / "p.parquet")), fits=Ascii())
    assert len(build_prompts(Vocabulary(name="one", senses=senses[:1]), PromptConfig(per_class=2), fits=Ascii())) == 2


def slowly_fitted(config: PromptConfig, sense: Sense, fits: Callable[[str], bool]) -> tuple[list[str], int]:
    """The prompts and the number of shortened ones, with every candidate asked for, the longest first."""
    grammar = EnglishGrammar()
    made: dict[str, bool] = {}
    for content, style in choices(grammar, sense, config):
        candidates = [(content, style[:length]) for length in range(len(style), 0, -1)]
        candidates += [(content[:length], ()) for length in range(len(content), -1, -1)]
        text, cut = next(
            (text, (said, styled) != (content, style))
            for said, styled in candidates
            if fits(text := grammar.render(sense.phrase, said, styled))
        )
        made.setdefault(text, cut)
        if len(made) == config.per_class:
            break
    return list(made), sum(made.values())


@pytest.mark.parametrize("style", ["photo", "wide"])
@pytest.mark.parametrize("limit", [6, 8, 9, 11, 13, 15, 18])
def test_a_tight_tokenizer_is_asked_little_and_the_prompts_stay_the_same(style: Any, limit: int, seed: int) -> None:
    config = PromptConfig(style=style, seed=seed)
    asked: list[str] = []

    def fits(text: str) -> bool:
        asked.append(text)
        return at_most(limit)(text)

    one = Vocabulary(name="one", senses=ANIMALS.senses[:1])
    made = build_prompts(one, config, fits)
    naive: list[str] = []
    expected = slowly_fitted(config, one.senses[0], lambda text: naive.append(text) or at_most(limit)(text))
    assert ([p.prompt for p in made], made.report["shortened"]) == expected
    drawn = made.report["prompts"] + made.report["duplicates"]
    assert len(asked) <= 1 + 5 * drawn  # halving a dozen beginnings of each choice
    assert len(asked) < max(len(naive) / 2, 1.5 * len(made))
    if limit <= 8:
        assert len(asked) < 250  # of a thousand choices with a dozen candidates each


def test_frequency_repeats_prompts_as_often_as_they_are_true(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shares = {"dark narrow plain": 0.7, "bright wide plain": 0.205, "grey wide patterned": 0.095}
    path = tmp_path / "attributes.json"
    path.write_text(json.dumps(dict.fromkeys(NAMES, shares)))
    monkeypatch.setattr(fashion, "ATTRIBUTES_FILE", path)
    made = build_prompts(FASHION, PromptConfig(content="frequency", per_class=200))
    assert Counter(p.content for p in made.for_class(4)) == {
        "dark narrow plain": 140,
        "bright wide plain": 41,
        "grey wide patterned": 19,
    }
    assert made.report["prompts"] == 2000
    assert made.report["unique"] == 30
    other = build_prompts(FASHION, PromptConfig(content="frequency", per_class=200, seed=1))
    assert Counter(other.prompts) == Counter(made.prompts)
    assert other.prompts != made.prompts
    wide = build_prompts(FASHION, PromptConfig(content="frequency", style="wide", per_class=200))
    assert set(Counter(p.style for p in wide.for_class(4)).values()) == {50}


def test_frequency_needs_measured_attributes() -> None:
    with pytest.raises(UserError, match="use content 'uniform' or 'none'"):
        build_prompts(ANIMALS, PromptConfig(content="frequency"))


def test_classes_without_a_gloss_are_counted() -> None:
    assert build_prompts(ANIMALS, PromptConfig()).report["without_gloss"] == 1
    assert build_prompts(ANIMALS, PromptConfig(sense="name")).report["without_gloss"] == 0


@pytest.mark.parametrize(
    "bad",
    [{"sense": "wordnet"}, {"content": "all"}, {"style": "photos"}, {"per_class": 0}, {"seed": -1}, {"seed": 2**63}],
)
def test_bad_configuration(bad: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"prompts.{next(iter(bad))}"):
        PromptConfig(**bad)


def test_for_class_without_prompts() -> None:
    with pytest.raises(UserError, match="no prompts of class 10"):
        build_prompts(FASHION, PromptConfig()).for_class(10)


def test_sample_shows_counts_and_a_few_prompts() -> None:
    made = build_prompts(FASHION, PromptConfig())
    lines = sample_text(made, FASHION, per_class=2).splitlines()
    assert lines[0] == "fashion: 360 prompts of 10 classes, 36 a class"
    assert lines[1] == "  classes with fewer prompts than asked for, as the grammar has no more: 10"
    assert len(lines) == 2 + 10 * 2
    assert lines[2].startswith("   0 top")
    assert sample_text(made, FASHION, classes=[9], per_class=1).splitlines()[-1].startswith("   9 boot  a photo of")
    many = Vocabulary(name="many", senses=tuple(Sense(name=f"kind {i}", phrase=f"kind {i}") for i in range(30)))
    text = sample_text(build_prompts(many, PromptConfig(per_class=3)), many)
    assert text.endswith("... and 18 more classes")
    assert "classes without a gloss, where the bare name is used: 30" in text
