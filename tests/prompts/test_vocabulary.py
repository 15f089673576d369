from __future__ import annotations

import json
from pathlib import Path

import pytest

from prism_fast.errors import UserError
from prism_fast.prompts import Sense, Vocabulary, load_vocabulary
from prism_fast.zoo.fashion_captions import GLOSSES, NAMES, OTHER_SENSES, caption


def written(folder: Path, name: str, text: str) -> str:
    (folder / name).write_bytes(text.encode())
    return str(folder / name)


def test_fashion_is_the_language_of_the_generator() -> None:
    fashion = load_vocabulary("fashion")
    assert fashion.names == NAMES
    assert [sense.gloss for sense in fashion.senses] == list(GLOSSES)
    assert fashion.senses[2].phrase == caption("jumper", gloss=GLOSSES[2])
    assert {s.name: s.other_senses for s in fashion.senses if s.other_senses} == {
        name: (other,) for name, other in OTHER_SENSES.items()
    }


def test_index_by_name_case_underscores_and_synonym() -> None:
    senses = (
        Sense(name="golden_retriever", phrase="golden retriever, a dog", synonyms=("goldie", "yellow dog")),
        Sense(name="Crane", phrase="Crane", synonyms=("machine",)),
        Sense(name="excavator", phrase="excavator", synonyms=("machine", "crane")),
    )
    vocabulary = Vocabulary(name="v", senses=senses)
    assert [vocabulary.index(name) for name in ("golden_retriever", "Golden  Retriever", "GOLDIE")] == [0, 0, 0]
    assert vocabulary.index("crane") == 1  # a name goes before another class's synonym
    with pytest.raises(UserError, match=r"'machine' is a synonym of several.*'Crane' \(1\), 'excavator' \(2\)"):
        vocabulary.index("machine")


def test_unknown_class_names_close_matches_and_not_thousands_of_others() -> None:
    with pytest.raises(UserError, match=r"unknown class 'trouser'.*did you mean 'trousers'"):
        load_vocabulary("fashion").index("trouser")
    many = Vocabulary(name="many", senses=tuple(Sense(name=f"kind {i}", phrase="x") for i in range(1000)))
    with pytest.raises(UserError, match="and 988 more") as caught:
        many.index("zzz")
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("name", ["fashoin", "fashion.doc", "/no/such/folder", ""])
def test_unknown_vocabulary_says_what_is_supported(name: str) -> None:
    with pytest.raises(
        UserError,
        match=r"unknown vocabulary.*supported: fashion, .*imagewoof, or a path to a \.csv or .*, or to a folder",
    ):
        load_vocabulary(name)


def test_csv(tmp_path: Path) -> None:
    text = (
        "\ufeffName,gloss,parent,synonyms\r\n"
        'crane,"a tall, wading bird.",bird,wader; grus \r\n'
        "\r\n"
        "golden_retriever,,dog,\r\n"
        "maillot\r\n"
    )
    vocabulary = load_vocabulary(written(tmp_path, "my classes.csv", text))
    assert vocabulary.name == "my classes"
    assert vocabulary.senses == (
        Sense(
            name="crane",
            phrase="crane, a tall, wading bird",
            gloss="a tall, wading bird",
            parent="bird",
            kinds=("bird",),
            synonyms=("wader", "grus"),
        ),
        Sense(
            name="golden_retriever",
            phrase="golden retriever, a kind of dog",
            gloss="a kind of dog",
            parent="dog",
            kinds=("dog",),
        ),
        Sense(name="maillot", phrase="maillot"),
    )


def test_json_says_the_same_as_csv(tmp_path: Path) -> None:
    rows = [{"name": "crane", "gloss": "a bird", "synonyms": ["wader"]}, "nail"]
    from_json = load_vocabulary(written(tmp_path, "v.json", json.dumps(rows)))
    from_csv = load_vocabulary(written(tmp_path, "v.csv", "name,gloss,synonyms\ncrane,a bird,wader\nnail,,\n"))
    assert from_json == from_csv


