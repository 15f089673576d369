from __future__ import annotations

import fcntl
import json
import random
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from prism_fast.errors import UserError
from prism_fast.prompts.llm.cache import AnswerCache
from prism_fast.prompts.llm.model import Answer, Message, Request, Sampling

ROOT = Path(__file__).parents[3]


def request(name: object, seed: int = 0) -> Request:
    sampling = Sampling(temperature=0.5, top_p=None, max_tokens=9)
    return Request(
        model="m", messages=(Message(role="user", content=f"{name}"),), schema=None, sampling=sampling, seed=seed
    )


def test_answers_come_back_and_a_line_tells_everything(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "deep" / "answers.jsonl"
    told = {
        request(n, seed): Answer(text=f"a\n\u2028 {n} é \x00", input_tokens=n, output_tokens=None) for n in range(5)
    }
    cache = AnswerCache(path)
    for asked, answer in told.items():
        assert cache.get(asked) is None
        assert cache.put(asked, answer) == answer
    again = AnswerCache(path)
    assert {asked: again.get(asked) for asked in told} == told and again.broken == 0
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["request"]["messages"][0]["content"] for line in lines] == ["0", "1", "2", "3", "4"]
    assert [line["key"] for line in lines] == [asked.key for asked in told]


def test_everything_that_decides_an_answer_decides_its_key() -> None:
    base = request("x")
    others = [
        replace(base, model="n"),
        replace(base, messages=(Message(role="system", content="x"),)),
        replace(base, messages=(*base.messages, Message(role="user", content=""))),
        replace(base, schema={"type": "object"}),
        replace(base, sampling=replace(base.sampling, temperature=0.6)),
        replace(base, sampling=replace(base.sampling, temperature=None)),
        replace(base, sampling=replace(base.sampling, top_p=1.0)),
        replace(base, sampling=replace(base.sampling, max_tokens=10)),
        replace(base, seed=1),
    ]
    assert len({each.key for each in [base, *others]}) == 1 + len(others)
    assert replace(base).key == base.key


@pytest.mark.parametrize("where", ["anywhere", "before the line's end"])
def test_half_a_last_line_is_mended_and_no_other_is_lost(tmp_path: Path, seed: int, where: str) -> None:
    path = tmp_path / "answers.jsonl"
    cache = AnswerCache(path)
    for n in range(4):
        cache.put(request(n), Answer(text=str(n)))
    whole = path.read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    cut = len(whole) - 1 if where != "anywhere" else random.Random(seed).randrange(last + 1, len(whole) - 1)
    path.write_bytes(whole[:cut])
    again = AnswerCache(path)
    assert [again.get(request(n)) is not None for n in range(4)] == [True, True, True, False]
    again.put(request(9), Answer(text="9"))
    kept = AnswerCache(path)
    assert kept.broken == 0 and [kept.get(request(n)) for n in (0, 1, 2, 9)] == [
        Answer(text=f"{n}") for n in (0, 1, 2, 9)
    ]
    assert (kept.get(request(3)) is not None) == (where != "anywhere")  # all of it was there but the line's end
    assert path.read_bytes().startswith(whole[:last]) and path.read_bytes().endswith(b"\n")


