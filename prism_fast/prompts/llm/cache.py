"""Answers kept in a JSON Lines file that is only ever appended to, by any number of processes at once.

A line is one call: its key, the whole request, the answer and its tokens. A process that is killed while it writes
leaves half a last line; the next one that writes cuts it off. A line that is no such record is passed over and counted.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prism_fast.config import canonical, unwritable
from prism_fast.errors import UserError
from prism_fast.prompts.llm.model import Answer, Request

_BEGINNING = b'{"answer": {'
"""Of every line. A file that begins otherwise is somebody else's, and is left alone."""


class AnswerCache:
    """The answers in a file; the first of a key is the one that counts.

    Args:
        path: the file; made with the first answer. Another program may append to it meanwhile.

    Attributes:
        broken: lines that were passed over.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.broken = 0
        self._answers: dict[str, Answer] = {}
        self._read_bytes = 0
        self._lock = threading.Lock()
        try:
            with path.open("rb") as file:
                self._take(file.read())
        except FileNotFoundError:
            pass
        except OSError as error:
            raise UserError(
                f"cannot read the answers in {path} ({error.strerror}): give another --llm.cache"
            ) from error

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, request: Request) -> Answer | None:
        """The answer to the same request, if there is one."""
        return self._answers.get(request.key)

    def put(self, request: Request, answer: Answer) -> Answer:
        """Keeps an answer, on the disk when this returns, and returns what counts: another process may have been first.

        Raises:
            UserError: the file cannot be written.
        """
        record = {"key": request.key, "request": canonical(request), "answer": canonical(answer)}
        line = json.dumps(record, sort_keys=True).encode() + b"\n"
        with self._lock:
            try:
                with _locked(self.path) as file:
                    self._catch_up(file)
                    if request.key not in self._answers:
                        _append(file, line)
                        self._read_bytes += len(line)
                        self._answers[request.key] = answer
            except OSError as error:
                raise unwritable(self.path, error) from error
            return self._answers[request.key]

    def _catch_up(self, file: int) -> None:
        """Reads what was appended since, and mends half a last line: nobody is writing it, as we have the lock."""
        size = os.fstat(file).st_size
        if size < self._read_bytes:  # another file took its place
            self._read_bytes = 0
        rest = self._take(_read(file, self._read_bytes, size))
        if _record(rest) is not None:  # all of it but its end
            _append(file, b"\n")
            self._take(rest + b"\n")
        elif rest:
            os.ftruncate(file, self._read_bytes)

    def _take(self, content: bytes) -> bytes:
        """Takes whole lines, and returns what is behind them."""
        if not self._read_bytes and not content.startswith(_BEGINNING) and not _BEGINNING.startswith(content):
            raise UserError(f"{self.path} holds something else than answers: give another --llm.cache")
        end = content.rfind(b"\n") + 1
        self._read_bytes += end
        for line in content[:end].split(b"\n"):
            found = _record(line)
            if found is None:
                self.broken += bool(line.strip())
            else:
                self._answers.setdefault(*found)
        return content[end:]


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """The file, open for reading and appending, and nobody else's until the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file
    finally:
        os.close(file)  # which also unlocks it


def _append(file: int, line: bytes) -> None:
    """All of a line, or nothing of it where the disk is full."""
    before = os.fstat(file).st_size
    try:
        written = 0
        while written < len(line):
            written += os.write(file, line[written:])
        os.fsync(file)
    except OSError:
        os.ftruncate(file, before)
        raise


def _read(file: int, start: int, end: int) -> bytes:
    parts = []
    while start < end and (part := os.pread(file, end - start, start)):
        parts.append(part)
        start += len(part)
    return b"".join(parts)


def _record(line: bytes) -> tuple[str, Answer] | None:
    """(key, answer) of a line, or None where it is none."""
    try:
        found: Any = json.loads(line)
        answer = found["answer"]
        key, text = found["key"], answer["text"]
        tokens = answer["input_tokens"], answer["output_tokens"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    if not isinstance(key, str) or not isinstance(text, str) or any(type(n) not in (int, type(None)) for n in tokens):
        return None
    return key, Answer(text=text, input_tokens=tokens[0], output_tokens=tokens[1])
