from __future__ import annotations

import math
import random

import numpy as np
import pytest

from prism_fast.errors import UserError
from prism_fast.prompts import PromptConfig, Sense, Vocabulary, build_prompts
from prism_fast.prompts.diversity import compare, distinct_n, diversity_text, mean_distance, measure, self_bleu
from prism_fast.prompts.embedder import Embedder
from prism_fast.prompts.inspection import inspect_text
from prism_fast.prompts.templates import CLIP_TEMPLATES

BIRDS = Vocabulary(
    name="birds",
    senses=tuple(
        Sense(name=n, word="crane", phrase=f"crane, a {k}", gloss=g, kinds=(k,), synonyms=("crane",), other_senses=(o,))
        for n, k, g, o in [
            ("crane (bird)", "bird", "it wades", "it lifts"),
            ("crane (machine)", "machine", "it lifts", "it wades"),
        ]
    ),
)


def test_distinct_n_counts_by_hand() -> None:
    assert distinct_n(["a b a", "b a"], 1) == 2 / 5
    assert distinct_n(["a b a", "b a"], 2) == 2 / 3
    assert distinct_n(["a"], 2) == 0


def test_self_bleu_of_equal_and_of_unlike_texts() -> None:
    assert self_bleu(["one two three four five"] * 3) == pytest.approx(1)
    assert self_bleu(["a lone text"]) == 1
    assert self_bleu(["a b c d e", "f g h i j"]) == pytest.approx(math.prod(0.1 / n for n in (5, 4, 3, 2)) ** 0.25)
    # by hand: precisions 4/5, 3/4, 2/3, 1/2 of a text against one that differs in its last word
    assert self_bleu(["a b c d e", "a b c d f"]) == pytest.approx((4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)


def test_self_bleu_does_not_depend_on_the_order(seed: int) -> None:
    rng = random.Random(seed)
    texts = [" ".join(rng.choices("abcdef", k=rng.randint(4, 9))) for _ in range(12)]
    assert self_bleu(texts) == pytest.approx(self_bleu(rng.sample(texts, len(texts))))


def test_mean_distance_is_the_mean_over_pairs(seed: int) -> None:
    vectors = np.random.default_rng(seed).normal(size=(9, 5)).astype(np.float32)
    unit = vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    pairs = [1 - unit[i] @ unit[j] for i in range(9) for j in range(i)]
    assert mean_distance(vectors) == pytest.approx(np.mean(pairs))
    assert mean_distance(np.eye(4, dtype=np.float32)) == pytest.approx(1)
    assert mean_distance(np.ones((1, 3), dtype=np.float32)) == 0


def test_the_list_is_more_diverse_than_names_and_one_template(seed: int) -> None:
    made = build_prompts(BIRDS, PromptConfig(per_class=40, seed=seed))
    found = compare(made, BIRDS)
    ours, template = found["this list"], found["one template"]
    assert found["class names"].self_bleu == template.self_bleu == 1
    assert ours.self_bleu < 0.9
    assert ours.distinct_2 > 2 * template.distinct_2
    assert len(diversity_text(found).splitlines()) == 5
    assert measure([["a b", "c d"]], lambda _: np.eye(2, dtype=np.float32)).distance == pytest.approx(1)


def test_there_are_80_templates_of_clip() -> None:
    assert len(set(CLIP_TEMPLATES)) == 80
    assert all(template.count("{}") == 1 for template in CLIP_TEMPLATES)


def test_embedders_that_are_not_there(tmp_path: object) -> None:
    with pytest.raises(UserError, match=r"no model\.safetensors: --embedder takes the folder"):
        Embedder(str(tmp_path))


def test_inspection_shows_every_class_of_a_name() -> None:
    config = PromptConfig(per_class=5)
    text = inspect_text(BIRDS, build_prompts(BIRDS, config), config, "crane")
    for part in ("class 0: crane (bird)", "class 1: crane (machine)", "it wades", "shares    its name with", "- a "):
        assert part in text
    assert "perched" in text
    with pytest.raises(UserError, match="unknown class 'heron'"):
        inspect_text(BIRDS, build_prompts(BIRDS, config), config, "heron")
