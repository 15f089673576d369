from __future__ import annotations

import json
import re
import socket
import time
from dataclasses import replace
from typing import Any

import pytest

from prism_fast.errors import UserError
from prism_fast.prompts.llm.answers import answer_schema
from prism_fast.prompts.llm.config import LlmConfig
from prism_fast.prompts.llm.endpoint import Endpoint
from prism_fast.prompts.llm.model import Answer, Message, Request, Sampling, load_model
from tests.llm_server import Reply, Script, completion, scenes, serving

KEY = "sk-very-secret-0123456789"
OK = scenes("a")


def config(url: str, **changes: Any) -> LlmConfig:
    return LlmConfig(backend="endpoint", model="m", base_url=url, **{"timeout_s": 5.0, "retry_s": 20.0, **changes})


def request(**changes: Any) -> Request:
    messages = (Message(role="system", content="s"), Message(role="user", content='{"class": "x"}'))
    sampling = Sampling(temperature=0.5, top_p=None, max_tokens=9)
    return replace(Request(model="m", messages=messages, schema=None, sampling=sampling, seed=7), **changes)


def answer_of(script: Script, **changes: Any) -> Answer:
    with serving(script) as server:
        return Endpoint(config(server.url, **changes)).answer(request())


def error_of(script: Script, **changes: Any) -> str:
    with serving(script) as server, pytest.raises(UserError) as caught:
        Endpoint(config(server.url, **changes)).answer(request())
    message = str(caught.value)
    assert server.url in message and "\n" not in message and KEY not in message
    return message


def test_what_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    with serving(lambda *_: OK) as server:
        model = load_model(config(f"{server.url}/", key_variable="MY_KEY"))
        for schema in (None, {"type": "object"}, answer_schema(2)):
            model.answer(request(schema=schema))
        Endpoint(config(server.url, limit_field="max_completion_tokens")).answer(request())
    first, second, third, last = server.received
    assert first.path == "/v1/chat/completions" and first.headers["Authorization"] == f"Bearer {KEY}"
    assert first.body == {
        "model": "m",
        "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": '{"class": "x"}'}],
        "max_tokens": 9,
        "seed": 7,
        "temperature": 0.5,
    }
    assert second.body["response_format"] == {"type": "json_object"}
    assert third.body["response_format"]["json_schema"]["schema"] == answer_schema(2)
    assert "Authorization" not in last.headers and last.body["max_completion_tokens"] == 9
    assert "max_tokens" not in last.body


def test_what_comes_back() -> None:
    found = answer_of(lambda *_: OK)
    assert found == Answer(text='{"scenes": ["a"]}', input_tokens=30, output_tokens=20)
    assert answer_of(lambda *_: completion("x")) == Answer(text="x")
    for odd in (None, "", 3, ["x"], {}):
        assert answer_of(lambda *_, odd=odd: completion(odd)).text == ""
    strange = completion("x", {"prompt_tokens": "many", "completion_tokens": -1})  # type: ignore[dict-item]
    assert answer_of(lambda *_: strange) == Answer(text="x")


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_fault_that_passes_is_waited_for(status: int) -> None:
    def script(_: Any, number: int) -> Reply:
        return Reply(b"busy", status, {"Retry-After": "0"}) if number == 0 else OK

    assert answer_of(script).text == '{"scenes": ["a"]}'


def test_retry_after_is_waited_for() -> None:
    start = time.monotonic()
    answer_of(lambda _, number: Reply(b"", 429, {"Retry-After": "1"}) if number == 0 else OK)
    assert time.monotonic() - start >= 1.0


def test_a_lost_or_slow_connection_is_tried_again() -> None:
    slow, lost = replace(OK, pause_s=30.0), Reply(OK.body[:-5], promised=len(OK.body))
    dripping = replace(OK, pause_s=0.1, drip=len(OK.body))
    for bad in (slow, lost, dripping):
        start = time.monotonic()
        assert answer_of(lambda _, n, bad=bad: bad if n == 0 else OK, timeout_s=0.5).text == '{"scenes": ["a"]}'
        assert time.monotonic() - start < 10


def test_tries_come_to_an_end() -> None:
    message = error_of(lambda *_: Reply(b'{"error": {"message": "over\\nloaded"}}', 503), retry_s=0.3)
    assert "gave no answer in 0.3 s of tries (HTTP 503: over loaded)" in message and "run the same command" in message
    assert "HTTP 429" in error_of(lambda *_: Reply(b"", 429, {"Retry-After": "3600"}))  # at once: beyond the limit
    assert "timed out" in error_of(lambda *_: replace(OK, pause_s=30.0), timeout_s=0.1, retry_s=0.2)
    assert "more than" in error_of(lambda *_: Reply(b" " * (5 << 20)), retry_s=0.1)


