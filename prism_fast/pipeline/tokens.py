"""Learned words: placeholders in prompts whose embeddings come from a file instead of the text encoder.

The format is diffusers' own of a textual inversion (Gal et al. 2022, arXiv 2208.01618), in safetensors: each
placeholder names its vectors. A placeholder of n vectors stands for n tokens, ``<word> <word>_1 ... <word>_{n-1}``.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prism_fast.errors import UserError
from prism_fast.pipeline.load import is_xl
from prism_fast.pipeline.weights import fingerprint, tensor_names


@dataclass(frozen=True, kw_only=True, eq=False)
class LearnedTokens:
    """Placeholders and their vectors.

    Args:
        embeddings: fp32 [n, D] of each placeholder, D the width of the text encoder.
        metadata: what the file says about them.
    """

    embeddings: Mapping[str, Tensor]
    metadata: Mapping[str, str]

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of the placeholders and their vectors; what else the file says does not matter."""
        return fingerprint(self.embeddings, "tokens")

    def words(self) -> dict[str, Tensor]:
        """Each single token and its vector [D], under the names that diffusers gives them."""
        return {
            word: vector
            for name, vectors in self.embeddings.items()
            for word, vector in zip(words_of(name, len(vectors)), vectors, strict=True)
        }


def words_of(placeholder: str, vectors: int) -> list[str]:
    """The tokens that a placeholder of so many vectors stands for."""
    return [placeholder, *(f"{placeholder}_{place}" for place in range(1, vectors))]


def load_tokens(path: str | Path) -> LearnedTokens:
    """The tokens in a safetensors file.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    from safetensors import safe_open

    file = Path(path).expanduser()
    names = sorted(tensor_names(file, "learned tokens"))
    with safe_open(file, framework="pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in names}
        metadata = dict(opened.metadata() or {})
    embeddings = {}
    for name, tensor in tensors.items():
        vectors = tensor[None] if tensor.dim() == 1 else tensor
        sound = vectors.dim() == 2 and len(vectors) and vectors.is_floating_point() and bool(vectors.isfinite().all())
        if not sound or not name.strip() or len(name.split()) != 1:
            raise UserError(
                f"{file}: {name!r} is no placeholder with vectors [n, D]: give a textual inversion as diffusers or "
                "prism-fast learn-tokens writes it"
            )
        embeddings[name] = vectors.float()
    if not embeddings:
        raise UserError(f"{file} holds no tokens: learn them with prism-fast learn-tokens")
    return LearnedTokens(embeddings=embeddings, metadata=metadata)


def with_tokens(pipe: Any, tokens: LearnedTokens | str | Path | None) -> Any:
    """``pipe`` whose prompts may name learned words; everything but tokenizer and text encoder is shared with it.

    ``pipe`` itself is left as it is. It is returned where there are no tokens, or where it knows just these.

    Args:
        pipe: a loaded pipeline with one text encoder.
        tokens: or the file that holds them.

    Raises:
        UserError: the file cannot be used, the vectors are of another width, the pipeline has two text encoders, or it
            knows a word of that name already.
    """
    if tokens is None:
        return pipe
    if is_xl(pipe):
        raise UserError("learned tokens are for pipelines with one text encoder, and an SDXL has two: leave them out")
    if not isinstance(tokens, LearnedTokens):
        tokens = load_tokens(tokens)
    words = tokens.words()
    if _known(pipe, words):
        return pipe
    embedding: Any = pipe.text_encoder.get_input_embeddings()
    width = embedding.weight.shape[1]
    for word, vector in words.items():
        if len(vector) != width:
            raise UserError(
                f"learned token {word!r} has {len(vector)} numbers, the text encoder takes {width}: learn tokens for "
                "this very pipeline"
            )
    tokenizer, encoder = copy.deepcopy(pipe.tokenizer), copy.deepcopy(pipe.text_encoder)
    tokenizer.add_tokens(list(words))
    places = torch.tensor(tokenizer.convert_tokens_to_ids(list(words)))
    rows = max(len(embedding.weight), int(places.max()) + 1)
    weight = torch.zeros(rows, width, dtype=embedding.weight.dtype, device=embedding.weight.device)
    weight[: len(embedding.weight)] = embedding.weight.detach()
    weight[places.to(weight.device)] = torch.stack(list(words.values())).to(weight)
    encoder.set_input_embeddings(nn.Embedding.from_pretrained(weight, freeze=True, padding_idx=embedding.padding_idx))
    encoder.config.vocab_size = rows
    told = copy.copy(pipe)
    vars(told).update(tokenizer=tokenizer, text_encoder=encoder)
    return told


def _known(pipe: Any, words: Mapping[str, Tensor]) -> bool:
    """Whether the pipeline has just these words already.

    Raises:
        UserError: it has one of them, with other vectors.
    """
    vocabulary = pipe.tokenizer.get_vocab()
    there = [word for word in words if word in vocabulary]
    weight = pipe.text_encoder.get_input_embeddings().weight
    for word in there:
        own = weight[vocabulary[word]]
        if len(own) != len(words[word]) or not torch.equal(own, words[word].to(own)):
            raise UserError(
                f"the pipeline knows a word {word!r} already, with another embedding: rename the placeholder in the "
                "file of the learned tokens, or, if that file has just been changed, run the command again"
            )
    return len(there) == len(words)
