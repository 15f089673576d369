"""Learned words: only prompts that name them change, and the pipeline that was handed in never does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from prism_fast.errors import UserError
from prism_fast.pipeline.load import pipeline_fingerprint
from prism_fast.pipeline.text import PromptFits, encode_prompts
from prism_fast.pipeline.tokens import LearnedTokens, load_tokens, with_tokens
from prism_fast.sampling.config import SamplerConfig
from prism_fast.sampling.levels import make_sampler
from tests.tiny import tiny_pipeline, tiny_xl_pipeline

WIDTH = 32
NAMED, PLAIN = "a photo of a <class-0> coat", "a photo of a coat"


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny_pipeline(0)


def _vectors(seed: int, count: int = 1) -> Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))


def _file(folder: Path, **tokens: Tensor) -> Path:
    path = folder / "tokens.safetensors"
    save_file({f"<{name.replace('_', '-')}>": tensor for name, tensor in tokens.items()}, path)
    return path


def test_only_prompts_that_name_a_word_change(pipe: Any, seed: int, tmp_path: Path) -> None:
    before, vocabulary = pipeline_fingerprint(pipe), dict(pipe.tokenizer.get_vocab())
    told = with_tokens(pipe, _file(tmp_path, class_0=_vectors(seed), class_1=_vectors(seed + 1, 2)))
    prompts = [NAMED, PLAIN, "a <class-1> boot"]
    own, other = encode_prompts(pipe, prompts, 4).text, encode_prompts(told, prompts, 4).text
    assert torch.equal(own[1], other[1])
    assert not torch.allclose(own[0], other[0]) and not torch.allclose(own[2], other[2])
    assert told.unet is pipe.unet and told.vae is pipe.vae and told.text_encoder is not pipe.text_encoder
    assert pipeline_fingerprint(pipe) == before and pipe.tokenizer.get_vocab() == vocabulary
    fits = PromptFits(told)
    assert fits.length(NAMED) == fits.length(PLAIN) + 1  # one token, two of the other
    assert fits.length("a <class-1> boot") == fits.length("a boot") + 2


@pytest.mark.parametrize("level", ["reference", "exact"])
def test_a_sampler_takes_them_by_its_configuration(pipe: Any, level: Any, seed: int, tmp_path: Path) -> None:
    path = _file(tmp_path, class_0=_vectors(seed))
    config = SamplerConfig(steps=2, compute_batch=2, level=level)
    rows = [NAMED, PLAIN], [4, 4], [seed, seed + 1]
    told = make_sampler(pipe, SamplerConfig(steps=2, compute_batch=2, level=level, tokens=str(path))).sample(*rows)
    plain = make_sampler(pipe, config).sample(*rows)
    assert torch.equal(told.latents[1], plain.latents[1]) and not torch.equal(told.latents[0], plain.latents[0])
    again = make_sampler(with_tokens(pipe, path), config).sample(*rows)  # whichever way they came in
    assert torch.equal(again.latents, told.latents)


@pytest.mark.parametrize("count", [1, 3])
def test_diffusers_reads_the_file_and_means_the_same(pipe: Any, count: int, seed: int, tmp_path: Path) -> None:
    path = _file(tmp_path, class_0=_vectors(seed, count))
    theirs = tiny_pipeline(0)
    theirs.load_textual_inversion(str(tmp_path), weight_name=path.name, local_files_only=True)
    ours = encode_prompts(with_tokens(pipe, path), [NAMED, PLAIN], 2).text
    assert torch.equal(encode_prompts(theirs, [NAMED, PLAIN], 2).text, ours)


def test_diffusers_takes_several_one_by_one(pipe: Any, seed: int, tmp_path: Path) -> None:
    path = _file(tmp_path, class_0=_vectors(seed), class_1=_vectors(seed + 1, 2))
    theirs = tiny_pipeline(0)
    theirs.load_textual_inversion([{name: tensor} for name, tensor in load_file(path).items()])
    prompts = [NAMED, "a <class-1> boot"]
    ours = encode_prompts(with_tokens(pipe, path), prompts, 2).text
    assert torch.equal(encode_prompts(theirs, prompts, 2).text, ours)


def test_twice_is_once_and_no_word_has_two_meanings(pipe: Any, seed: int) -> None:
    tokens = LearnedTokens(embeddings={"<class-0>": _vectors(seed)}, metadata={})
    told = with_tokens(pipe, tokens)
    assert with_tokens(told, tokens) is told and with_tokens(pipe, None) is pipe
    with pytest.raises(UserError, match="knows a word '<class-0>' already"):
        with_tokens(told, LearnedTokens(embeddings={"<class-0>": _vectors(seed + 1)}, metadata={}))


def test_the_fingerprint_is_of_the_content(seed: int, tmp_path: Path) -> None:
    first, other = (LearnedTokens(embeddings={"<w>": _vectors(seed + i)}, metadata={}) for i in (0, 1))
    save_file({"<w>": _vectors(seed)}, tmp_path / "renamed.safetensors", metadata={"a": "b"})
    assert load_tokens(tmp_path / "renamed.safetensors").fingerprint == first.fingerprint != other.fingerprint


def test_what_cannot_be_used_is_refused(pipe: Any, seed: int, tmp_path: Path) -> None:
    path = tmp_path / "tokens.safetensors"
    with pytest.raises(UserError, match="cannot load the weights of learned tokens"):
        with_tokens(pipe, path)
    path.write_bytes(b"no tensors")
    with pytest.raises(UserError, match="no safetensors file"):
        with_tokens(pipe, path)
    for wrong in (
        {"<w>": torch.full((1, WIDTH), torch.nan)},
        {"two words": _vectors(seed)},
        {"<w>": torch.zeros(1, 2, 3)},
    ):
        save_file(wrong, path)
        with pytest.raises(UserError, match="is no placeholder with vectors"):
            with_tokens(pipe, path)
    save_file({"<w>": torch.zeros(1, WIDTH + 1)}, path)
    with pytest.raises(UserError, match="has 33 numbers, the text encoder takes 32"):
        with_tokens(pipe, path)
    save_file({"<w>": torch.zeros(1, WIDTH)}, path)
    with pytest.raises(UserError, match="one text encoder"):
        with_tokens(tiny_xl_pipeline(0), path)
