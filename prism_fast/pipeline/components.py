"""The parts of a saved pipeline, each loaded whole or not at all.

diffusers and transformers fill what a file lacks with random numbers and only print a report; here that is an error.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from prism_fast.errors import UserError
from prism_fast.pipeline.configuration import read_configuration
from prism_fast.pipeline.weights import Checkpoint, find_checkpoint, in_short, load_errors

_BASES = {
    "unet": ("diffusers", "ModelMixin"),
    "vae": ("diffusers", "ModelMixin"),
    "text_encoder": ("transformers", "PreTrainedModel"),
    "tokenizer": ("transformers", "PreTrainedTokenizerBase"),
    "scheduler": ("diffusers", "SchedulerMixin"),
}
"""Components that a pipeline must have: their library, and the class that theirs inherits from."""

_SECOND = {"text_encoder_2": _BASES["text_encoder"], "tokenizer_2": _BASES["tokenizer"]}
"""What an SDXL has besides."""

_TEXT_PREFIX = "text_model."
_TEXT_PARTS = ("embeddings.", "encoder.", "final_layer_norm.")
_NAMED_KEYS = 3


def load_components(folder: Path, index: Mapping[str, Any], second: bool = False) -> dict[str, Any]:
    """Every component of the pipeline in ``folder``, on the CPU.

    Args:
        folder: holds a folder for each component.
        index: the pipeline's ``model_index.json``: component to (library, class).
        second: with the second text encoder of an SDXL.

    Raises:
        UserError: a component is missing, malformed, or its weights are not exactly those that its class has.
    """
    wanted = _BASES | (_SECOND if second else {})
    classes = {component: _component_class(folder, component, index.get(component)) for component in wanted}
    suffixes = ("", "_2") if second else ("",)
    with quiet():
        made = {
            name: load_network(folder / name, classes[name], f"pipeline component {name}") for name in ("unet", "vae")
        }
        for encoder, tokenizer in ((f"text_encoder{suffix}", f"tokenizer{suffix}") for suffix in suffixes):
            made[encoder] = _load_text_encoder(folder / encoder, classes[encoder])
            made[tokenizer] = _load_tokenizer(folder / tokenizer, classes[tokenizer])
        made["scheduler"] = _load_scheduler(folder / "scheduler", classes["scheduler"])
    for suffix in suffixes:
        _check_vocabulary(folder / f"tokenizer{suffix}", made[f"tokenizer{suffix}"], made[f"text_encoder{suffix}"])
    return made


def load_network(folder: Path, network: Any, what: str) -> Any:
    """A diffusers model from ``folder``.

    Args:
        folder: holds ``config.json`` and the weights.
        network: its class.
        what: its name in messages.

    Raises:
        UserError: see :func:`load_components`.
    """
    checkpoint = find_checkpoint(folder, "diffusion_pytorch_model", what)
    read_configuration(folder / "config.json", what)
    with _explained(folder, what):
        module, info = network.from_pretrained(
            str(folder),
            use_safetensors=True,
            variant=checkpoint.variant,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are reported, and refused below
        )
    _check_complete(module, info, folder, what)
    return module


def _load_text_encoder(folder: Path, network: Any) -> Any:
    what = f"pipeline component {folder.name}"
    checkpoint = find_checkpoint(folder, "model", what)
    read_configuration(folder / "config.json", what)
    with _explained(folder, what):
        module, info = network.from_pretrained(
            None,
            config=network.config_class.from_pretrained(str(folder)),
            state_dict=_text_weights(checkpoint, network.__name__),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are reported, and refused below
        )
    _check_complete(module, info, folder, what)
    return module


def _text_weights(checkpoint: Checkpoint, class_name: str) -> dict[str, Tensor]:
    """The tensors under the names that every version of transformers understands.

    Version 5 writes ``embeddings...`` where 4 wrote ``text_model.embeddings...``; 5 reads both, 4 only its own.
    """
    weights = checkpoint.tensors()
    if not class_name.startswith("CLIPText"):
        return weights
    return {_TEXT_PREFIX + key if key.startswith(_TEXT_PARTS) else key: tensor for key, tensor in weights.items()}


def _load_tokenizer(folder: Path, kind: Any) -> Any:
    what = f"pipeline component {folder.name}"
    names = set(kind.vocab_files_names.values())
    if not any((folder / name).is_file() for name in names):
        raise UserError(f"{what} has none of {', '.join(sorted(names))} in {folder}: point to a complete folder")
    for path in sorted(folder.glob("*.json")):
        read_configuration(path, what)
    with _explained(folder, what):
        return kind.from_pretrained(str(folder))


def _load_scheduler(folder: Path, kind: Any) -> Any:
    what = "pipeline component scheduler"
    read_configuration(folder / "scheduler_config.json", what)
    with _explained(folder, what):
        return kind.from_pretrained(str(folder))


def _component_class(folder: Path, component: str, entry: Any) -> Any:
    library, base = (_BASES | _SECOND)[component]
    found = None
    if isinstance(entry, list | tuple) and len(entry) == 2 and entry[0] == library and isinstance(entry[1], str):
        module = importlib.import_module(library)
        found = getattr(module, entry[1], None)
        if not isinstance(found, type) or not issubclass(found, getattr(module, base)):
            found = None
    if found is None:
        raise UserError(
            f"the model_index.json in {folder} names {entry!r} as {component}, and that is no such class of {library} "
            "here: save the pipeline again with save_pretrained, or take another"
        )
    return found


def _check_complete(module: Any, info: Mapping[str, Iterable[Any]], folder: Path, what: str) -> None:
    """Every weight came from the file, and every tensor of the file was used.

    Old checkpoints also hold buffers that are computed today (``position_ids``); those are not missed.
    """
    buffers = {name.removeprefix(_TEXT_PREFIX) for name, _ in module.named_buffers()}
    unexpected = [key for key in info["unexpected_keys"] if key.removeprefix(_TEXT_PREFIX) not in buffers]
    reshaped = [key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]]
    found = (("missing", info["missing_keys"]), ("unknown", unexpected), ("of another shape", reshaped))
    faults = [f"{_some(keys)} {fault}" for fault, keys in found if keys]
    faults += [str(message) for message in info.get("error_msgs", ())]
    if faults:
        raise UserError(
            f"the weights of {what} in {folder} are not those of its config.json: {'; '.join(faults)}; "
            "save or download the component again, whole"
        )


def _some(keys: Iterable[str]) -> str:
    """``5 tensors (a, b, c, ...)``."""
    every = sorted(keys)
    more = ", ..." if len(every) > _NAMED_KEYS else ""
    return f"{len(every)} tensor{'s' if len(every) > 1 else ''} ({', '.join(every[:_NAMED_KEYS])}{more})"


def _check_vocabulary(folder: Path, tokenizer: Any, text_encoder: Any) -> None:
    vocabulary = tokenizer.get_vocab()
    rows = text_encoder.get_input_embeddings().weight.shape[0]
    if not set(vocabulary) - set(tokenizer.all_special_tokens):
        raise UserError(f"the tokenizer in {folder} knows no word: point to a complete folder")
    if max(vocabulary.values()) >= rows:
        raise UserError(
            f"the tokenizer in {folder} has token {max(vocabulary.values())}, the text encoder knows {rows} from 0: "
            "they belong to different pipelines"
        )


@contextmanager
def _explained(folder: Path, what: str) -> Iterator[None]:
    """A library's error about the files in ``folder`` as one that names them."""
    try:
        yield
    except load_errors() as error:
        raise _not_loaded(folder, what, error) from error
    except Exception as error:
        if type(error) is not Exception:  # tokenizers raises just that for a malformed file
            raise
        raise _not_loaded(folder, what, error) from error


def _not_loaded(folder: Path, what: str, error: Exception) -> UserError:
    return UserError(
        f"cannot load {what} from {folder} ({in_short(error)}): its files are damaged or do not belong "
        "together; save it again with save_pretrained(..., safe_serialization=True), or download it again"
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Loading shows no bars and prints no reports of the libraries; their settings are put back."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    logs = (diffusers_logging, transformers_logging)
    levels = [log.get_verbosity() for log in logs]
    bars = [log for log in logs if log.is_progress_bar_enabled()]
    for log in logs:
        log.set_verbosity(log.CRITICAL)
    for log in bars:
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.set_verbosity(level)
        for log in bars:
            log.enable_progress_bar()