def test_half_a_first_line_is_mended_too(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_bytes(b'{"answ')
    AnswerCache(path).put(request(1), Answer(text="1"))
    assert AnswerCache(path).get(request(1)) == Answer(text="1")


_BROKEN = {
    "no answer": b"{}",
    "no text": b"\xff\xfe",
    "without end": b"[" * 100_000,
    "a number": b'{"answer": {"text": 3}}',
    "null": b'{"answer": null, "key": "k"}',
}


@pytest.mark.parametrize("line", _BROKEN.values(), ids=_BROKEN)
def test_a_broken_line_amid_the_file_is_passed_over_and_counted(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "answers.jsonl"
    AnswerCache(path).put(request(1), Answer(text="1"))
    first = path.read_bytes()
    path.write_bytes(first + line + b"\n")
    cache = AnswerCache(path)
    cache.put(request(2), Answer(text="2"))
    assert cache.broken == 1 and path.read_bytes().startswith(first + line + b"\n")
    again = AnswerCache(path)
    assert [again.get(request(n)) for n in (1, 2)] == [Answer(text="1"), Answer(text="2")]


@pytest.mark.parametrize("content", [b"class\ncat", b"{}\n", b"PAR1\x00", b'{"answer": 3}\n'])
def test_a_file_of_something_else_is_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "mine"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"holds something else than answers: give another --llm\.cache"):
        AnswerCache(path)
    path.unlink()
    cache = AnswerCache(path)
    path.write_bytes(content)  # it came after we looked
    with pytest.raises(UserError, match="something else"):
        cache.put(request(1), Answer(text="1"))
    assert path.read_bytes() == content


def test_places_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read the answers in .* \(Is a directory\)"):
        AnswerCache(tmp_path)
    with pytest.raises(UserError, match="cannot write"):
        AnswerCache(Path("/proc/answers.jsonl")).put(request(1), Answer(text="1"))


def test_of_two_answers_the_first_counts_for_both(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    one, two = AnswerCache(path), AnswerCache(path)
    assert one.put(request(1), Answer(text="one")) == Answer(text="one")
    assert two.put(request(1), Answer(text="two")) == Answer(text="one") == two.get(request(1))
    assert len(path.read_text().splitlines()) == 1


def test_a_line_is_written_while_nobody_else_writes(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    AnswerCache(path).put(request(0), Answer(text="0"))
    one, other = AnswerCache(path), request(1)
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(b'{"answer": {"tex')  # amid its line
        file.flush()
        thread = threading.Thread(target=one.put, args=(other, Answer(text="1")))
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
        file.write(b't": "x", "input_tokens": 1, "output_tokens": 2}, "key": "k"}\n')
        file.flush()
        fcntl.flock(file, fcntl.LOCK_UN)
    thread.join(10)
    again = AnswerCache(path)
    assert again.broken == 0 and len(again) == 3 == len(path.read_bytes().splitlines())


_WRITER = """
import sys
from pathlib import Path
from prism_fast.prompts.llm.cache import AnswerCache
from prism_fast.prompts.llm.model import Answer, Message, Request, Sampling
cache = AnswerCache(Path(sys.argv[1]))
sampling = Sampling(temperature=0.5, top_p=None, max_tokens=9)
print("ready", flush=True)
sys.stdin.readline()
for n in range(int(sys.argv[2]), int(sys.argv[3])):
    message = Message(role="user", content=f"{n}")
    request = Request(model="m", messages=(message,), schema=None, sampling=sampling, seed=0)
    cache.put(request, Answer(text=str(n) * 3000))
print("done", flush=True)
sys.stdin.readline()
"""


def writer(path: Path, first: int, end: int) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", _WRITER, str(path), str(first), str(end)]
    process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_processes_at_once_do_not_mix_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    writers = [writer(path, first, first + 60) for first in (0, 30, 60)]  # half of it is asked twice
    for process in writers:
        go(process)
    for process in writers:
        process.communicate("\n", timeout=60)
    cache = AnswerCache(path)
    assert cache.broken == 0 and len(cache) == 120 == len(path.read_bytes().splitlines())
    assert all(cache.get(request(n)) == Answer(text=str(n) * 3000) for n in range(120))


def test_a_kill_amid_writing_loses_at_most_its_own_line(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "answers.jsonl"
    process = writer(path, 0, 100_000)
    go(process)
    wanted = random.Random(seed).randrange(5, 40) * 3000
    while not path.exists() or path.stat().st_size < wanted:
        assert process.poll() is None
    process.kill()
    process.communicate()
    found = AnswerCache(path)
    count = len(found)
    assert count > 0 and all(found.get(request(n)) == Answer(text=str(n) * 3000) for n in range(count))
    found.put(request("next"), Answer(text="next"))
    assert len(AnswerCache(path)) in (count + 1, count + 2) and AnswerCache(path).broken == 0
