from __future__ import annotations

from typing import Any

import pytest
import torch

from prism_fast.errors import UserError
from prism_fast.pipeline.text import encode_prompts, max_prompt_tokens, prompt_fits
from tests.tiny import tiny_pipeline

PROMPTS = ["a photo of a coat", "bag", "", "a dark boot, a shoe that covers the ankle", "jumper"]


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny_pipeline(0)


def test_embeddings_are_diffusers(pipe: Any) -> None:
    expected, negative = pipe.encode_prompt(PROMPTS, "cpu", 1, True)
    assert torch.equal(encode_prompts(pipe, PROMPTS, 5), expected)
    assert torch.equal(encode_prompts(pipe, [""] * 5, 5), negative)


def test_an_embedding_does_not_depend_on_the_others(pipe: Any) -> None:
    together = encode_prompts(pipe, PROMPTS, 3)
    assert together.shape == (5, 24, 32)
    for row, prompt in enumerate(PROMPTS):
        assert torch.equal(encode_prompts(pipe, [prompt], 3)[0], together[row])


def test_every_call_has_the_same_shape(pipe: Any) -> None:
    shapes = []
    handle = pipe.text_encoder.register_forward_pre_hook(lambda module, args: shapes.append(tuple(args[0].shape)))
    try:
        encode_prompts(pipe, PROMPTS, 4)
        encode_prompts(pipe, PROMPTS[:1], 4)
    finally:
        handle.remove()
    assert shapes == [(4, 24)] * 3


def test_a_prompt_is_never_cut(pipe: Any) -> None:
    fits = prompt_fits(pipe)
    assert max_prompt_tokens(pipe) == 24
    longest = " ".join(["coat"] * 22)  # and the two markers
    assert fits(longest) and not fits(longest + " coat")
    assert encode_prompts(pipe, [longest], 1).shape == (1, 24, 32)
    with pytest.raises(UserError, match=r"25 tokens.*24"):
        encode_prompts(pipe, [longest, longest + " coat"], 2)


def test_a_tokenizer_without_a_limit_has_the_encoders() -> None:
    pipe = tiny_pipeline(0)
    pipe.tokenizer.model_max_length = int(1e30)
    assert max_prompt_tokens(pipe) == 24
    assert encode_prompts(pipe, ["bag"], 2).shape == (1, 24, 32)
