"""CLIP's limits hold without a pipeline: the counts are those of the tokenizer that pipelines bring."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import json
import random
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from prism_fast.errors import UserError
from prism_fast.prompts import PromptConfig, PromptList, Sense, Vocabulary, build_prompts, load_vocabulary
from prism_fast.prompts.clip_tokens import EARLY, FILE, LIMIT, clip_tokens, fits_clip, names_early
from prism_fast.prompts.wordnet import imagenet_info


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The tokenizer of Stable Diffusion's folders, which transformers makes of CLIP's merges."""
    from transformers import CLIPTokenizer

    merges = gzip.decompress(FILE.read_bytes()).decode().splitlines()
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(byte) for byte in printable] + [chr(256 + place) for place in range(256 - len(printable))]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *(merge.replace(" ", "") for merge in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    assert len(tokens) == len(set(tokens)) == 49408  # as many as CLIP has
    folder = tmp_path_factory.mktemp("clip")
    (folder / "vocab.json").write_text(json.dumps({token: place for place, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    return CLIPTokenizer.from_pretrained(str(folder), model_max_length=LIMIT)


def lengths(tokenizer: Any, texts: list[str]) -> list[int]:
    """Tokens, both markers included."""
    return [len(ids) for ids in tokenizer(texts).input_ids]


def check(tokenizer: Any, prompts: PromptList) -> None:
    texts = [p.prompt for p in prompts]
    assert max(lengths(tokenizer, texts)) <= LIMIT
    early = sorted({p.prompt[: p.prompt.index(p.sense) + len(p.sense)] for p in prompts})
    assert max(lengths(tokenizer, early)) - 1 <= EARLY


def test_the_file_is_clips() -> None:
    text = gzip.decompress(FILE.read_bytes())
    assert text.count(b"\n") == 49152 - 256 - 2  # as CLIP's own code cuts it
    assert hashlib.sha256(text).hexdigest() == "d308b7377a8ceaa9707a21614fe8c831b9196e197b7aeb69833359362907af02"
    found = importlib.util.find_spec("open_clip")
    if found is None or found.origin is None:
        pytest.skip("CLIP's own file is not installed (Python package open-clip-torch)")
    own = gzip.decompress(Path(found.origin).with_name("bpe_simple_vocab_16e6.txt.gz").read_bytes())
    assert text.splitlines() == own.splitlines()[1:48895]


def test_counts_are_the_tokenizers(tokenizer: Any, seed: int) -> None:
    rng = random.Random(seed)
    letters = "ab'sdtré9²½½_-,.!?  一𝟘漢Ⅷß" + "\u0301\u00a0"
    texts = ["".join(rng.choice(letters) for _ in range(rng.randint(1, 40))) for _ in range(2000)]
    texts += [f"{lemmas[0]}, {gloss}" for lemmas, gloss in imagenet_info("imagenet-1k").values()]
    texts += ["", "it's WE'LL don't 'sd", "Cardigan Welsh corgi", "a  photo\tof\na crane"]
    assert [clip_tokens(text) + 2 for text in texts] == lengths(tokenizer, texts)


@pytest.mark.parametrize("style", ["photo", "wide"])
def test_a_sample_of_imagenets_prompts_keeps_the_limits(tokenizer: Any, seed: int, style: Any) -> None:
    check(tokenizer, build_prompts(load_vocabulary("imagenet-1k"), PromptConfig(style=style, per_class=3, seed=seed)))


def test_a_prompt_that_would_name_the_class_late_loses_its_style() -> None:
    gloss = " ".join(["very"] * 23)  # crane , very ... long: 26 tokens, and "a photo of a" before it 4
    sense = Sense(name="crane", phrase=f"crane, {gloss} long")
    assert clip_tokens(sense.phrase) == 26
    made = build_prompts(Vocabulary(name="one", senses=(sense,)), PromptConfig(per_class=30))
    assert made.report["shortened"] > 0
    styled = [p for p in made if p.style != "none"]
    assert {p.prompt[:3] for p in made if p not in styled} == {"cra"}
    assert all(names_early(p.prompt, p.sense) and fits_clip(p.prompt) for p in made)


def test_words_of_a_class_that_end_late_are_refused() -> None:
    def made(words: int) -> PromptList:
        sense = Sense(name="crane", phrase=f"crane, {' '.join(['very'] * words)} long")
        return build_prompts(Vocabulary(name="one", senses=(sense,)), PromptConfig(per_class=2))

    assert {p.style for p in made(EARLY - 4)} == {"none"}  # crane, the comma, long and the first marker
    with pytest.raises(UserError, match=r"1 of 1 classes do not end within the first 30 tokens.*shorten the gloss"):
        made(EARLY - 3)
    with pytest.raises(UserError, match=r"1 of 1 classes alone are longer than the tokenizer takes"):
        made(LIMIT)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("style", ["photo", "wide"])
def test_all_of_imagenets_prompts_in_a_minute(tokenizer: Any, seed: int, style: str, tmp_path: Path) -> None:
    out, before = tmp_path / "prompts.parquet", resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "prism_fast", "prompts", "--vocabulary", "imagenet-1k", "--per-class", "200"]
    command += ["--style", style, "--seed", str(seed), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime  # other work on the machine: no matter
    print(f"{cpu_s:.1f} s of CPU time")
    assert cpu_s < 60
    made = PromptList.load(out)
    assert len(made) == len({(p.class_index, p.prompt) for p in made}) == 200_000
    check(tokenizer, made)
