from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from prism_fast.errors import UserError
from prism_fast.pipeline.text import embedding_sizes, encode_prompts, max_prompt_tokens, prompt_fits
from tests.tiny import tiny_pipeline, tiny_tokenizer, tiny_xl_pipeline

PROMPTS = ["a photo of a coat", "bag", "", "a dark boot, a shoe that covers the ankle", "jumper"]


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny_pipeline(0)


def test_embeddings_are_diffusers(pipe: Any) -> None:
    expected, negative = pipe.encode_prompt(PROMPTS, "cpu", 1, True)
    assert torch.equal(encode_prompts(pipe, PROMPTS, 5).text, expected)
    assert torch.equal(encode_prompts(pipe, [""] * 5, 5).text, negative)
    assert encode_prompts(pipe, PROMPTS, 5).pooled is None


def test_an_xls_embeddings_are_diffusers() -> None:
    xl = tiny_xl_pipeline(0)
    text, _, pooled, _ = xl.encode_prompt(PROMPTS, device="cpu", do_classifier_free_guidance=False)
    found = encode_prompts(xl, PROMPTS, 5)
    assert torch.equal(found.text, text) and found.pooled is not None
    torch.testing.assert_close(found.pooled, pooled, rtol=1e-5, atol=1e-5)  # of eight rows, theirs of five
    assert embedding_sizes(xl) == (tuple(text.shape[1:]), pooled.shape[1]) == ((24, 64), 32)
    one_by_one = [encode_prompts(xl, [prompt], 5) for prompt in PROMPTS]
    assert torch.equal(torch.cat([one.text for one in one_by_one]), text)
    assert torch.equal(torch.cat([one.pooled for one in one_by_one if one.pooled is not None]), found.pooled)


def test_the_shorter_of_two_tokenizers_decides() -> None:
    xl = tiny_xl_pipeline(0)
    xl.tokenizer_2 = tiny_tokenizer()
    xl.tokenizer_2.add_tokens(["coatboot"])  # one token there, several in the first
    fits, long = prompt_fits(xl), " ".join(["coatboot"] * 12)
    assert len(xl.tokenizer_2(long).input_ids) <= 24 < fits.length(long) and not fits(long)
    with pytest.raises(UserError, match=f"{fits.length(long)} tokens"):
        encode_prompts(xl, [long], 1)
    assert fits.lost("coat") == "" and fits.lost("caf\u00e9") == "\u00e9"


def test_an_embedding_does_not_depend_on_the_others(pipe: Any) -> None:
    together = encode_prompts(pipe, PROMPTS, 3).text
    assert together.shape == (5, 24, 32)
    for row, prompt in enumerate(PROMPTS):
        assert torch.equal(encode_prompts(pipe, [prompt], 3).text[0], together[row])


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
    assert encode_prompts(pipe, [longest], 1).text.shape == (1, 24, 32)
    with pytest.raises(UserError, match=r"25 tokens.*24"):
        encode_prompts(pipe, [longest, longest + " coat"], 2)


def test_a_tokenizer_without_a_limit_has_the_encoders() -> None:
    pipe = tiny_pipeline(0)
    pipe.tokenizer.model_max_length = int(1e30)
    assert max_prompt_tokens(pipe) == 24
    assert encode_prompts(pipe, ["bag"], 2).text.shape == (1, 24, 32)


def test_letters_that_the_tokenizer_drops_are_told(pipe: Any) -> None:
    fits = prompt_fits(pipe)
    assert [fits.lost(text) for text in ("coat", "A Coat, dark", "x-ray 3", "coat; (dark)", "")] == [""] * 5
    assert fits.lost("\u9db4") == "\u9db4"
    assert fits.lost("caf\u00e9") == fits.lost("cafe\u0301") == "\u00e9"
    assert fits.lost("coat \U0001f600") == "\U0001f600"
    assert fits.lost("!") == "!"  # nothing else would be left


def test_a_tokenizer_of_bytes_drops_nothing(tmp_path: Path) -> None:
    from transformers import CLIPTokenizer

    # CLIP's alphabet: every byte as a printable character, alone or at the end of a word; its merges do not matter here
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    characters = [*map(chr, printable), *(chr(256 + place) for place in range(256 - len(printable)))]
    tokens = [*characters, *(f"{character}</w>" for character in characters), "<|startoftext|>", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    whole = tiny_pipeline(0)
    whole.tokenizer = CLIPTokenizer.from_pretrained(tmp_path, model_max_length=77)
    fits = prompt_fits(whole)
    for text in (
        "\u9db4",
        "caf\u00e9 cafe\u0301",
        "\u039f\u0394\u039f\u03a3 \u03bf\u03b4\u03bf\u03c2",
        "C++ & C#",
        "Stra\u00dfe",
        "\U0001f600",
    ):
        assert fits.lost(text) == "", text
