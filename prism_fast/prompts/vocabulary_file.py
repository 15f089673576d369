"""Reads a user's own classes from CSV or JSON, or from the ``teacher.yaml`` of their teacher.

CSV: UTF-8, commas, a header line with ``name`` and any of ``gloss``, ``parent``, ``synonyms`` (split by ``;``).
JSON: a list whose entries are names or objects with the same keys (``synonyms`` is a list there).
YAML: the teacher's settings, whose ``classes`` have names and glosses.
TXT: ImageNet's wnids (``n02012849``), one a line.
A folder: its folders are the classes, in the order of their names; their names are class names, or wnids.
The order of the entries is the order of the class indices.
"""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from prism_fast.errors import UserError
from prism_fast.prompts.vocabulary import Sense, Vocabulary, name_key, spoken
from prism_fast.prompts.wordnet import is_wnid
from prism_fast.teachers.settings import read_settings

FIELDS = ("name", "gloss", "parent", "synonyms")
_WANTED = f"a vocabulary file lists classes with {FIELDS[0]!r} and optionally {', '.join(FIELDS[1:])}"


def read_vocabulary(path: Path) -> Vocabulary:
    """The vocabulary in ``path``, named after the file.

    Raises:
        UserError: the file is missing, empty, not UTF-8 or malformed (its line is named), or names a class twice.
    """
    text = _read(path)
    if path.suffix.lower() == ".txt":
        return _from_wnids(path, {f"line {n}": line.strip() for n, line in enumerate(text.splitlines(), 1)})
    return _from_entries(path, _READERS[path.suffix.lower()](path, text))


def read_folder(path: Path) -> Vocabulary:
    """The classes of a data set of one folder a class, named after the data set.

    Raises:
        UserError: no folder in it, or names that are no classes.
    """
    names = sorted(each.name for each in path.iterdir() if each.is_dir() and not each.name.startswith("."))
    if not names:
        raise UserError(f"{path} has no folders: a data set has one for each class")
    if all(is_wnid(name) for name in names):
        return _from_wnids(path, {f"folder {name}": name for name in names})
    return _from_entries(path, ((f"folder {name}", {"name": name}) for name in names))


def _from_wnids(path: Path, wnids: Mapping[str, str]) -> Vocabulary:
    """Classes of ImageNet by place."""
    from prism_fast.prompts.imagenet import imagenet_vocabulary

    named = {place: wnid for place, wnid in wnids.items() if wnid}
    wrong = [f"{place}: {wnid!r}" for place, wnid in named.items() if not is_wnid(wnid)]
    if wrong or not named:
        raise UserError(f"{path}, {wrong[0] if wrong else 'no line'}: no wnid; list wnids like n02012849, one a line")
    try:
        return imagenet_vocabulary(path.stem, list(named.values()))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _from_entries(path: Path, entries: Iterable[tuple[str, Mapping[str, Any]]]) -> Vocabulary:
    senses: list[Sense] = []
    places: dict[str, str] = {}
    for place, entry in entries:
        sense = _sense(f"{path}, {place}", entry)
        earlier = places.setdefault(name_key(sense.name), place)
        if earlier != place:
            raise UserError(
                f"{path}, {place}: class {sense.name!r} is already named by {earlier}; "
                "give each class its own name, and put what tells them apart into the gloss"
            )
        senses.append(sense)
    if not senses:
        raise UserError(f"{path} names no class; {_WANTED}")
    return Vocabulary(name=path.stem, senses=tuple(senses), grammar="english")


