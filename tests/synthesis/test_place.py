from __future__ import annotations

from pathlib import Path

import pytest

from prism_fast.cli import main
from prism_fast.data.shards import ShardSet
from prism_fast.errors import UserError
from prism_fast.synthesis.object_store import ObjectPath
from prism_fast.synthesis.place import as_place, local_folder


@pytest.mark.parametrize("out", ["runs/a", "/tmp/a b", Path("runs/a"), "a:b", "s3", "file:///tmp/a", "local:///tmp/a"])
def test_folders_stay_paths(out: str | Path) -> None:
    assert as_place(out) == Path(str(out).removeprefix("file://").removeprefix("local://"))


def test_urls_of_stores() -> None:
    there = as_place("S3://bucket/a/b/")
    assert there == ObjectPath("s3://bucket/a/b") == as_place(there)
    assert (str(there / "c"), (there / "c").name, there.absolute()) == ("s3://bucket/a/b/c", "c", there)
    assert as_place("gs://bucket") == ObjectPath("gs://bucket")


@pytest.mark.parametrize("out", ["ftp://host/a", "http://host/a", "memory://a", "simplecache::s3://b/a", "://a"])
def test_where_files_do_not_appear_whole_is_refused(out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"only where files appear whole.* s3://, "):
        as_place(out)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "out", ["s3://", "s3:///a", "s3://b/*", "s3://b/a?v=1", "s3://b//a", "s3://b/a::b", "gs://b/[a]"]
)
def test_urls_of_no_place_are_refused(out: str) -> None:
    with pytest.raises(UserError, match="names no place"):
        as_place(out)


def test_a_url_that_became_a_path_is_refused() -> None:
    with pytest.raises(UserError, match="was a URL"):
        as_place(Path("s3://bucket/a"))


@pytest.mark.parametrize("there", ["s3://bucket/a", Path("s3://bucket/a")])
def test_readers_say_how_to_get_a_copy(there: str | Path) -> None:
    with pytest.raises(UserError, match="aws s3 sync s3://bucket/a FOLDER"):
        local_folder(there)
    with pytest.raises(UserError, match="aws s3 sync s3://bucket/a FOLDER"):
        ShardSet(there)


def test_the_command_line_refuses_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["synthesize", "--out", "ftp://host/a"]) == 2
    assert "prism-fast: error: cannot write to ftp://host/a" in capsys.readouterr().err
    assert main(["evaluate", "s3://bucket/a"]) == 2
    assert "aws s3 sync s3://bucket/a FOLDER" in capsys.readouterr().err
