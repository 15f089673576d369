from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prism_fast.errors import UserError
from prism_fast.prompts import PromptConfig, PromptList, Sense, Vocabulary, build_prompts, load_vocabulary

FASHION = load_vocabulary("fashion")
COLUMNS = ["class_index", "prompt", "sense", "content", "style", "source"]
TWO = Vocabulary(name="two", senses=(Sense(name="crane", phrase="crane"), Sense(name="nail", phrase="nail")))


def foreign(path: Path, **columns: Any) -> Path:
    """A parquet file that another program wrote; two rows, one of each class."""
    text = ["crane, a bird", "nail"]
    defaults = {"class_index": [0, 1], "prompt": text, "sense": ["crane", "nail"]} | {
        name: ["x", "y"] for name in COLUMNS[3:]
    }
    kept = {name: value for name, value in (defaults | columns).items() if value is not None}
    pq.write_table(pa.table(kept), path)
    return path


def test_round_trip_with_exactly_the_columns(tmp_path: Path) -> None:
    made = build_prompts(FASHION, PromptConfig(per_class=12))
    path = tmp_path / "new" / "prompts.parquet"
    made.save(path)
    assert PromptList.load(path) == made
    schema = pq.read_schema(path)
    assert schema.names == COLUMNS
    assert schema.types == [pa.int64(), *[pa.string()] * 5]
    first = path.read_bytes()
    made.save(path)
    assert path.read_bytes() == first
    assert [p.name for p in path.parent.iterdir()] == ["prompts.parquet"]


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "prompts.parquet"
    made = build_prompts(FASHION, PromptConfig(per_class=2))
    made.save(path)
    before = path.read_bytes()

    def full_disk(table: Any, file: Any) -> None:
        file.write(b"PAR1 half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full_disk)
    with pytest.raises(UserError, match=r"cannot write the prompt list .*No space left"):
        build_prompts(FASHION, PromptConfig(per_class=3)).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_list_made_earlier_is_used_as_it_is(tmp_path: Path) -> None:
    made = build_prompts(FASHION, PromptConfig(per_class=5, seed=3))
    made.save(tmp_path / "p.parquet")
    again = build_prompts(FASHION, PromptConfig(file=str(tmp_path / "p.parquet"), per_class=1, content="none"))
    assert again.prompts == made.prompts
    assert again.fingerprint == made.fingerprint


def test_a_list_for_other_classes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    build_prompts(FASHION, PromptConfig(per_class=1)).save(path)
    config = PromptConfig(file=str(path))
    fewer = Vocabulary(name="fewer", senses=FASHION.senses[:9])
    with pytest.raises(UserError, match="other classes than those of vocabulary 'fewer': 10 classes there, 9 here"):
        build_prompts(fewer, config)
    turned = Vocabulary(name="turned", senses=FASHION.senses[::-1])
    with pytest.raises(UserError, match="class 0 is 'top' there, 'boot' here"):
        build_prompts(turned, config)


def test_a_foreign_list_must_cover_the_classes(tmp_path: Path) -> None:
    path = foreign(tmp_path / "p.parquet")
    assert len(build_prompts(TWO, PromptConfig(file=str(path)))) == 2
    foreign(path, class_index=[0, 0])
    with pytest.raises(UserError, match=r"no prompts of class 1 \(nail\)"):
        build_prompts(TWO, PromptConfig(file=str(path)))
    foreign(path, class_index=[0, 2])
    with pytest.raises(UserError, match="no prompts of class 1"):
        build_prompts(TWO, PromptConfig(file=str(path)))
    one = Vocabulary(name="one", senses=TWO.senses[:1])
    with pytest.raises(UserError, match="prompts of class 2; vocabulary 'one' has classes 0 to 0"):
        build_prompts(one, PromptConfig(file=str(path)))


def test_a_foreign_list_is_cut_to_the_tokenizer_but_never_the_class(tmp_path: Path) -> None:
    long = "a very nice photo of the Crane, a bird in a park"
    path = foreign(tmp_path / "p.parquet", prompt=[long, "nail"])
    config = PromptConfig(file=str(path))

    def cut_to(words: int) -> PromptList:
        return build_prompts(TWO, config, fits=lambda text: len(text.split()) <= words)

    assert cut_to(12).report["shortened"] == 0
    assert cut_to(9).prompts[0].prompt == "a very nice photo of the Crane, a bird"
    assert cut_to(9).report["shortened"] == 1
    assert cut_to(8).prompts[0].prompt == "a very nice photo of the Crane, a"
    assert cut_to(7).prompts[0].prompt == "a very nice photo of the Crane"
    assert cut_to(3).prompts[0].prompt == "crane"
    assert (cut_to(3).prompts[0].content, cut_to(3).prompts[0].style) == ("none", "none")
    with pytest.raises(UserError, match=r"p\.parquet: the prompt .*is longer than the tokenizer"):
        cut_to(0)
    foreign(path, prompt=["a photo of several cranes", "nail"])
    with pytest.raises(UserError, match=r"cannot be cut to the words of its class, 'crane'"):
        cut_to(3)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"source": None}, "has exactly class_index, prompt, sense, content, style, source"),
        ({"extra": [1, 2]}, "has the columns class_index, prompt, sense, content, style, source, extra"),
        ({"class_index": ["0", "1"]}, "column 'class_index' is of type string, expected integer"),
        ({"class_index": [0.0, 1.0]}, "column 'class_index' is of type double, expected integer"),
        ({"prompt": [1, 2]}, "column 'prompt' is of type int64, expected string"),
        ({"prompt": ["crane", None]}, "column 'prompt' has 1 empty entries"),
        ({"prompt": ["crane", " "]}, "row 1: no class index or no prompt"),
        ({"class_index": [0, -1]}, "row 1: no class index or no prompt"),
    ],
)
def test_wrong_columns_are_refused(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    path = foreign(tmp_path / "p.parquet", **columns)
    with pytest.raises(UserError) as caught:
        PromptList.load(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_other_spellings_of_the_same_types_are_read(tmp_path: Path) -> None:
    path = foreign(
        tmp_path / "p.parquet",
        class_index=pa.array([0, 1], pa.uint8()),
        prompt=pa.array(["crane", "nail"], pa.large_string()),
    )
    assert [p.class_index for p in PromptList.load(path)] == [0, 1]


def test_files_that_are_no_prompt_list(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no prompt list .*prism-fast prompts --out"):
        PromptList.load(tmp_path / "missing.parquet")
    (tmp_path / "text.parquet").write_text("hello")
    with pytest.raises(UserError, match="not a readable parquet file"):
        PromptList.load(tmp_path / "text.parquet")
    pq.write_table(
        pa.table({name: pa.array([], pa.int64() if i == 0 else pa.string()) for i, name in enumerate(COLUMNS)}),
        tmp_path / "none.parquet",
    )
    with pytest.raises(UserError, match="has no prompts"):
        PromptList.load(tmp_path / "none.parquet")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the prompt list"):
        build_prompts(TWO, PromptConfig(per_class=1)).save(tmp_path / "file" / "p.parquet")


@pytest.mark.parametrize(
    "metadata",
    [
        b"{",
        b"\xff\xfe",
        b"[]",
        b"[" * 100_000,
        b'{"classes": 3}',
        b'{"classes": ["crane", 1]}',
        b'{"classes": {"a": 1}}',
        b'{"report": [1]}',
        b'{"report": {"prompts": "many"}}',
        b'{"report": null}',
    ],
)
def test_metadata_that_are_none(tmp_path: Path, metadata: bytes) -> None:
    path = foreign(tmp_path / "p.parquet")
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({b"prism_fast": metadata}), path)
    with pytest.raises(UserError, match=r"p\.parquet: its metadata 'prism_fast' .*make the list again"):
        PromptList.load(path)


def test_metadata_of_others_do_not_matter(tmp_path: Path) -> None:
    path = foreign(tmp_path / "p.parquet")
    pq.write_table(pq.read_table(path).replace_schema_metadata({b"pandas": b"{"}), path)
    assert (PromptList.load(path).classes, PromptList.load(path).report) == (None, {})


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    broken = pa.array([b"crane \xff", b"nail"], pa.binary()).view(pa.string())
    path = foreign(tmp_path / "p.parquet", prompt=broken)
    with pytest.raises(UserError, match=r"p\.parquet has text that is not UTF-8"):
        PromptList.load(path)