def test_nobody_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        with pytest.raises(UserError, match=f"{url} gave no answer .*refused.*see whether the server runs"):
            Endpoint(config(url, retry_s=0.1)).answer(request())


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (
            401,
            b'{"error": "bad key sk-very-secret-0123456789"}',
            r"HTTP 401: bad key \*\*\*\): see the key in \$MY_KEY",
        ),
        (
            404,
            b'{"detail": "no model m"}',
            r"no model m\): see --llm.base_url \(up to /v1\) and --llm.model, which is 'm'",
        ),
        (400, b'{"error": {"message": "unknown field response_format"}}', "try --llm.structure json or text"),
        (422, b"<html>" + b"x" * 10_000, "HTTP 422: <html>x+"),
        (302, b"", "give the address that it redirects to"),
    ],
)
def test_a_refusal_says_what_to_do(status: int, body: bytes, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    found = error_of(lambda *_: Reply(body, status, {"Location": "/elsewhere"}), key_variable="MY_KEY")
    assert re.search(message, found) and len(found) < 500


def test_the_key_goes_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    with serving(lambda *_: OK) as elsewhere:
        error_of(lambda *_: Reply(b"", 307, {"Location": f"{elsewhere.url}/x"}), key_variable="MY_KEY")
    assert elsewhere.received == []
    echo = completion(json.dumps({"scenes": [f"a {KEY} b"]}))
    assert answer_of(lambda *_: echo, key_variable="MY_KEY").text == '{"scenes": ["a *** b"]}'
    assert "***" in error_of(lambda *_: Reply(KEY.encode()), key_variable="MY_KEY")


@pytest.mark.parametrize("value", [None, "", "  ", "two\nlines", "ключ"])
def test_a_key_that_is_none(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("MY_KEY", value)
    with pytest.raises(UserError, match="environment variable MY_KEY holds no key: set it") as caught:
        Endpoint(config("http://127.0.0.1:9/v1", key_variable="MY_KEY")).answer(request())
    assert not value or not value.strip() or value not in str(caught.value)


@pytest.mark.parametrize(
    "body",
    [b"<html>a login page</html>", b"{}", b'{"choices": []}', b'{"choices": [{}]}', b"[]", b"3", b"\xff", b"[" * 9999],
)
def test_something_else_than_a_chat_completion(body: bytes) -> None:
    assert "something else than a chat completion" in error_of(lambda *_: Reply(body))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backend": "endpoint"}, "needs llm.model"),
        ({"backend": "local"}, "needs llm.model"),
        ({"backend": "gpt"}, "llm.backend is 'gpt', expected one of none, endpoint, local"),
        ({"backend": "endpoint", "model": "m"}, "needs llm.base_url"),
        ({"backend": "endpoint", "model": "m", "base_url": "localhost:8000/v1"}, "address of http or https"),
        ({"backend": "endpoint", "model": "m", "base_url": "file:///etc/passwd"}, "address of http or https"),
        ({"backend": "endpoint", "model": "m", "base_url": "http://[::1/v1"}, "address of http or https"),
        ({"backend": "endpoint", "model": "m", "base_url": f"http://me:{KEY}@h/v1"}, "without user, password or query"),
        (
            {"backend": "endpoint", "model": "m", "base_url": f"http://h/v1?key={KEY}"},
            "without user, password or query",
        ),
        ({"key_variable": KEY}, "name of an environment variable, in capitals, not the key itself"),
        ({"key_variable": "abcdef0123456789"}, "not the key itself"),
        ({"per_call": 0}, "llm.per_call is 0"),
        ({"temperature": -0.1}, "llm.temperature is -0.1"),
        ({"temperature": float("nan")}, "llm.temperature is nan"),
        ({"top_p": 1.5}, "llm.top_p is 1.5, expected at most 1"),
        ({"per_minute": 0.0}, "llm.per_minute is 0"),
        ({"price_in": -1.0}, "llm.price_in is -1.0"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        LlmConfig(**settings)
    assert message in str(caught.value) and KEY not in str(caught.value)


def test_nothing_is_no_model() -> None:
    with pytest.raises(UserError, match="the grammar writes everything; choose endpoint or local"):
        load_model(LlmConfig())