def _read(path: Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8-sig")  # spreadsheets write a byte order mark
    except FileNotFoundError as error:
        raise UserError(f"no vocabulary file {path}") from error
    except OSError as error:
        raise UserError(f"cannot read vocabulary file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{path}, line {line}: not UTF-8 text; save the file as UTF-8") from error
    if not text.strip():
        raise UserError(f"{path} is empty; {_WANTED}")
    return text


def _csv_entries(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, fields) of each row. A row's place is its first line: an open quote swallows all that follow."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] = []
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise UserError(f"{path}, line {line}: malformed CSV: {error}; is a quote left open?") from error
        if row is None:
            return
        if not any(cell.strip() for cell in row):
            continue
        if not header:
            header = _csv_header(f"{path}, line {line}", row)
            continue
        if len(row) > len(header):
            raise UserError(
                f"{path}, line {line}: {len(row)} fields where the header has {len(header)}; "
                'put a text with commas into quotes, like "a tall, wading bird"'
            )
        fields: dict[str, Any] = dict(zip(header, row, strict=False))
        if "synonyms" in fields:
            fields["synonyms"] = fields["synonyms"].split(";")
        yield f"line {line}", fields


def _csv_header(place: str, row: list[str]) -> list[str]:
    header = [cell.strip().lower() for cell in row]
    unknown = [cell for cell in header if cell not in FIELDS]
    if "name" not in header or unknown or len(set(header)) != len(header):
        raise UserError(
            f"{place}: the header is {','.join(header)!r}, expected a comma-separated choice of {','.join(FIELDS)!r}, "
            "each once, with at least 'name'"
        )
    return header


def _settings_entries(path: Path, _text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    classes = read_settings(path).classes
    if classes is None:
        raise UserError(f"{path} names no classes: add them, or give the vocabulary as a .csv or .json file")
    for index, each in enumerate(classes):
        yield f"class {index}", {"name": each.name, "gloss": each.gloss}


def _json_entries(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        document = json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: malformed JSON: {error.msg} (column {error.colno})") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists nested without end
        raise UserError(f"{path}: not a list of names or objects that can be read: {error}") from error
    except _RepeatedKeyError as error:
        raise UserError(f"{path}: an object has the key {error} twice") from error
    if not isinstance(document, list):
        raise UserError(f"{path}: expected a JSON list of names or objects, found {_json_kind(document)}")
    for number, entry in enumerate(document, start=1):
        place = f"entry {number}"
        if isinstance(entry, str):
            yield place, {"name": entry}
        elif isinstance(entry, dict):
            unknown = sorted(set(entry) - set(FIELDS))
            if unknown:
                raise UserError(f"{path}, {place}: unknown keys {', '.join(unknown)} (known: {', '.join(FIELDS)})")
            yield place, entry
        else:
            raise UserError(f"{path}, {place}: expected a name or an object, found {_json_kind(entry)}")


_READERS = {".csv": _csv_entries, ".json": _json_entries, ".yaml": _settings_entries}


class _RepeatedKeyError(Exception):
    """A JSON object names a key twice; Python's reader would keep the last without a word."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in pairs:
        if key in made:
            raise _RepeatedKeyError(repr(key))
        made[key] = value
    return made


def _json_kind(value: Any) -> str:
    kinds: dict[type, str] = {dict: "an object", list: "a list", str: "a text", bool: "a truth value"}
    return kinds.get(type(value), "nothing" if value is None else "a number")


def _sense(place: str, fields: Mapping[str, Any]) -> Sense:
    name = _text(place, fields, "name")
    bare = spoken(name)
    if not bare:
        raise UserError(f"{place}: a class without a name")
    parent = _text(place, fields, "parent")
    gloss = _text(place, fields, "gloss").rstrip(" .")  # the prompt goes on after it
    if not gloss and parent:
        gloss = f"a kind of {parent}"
    synonyms = fields.get("synonyms") or []
    if not isinstance(synonyms, list) or not all(isinstance(s, str) for s in synonyms):
        raise UserError(f"{place}: 'synonyms' must be a list of texts")
    return Sense(
        name=name,
        phrase=f"{bare}, {gloss}" if gloss else bare,
        gloss=gloss,
        parent=parent,
        kinds=tuple(dict.fromkeys((parent, parent.split()[-1]))) if parent else (),
        synonyms=tuple(_text(place, {"synonyms": s}, "synonyms") for s in synonyms if s.strip()),
    )


def _text(place: str, fields: Mapping[str, Any], field: str) -> str:
    """One field as a single line, empty where it is absent."""
    value = fields.get(field)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(f"{place}: {field!r} must be a text, found {_json_kind(value)}")
    text = " ".join(value.split())
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in text):
        raise UserError(f"{place}: {field!r} contains control characters or broken Unicode: {text!r}")
    return text
