"""``prism-fast prompts --llm``, end to end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from prism_fast.cli import main
from prism_fast.prompts import PromptList
from tests.llm_server import Received, Reply, completion, good, scenes, serving

ROOT = Path(__file__).parents[3]
KEY = "sk-very-secret-0123456789"
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PRISM_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MY_KEY", KEY)
    (tmp_path / "birds.csv").write_text("name,gloss\ncrane,a tall wading bird\nkite,a bird of prey\n")


def command(url: str, *more: str) -> list[str]:
    shared = ["prompts", "--vocabulary", "birds.csv", "--per-class", "6", "--out", "p.parquet"]
    return [
        *shared,
        "--llm.backend",
        "endpoint",
        "--llm.model",
        "m",
        "--llm.base-url",
        url,
        "--llm.retry-s",
        "1",
        *more,
    ]


def mixed(received: Received, number: int) -> Reply:
    """The first call of a task says nothing of use."""
    return completion("no") if number == 0 else good(received)


def test_a_list_is_made_once_and_paid_for_once(tmp_path: Path, capsys: Capture) -> None:
    more = ["--llm.key-variable", "MY_KEY", "--llm.per-call", "3", "--llm.price-in", "1", "--llm.price-out", "1"]
    with serving(mixed) as server:
        assert main(command(server.url, *more, "--dry-run")) == 0
        assert "12 texts in 4 calls, 0 of them" in capsys.readouterr().out
        assert server.received == [] and sorted(p.name for p in tmp_path.iterdir()) == ["birds.csv"]
        assert main(command(server.url, *more, "--llm.concurrent", "1")) == 0
    out = capsys.readouterr().out
    assert len(server.received) == 4
    # The first call is refused as a whole; of the others two of a class say the same, once each.
    assert (
        "llm:m: 6 of 12 texts taken" in out and "3 rejected: not the JSON" in out and "3 rejected: the same as" in out
    )
    assert "4 calls made, 0 answers from the cache; 90 tokens in, 60 tokens out, without 1 calls that" in out
    assert "price: 0.0001" in out and "wrote 12 prompts" in out
    made = PromptList.load("p.parquet")
    assert [p.source for p in made].count("llm:m") == 6
    assert made.report["llm_rejected_form"] == 3 == made.report["llm_rejected_repeated"]
    files = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert {p.relative_to(tmp_path).as_posix() for p in files} == {
        "birds.csv", "p.parquet", "p.parquet.config.yaml", "cache/llm/answers.jsonl"
    }  # fmt: skip
    assert not any(KEY.encode() in content for content in files.values()) and KEY not in out
    # The server is gone, and nobody needs it.
    assert main(command(server.url, *more, "--llm.concurrent", "1")) == 0
    assert "holds these 12 prompts already" in capsys.readouterr().out
    assert main(["prompts", "--config", "p.parquet.config.yaml", "--out", "again.parquet"]) == 0
    assert "0 calls made, 4 answers from the cache" in capsys.readouterr().out
    assert (tmp_path / "again.parquet").read_bytes() == files[tmp_path / "p.parquet"]
    assert {p: p.read_bytes() for p in files} == files


def test_inspection_asks_for_one_class_and_shows_every_text(tmp_path: Path, capsys: Capture) -> None:
    reply = scenes("crane, a tall wading bird, asleep on one leg", "a pie", *(f"x{k}" for k in range(4)))
    with serving(lambda *_: reply) as server:
        assert main(command(server.url, "--inspect", "crane")) == 0
    out = capsys.readouterr().out
    assert len(server.received) == 1 and not (tmp_path / "p.parquet").exists()
    assert "  taken     crane, a tall wading bird, asleep on one leg\n" in out
    assert "  rejected  a pie\n            class: does not begin with the words of the class\n" in out
    assert "content: asleep on one leg; style: " in out and "source: llm:m" in out and "source: grammar:english" in out


def test_a_list_in_the_way_is_found_before_anything_is_paid_for(capsys: Capture) -> None:
    assert main(["prompts", "--vocabulary", "birds.csv", "--per-class", "6", "--out", "p.parquet"]) == 0
    assert "llm" not in yaml.safe_load(Path("p.parquet.config.yaml").read_text())
    with serving(good) as server:
        assert main(command(server.url)) == 2
    assert "p.parquet.config.yaml exists and holds something else" in capsys.readouterr().err
    assert server.received == []


def test_a_dead_server_is_one_line_and_leaves_nothing(tmp_path: Path, capsys: Capture) -> None:
    with serving(lambda *_: Reply(b"", 500)) as server:
        assert main(command(server.url)) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "calls/s" not in line]
    assert len(errors) == 1 and server.url in errors[0] and "HTTP 500" in errors[0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["birds.csv"]


def test_the_grammar_needs_no_call(capsys: Capture) -> None:
    assert main(["prompts", "--dry-run"]) == 0
    assert "0 calls" in capsys.readouterr().out and not Path("prompts.parquet").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--llm.backend", "local", "--llm.model", "nowhere"], "nowhere is no language model"),
        (["--llm.backend", "endpoint", "--llm.model", "m"], "needs llm.base_url"),
        (["--llm.backend", "gpt"], "--llm.backend takes one of none, endpoint, local, not 'gpt'"),
        (["--llm.key-variable", KEY], "not the key itself"),
        (["--price-in", "3"], "did you mean --llm.price_in"),
    ],
)
def test_refusals(arguments: list[str], message: str, capsys: Capture) -> None:
    assert main(["prompts", *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err and KEY not in err and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ([], ""),
        (
            ["--llm.backend", "endpoint", "--llm.model", "m", "--llm.base_url", "http://127.0.0.1:9/v1"],
            "prism_fast[llm]",
        ),
    ],
)
def test_the_grammar_needs_no_package_of_the_extra(arguments: list[str], error: str, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "for name in ('pydantic', 'gguf', 'openai', 'httpx'): sys.modules[name] = None\n"
        "from prism_fast.cli import main\n"
        "status = main(sys.argv[1:])\n"
        "heavy = {'torch', 'transformers'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else status)"
    )
    line = [sys.executable, "-c", code, "prompts", "--per-class", "2", "--out", str(tmp_path / "p.parquet"), *arguments]
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == (2 if error else 0) and error in done.stderr, done.stderr
