"""Any server that speaks OpenAI's chat completions: vLLM, Ollama, llama.cpp, ``transformers serve``, or a paid one.

One POST with the standard library: no client package is needed. Redirects are not followed, since the key would travel
with them.
"""

from __future__ import annotations

import http.client
import json
import math
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from prism_fast.config import secret
from prism_fast.errors import UserError
from prism_fast.prompts.llm.config import LlmConfig
from prism_fast.prompts.llm.model import Answer, Message, Request
from prism_fast.prompts.llm.pace import Pace, TryAgainError, retry_after_s, with_retries

_LETTERS_PER_TOKEN = 4  # of English, about
_MESSAGE_TOKENS = 4  # around each message
_LARGEST_BYTES = 1 << 22
_QUOTED = 200  # characters of a server's message
_TRANSIENT = (408, 409, 425, 429, 500, 502, 503, 504, 529)
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Endpoint:
    """A model behind a base URL.

    Args:
        config: names both, and the variable that holds the key, which is read when something is asked.
    """

    def __init__(self, config: LlmConfig) -> None:
        if config.model is None or config.base_url is None:
            raise UserError("llm.backend endpoint needs llm.model and llm.base_url")
        self.name = self.identity = config.model
        self.concurrent = config.concurrent
        self._config = config
        self._base = config.base_url.rstrip("/")
        self._pace = Pace(config.per_minute)
        self._opener = urllib.request.build_opener(_StayHere, *_proxies(self._base))

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """By the letters: the server's tokenizer is not here."""
        return sum(_MESSAGE_TOKENS + math.ceil(len(m.content) / _LETTERS_PER_TOKEN) for m in messages)

    def answer(self, request: Request, stop: threading.Event | None = None) -> Answer:
        """Posts the request, again while the server is busy or broken, for ``retry_s`` at most."""
        key = secret(self._config.key_variable) if self._config.key_variable else None
        body = json.dumps(_body(request, self._config)).encode()
        try:
            found = with_retries(lambda: self._try(body, key), self._config.retry_s, self._pace, stop)
        except TryAgainError as error:
            raise UserError(
                f"{self._base} gave no answer in {self._config.retry_s:g} s of tries ({_hidden(str(error), key)}): "
                "see whether the server runs and is not overloaded, then run the same command again; answers so far "
                "are kept"
            ) from None
        return self._read(found, key)

    def _try(self, body: bytes, key: str | None) -> bytes:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "prism_fast"}
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        url = f"{self._base}/chat/completions"
        post = urllib.request.Request(url, data=body, headers=headers)  # noqa: S310 - LlmConfig takes http(s) alone
        end = time.monotonic() + self._config.timeout_s
        try:
            with self._opener.open(post, timeout=self._config.timeout_s) as response:
                return _read_until(response, end)
        except urllib.error.HTTPError as error:
            with error:
                said = _hidden(_server_message(error), key)
            if error.code in _TRANSIENT:
                raise TryAgainError(f"HTTP {error.code}: {said}", retry_after_s(error.headers)) from None
            raise UserError(
                f"{self._base} refused the call (HTTP {error.code}: {said}): {self._cure(error.code)}"
            ) from None
        except (OSError, http.client.HTTPException) as error:  # among them URLError and timeouts
            reason = getattr(error, "reason", None) or error
            raise TryAgainError(_hidden(" ".join(f"{reason}".split()) or type(error).__name__, key)) from None

    def _cure(self, status: int) -> str:
        if status in (401, 403):
            variable = self._config.key_variable
            return (
                f"see the key in ${variable}"
                if variable
                else "name the variable that holds its key: --llm.key_variable"
            )
        if 300 <= status < 400:
            return "give the address that it redirects to as --llm.base_url"
        if status in (404, 405):
            return f"see --llm.base_url (up to /v1) and --llm.model, which is {self.name!r}"
        return (
            "if it does not know a field, try --llm.structure json or text, --llm.limit_field max_completion_tokens, "
            "or --llm.temperature null"
        )

    def _read(self, body: bytes, key: str | None) -> Answer:
        try:
            found: Any = json.loads(body)
            message = found["choices"][0]["message"]
            text = message.get("content")
            usage = found.get("usage") or {}
            tokens = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            said = _hidden(" ".join(body[:_QUOTED].decode(errors="replace").split()), key)
            raise UserError(
                f"{self._base} answered with something else than a chat completion ({said!r}): see --llm.base_url, "
                "which goes up to /v1"
            ) from None
        counts = [count if type(count) is int and count >= 0 else None for count in tokens]
        # A refusal has no content: an empty text, which no check lets pass.
        text = _hidden(text, key, None) if isinstance(text, str) else ""
        return Answer(text=text, input_tokens=counts[0], output_tokens=counts[1])


class _StayHere(urllib.request.HTTPRedirectHandler):
    """A redirect is an error: a POST would become a GET, and the key would go to another place."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _proxies(base: str) -> list[urllib.request.ProxyHandler]:
    """The environment's proxies, but none to this machine itself."""
    return [urllib.request.ProxyHandler({})] if urlsplit(base).hostname in _LOOPBACK else []


def _body(request: Request, config: LlmConfig) -> dict[str, Any]:
    sampling = request.sampling
    given = {"temperature": sampling.temperature, "top_p": sampling.top_p, "response_format": _format(request.schema)}
    return {
        "model": request.model,
        "messages": [{"role": message.role, "content": message.content} for message in request.messages],
        config.limit_field: sampling.max_tokens,
        "seed": request.seed,
        **{name: value for name, value in given.items() if value is not None},
    }


def _format(schema: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if schema is None:
        return None
    if "properties" not in schema:
        return {"type": "json_object"}
    return {"type": "json_schema", "json_schema": {"name": "scenes", "schema": schema, "strict": True}}


def _read_until(response: http.client.HTTPResponse, end: float) -> bytes:
    """The body, however slowly it drips, until a time is over."""
    parts, size = [], 0
    while part := response.read1(1 << 16):
        parts.append(part)
        size += len(part)
        if size > _LARGEST_BYTES:
            raise TryAgainError(f"an answer of more than {_LARGEST_BYTES} bytes")
        if time.monotonic() > end:
            raise TryAgainError("timed out amid the answer")
    if response.length:
        raise TryAgainError("the connection was lost amid the answer")
    return b"".join(parts)


def _server_message(error: urllib.error.HTTPError) -> str:
    """What the server says is wrong, in one line."""
    try:
        body = error.read(1 << 16)
    except (OSError, http.client.HTTPException):
        body = b""
    text = body.decode(errors="replace")
    try:
        found = json.loads(text)
        inner = found.get("error", found.get("detail", found))
        text = str(inner.get("message", inner) if isinstance(inner, dict) else inner)
    except (ValueError, AttributeError, RecursionError):
        pass
    return " ".join(text.split()) or error.reason


def _hidden(text: str, key: str | None, most: int | None = _QUOTED) -> str:
    """A text without the key, which a server may say back, cut to ``most`` characters."""
    clear = text.replace(key, "***") if key else text
    return clear if most is None or len(clear) <= most else f"{clear[:most]}..."