BAD_CSV = {
    "empty": (" \n\n", "is empty"),
    "header only": ("name,gloss\n", "names no class"),
    "no header": ("crane\nnail\n", "line 1: the header is 'crane'"),
    "semicolons": ("name;gloss\ncrane;a bird\n", "line 1: the header is 'name;gloss', expected a comma-separated"),
    "unknown column": ("name,glos\ncrane,a bird\n", "line 1: the header is 'name,glos'"),
    "column twice": ("name,gloss,gloss\na,b,c\n", "line 1: the header"),
    "bare comma": ("name,gloss\nnail,metal\ncrane,a tall, wading bird\n", "line 3: 3 fields where the header has 2"),
    "open quote": ('name,gloss\nnail,metal\ncrane,"a bird\nkite,"a toy"\nx,y\n', "line 3: malformed CSV"),
    "nameless": ("name,gloss\ncrane,a bird\n,a tool\n", "line 3: a class without a name"),
    "only underscores": ("name\n__\n", "line 2: a class without a name"),
    "twice": ("name,gloss\ncrane,a bird\nnail,\nCrane,a machine\n", "line 4: class 'Crane' is already named by line 2"),
    "control character": ("name\ncr\x07ane\n", "line 2: 'name' contains control characters"),
}


@pytest.mark.parametrize("case", BAD_CSV)
def test_bad_csv_names_the_line(tmp_path: Path, case: str) -> None:
    text, message = BAD_CSV[case]
    with pytest.raises(UserError) as caught:
        load_vocabulary(written(tmp_path, "v.csv", text))
    assert message in str(caught.value)
    assert "v.csv" in str(caught.value)


BAD_JSON = {
    "empty": ("", "is empty"),
    "no classes": ("[]", "names no class"),
    "malformed": ('[\n  "crane",\n  "nail"\n  "kite"\n]', "line 4: malformed JSON"),
    "no list": ('{"crane": "a bird"}', "expected a JSON list of names or objects, found an object"),
    "number": ('["crane", 3]', "entry 2: expected a name or an object, found a number"),
    "nameless": ('[{"gloss": "a bird"}]', "entry 1: a class without a name"),
    "wrong type": ('[{"name": "crane", "gloss": 3}]', "entry 1: 'gloss' must be a text, found a number"),
    "synonyms": ('[{"name": "crane", "synonyms": "wader"}]', "entry 1: 'synonyms' must be a list of texts"),
    "unknown key": ('["nail", {"name": "crane", "glos": "a"}]', "entry 2: unknown keys glos"),
    "key twice": ('[{"name": "crane", "name": "nail"}]', "the key 'name' twice"),
    "twice": ('["crane", {"name": " crane"}]', "entry 2: class 'crane' is already named by entry 1"),
    "nested without end": ("[" * 100_000, "not a list of names or objects that can be read"),
    "huge number": (f"[{'9' * 5000}]", "not a list of names or objects that can be read"),
    "half a character": ('["\\ud800"]', "entry 1: 'name' contains control characters or broken Unicode"),
}


@pytest.mark.parametrize("case", BAD_JSON)
def test_bad_json_names_the_place(tmp_path: Path, case: str) -> None:
    text, message = BAD_JSON[case]
    with pytest.raises(UserError) as caught:
        load_vocabulary(written(tmp_path, "v.json", text))
    assert message in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no vocabulary file"):
        load_vocabulary(str(tmp_path / "missing.csv"))
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UserError, match="cannot read vocabulary file"):
        load_vocabulary(str(tmp_path / "folder.csv"))
    (tmp_path / "latin.csv").write_bytes(b"name\nnail\ncaf\xe9\n")
    with pytest.raises(UserError, match="line 3: not UTF-8"):
        load_vocabulary(str(tmp_path / "latin.csv"))


def test_a_vocabulary_made_in_python_is_checked_too() -> None:
    with pytest.raises(UserError, match="has no classes"):
        Vocabulary(name="v", senses=())
    with pytest.raises(UserError, match="classes 0 and 1 are both named 'cafe\u0301'"):
        Vocabulary(name="v", senses=(Sense(name="caf\u00e9", phrase="x"), Sense(name="cafe\u0301", phrase="y")))
    with pytest.raises(UserError, match="needs a phrase"):
        Sense(name="x", phrase=" ")


def test_fashion_mnist_in_its_own_words() -> None:
    vocabulary = load_vocabulary("fashion-mnist")
    assert len(vocabulary) == 10
    assert vocabulary.index("boot") == vocabulary.index("Ankle boot") == 9
    assert vocabulary.senses[0].bare == "T-shirt"
    assert {sense.gloss for sense in vocabulary.senses} == set(GLOSSES)


def test_a_folder_of_class_folders_is_a_vocabulary(tmp_path: Path) -> None:
    for name in ("golden_retriever", "crane", ".hidden"):
        (tmp_path / "animals" / name).mkdir(parents=True)
    (tmp_path / "animals" / "readme.md").write_text("x")
    vocabulary = load_vocabulary(str(tmp_path / "animals"))
    assert (vocabulary.name, vocabulary.names) == ("animals", ("crane", "golden_retriever"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no folders: a data set has one for each class"):
        load_vocabulary(str(tmp_path / "empty"))
