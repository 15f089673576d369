"""Sets in an object store, on a local server that speaks S3: the same bytes as in a folder, whatever happens."""

from __future__ import annotations

import errno
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import s3fs

from prism_fast.errors import UserError
from prism_fast.keyed import seed_of
from prism_fast.synthesis.interruption import Interrupted
from prism_fast.synthesis.object_store import ObjectPath, StoreError
from tests.study.worlds import one_thread
from tests.synthesis.doubles import contents, filtered, models, run, small_config
from tests.synthesis.processes import finish, slow_doubles_in_store, start, wait_until
from tests.synthesis.s3_server import Bucket, s3_server


@pytest.fixture(scope="module")
def variables() -> Iterator[dict[str, str]]:
    """What the environment says of a server of this module's own."""
    with s3_server() as found:
        yield found


@pytest.fixture(autouse=True)
def _fresh_clients() -> Iterator[None]:
    """fsspec keeps its clients, and these what they found in the environment and what tests put into them."""
    yield
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def bucket(variables: dict[str, str]) -> Bucket:
    return Bucket()


@pytest.fixture
def there(bucket: Bucket) -> ObjectPath:
    return ObjectPath(bucket.out)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The processes started here compute with one thread, and a set belongs to a number of threads."""
    with one_thread():
        yield


@pytest.fixture
def whole(tmp_path: Path) -> dict[str, bytes]:
    """The files of an uninterrupted run into a folder."""
    run(small_config(tmp_path), tmp_path / "whole")
    return contents(tmp_path / "whole")


# Objects


def test_objects_are_written_read_and_removed(bucket: Bucket, there: ObjectPath) -> None:
    a = there / "a"
    assert (a.exists(), there.sizes(), there.check()) == (False, {}, False)
    a.write_bytes(b"1")
    a.write_bytes(b"22")
    (a / "below").write_bytes(b"")
    assert (a.exists(), a.read_bytes(), a.stat().st_size, there.check()) == (True, b"22", 2, True)
    assert (there.sizes(), [path.name for path in there.iterdir()]) == ({"a": 2}, ["a"])
    assert not there.exists()  # a prefix is no object
    (there / "c" / "d").write_bytes(b"")
    assert ((there / "c" / "d").sizes(), (there / "c" / "d").check()) == ({}, False)  # nor an object a prefix
    (there / "c" / "d").unlink()
    bucket.write("a", b"another client's")
    bucket.write("b", b"3")
    assert (a.stat().st_size, there.sizes()) == (16, {"a": 16, "b": 1})  # nothing is remembered
    assert there.read_many(["b"]) == {"b": b"3"}
    assert there.read_many(["a", "b"]) == {"a": b"another client's", "b": b"3"}
    a.unlink()
    a.unlink(missing_ok=True)
    for missing in (a.stat, a.read_bytes):
        with pytest.raises(FileNotFoundError):
            missing()


def test_a_file_without_a_name_is_uploaded_in_one_piece_or_in_parts(there: ObjectPath) -> None:
    for size in (0, 1000, 101 << 20):  # s3fs sends files of 100 MiB and more in parts
        data = random.randbytes(size)
        with tempfile.TemporaryFile() as file:
            file.write(data)
            (there / "a").upload(file)
        assert (there / "a").read_bytes() == data


def test_creating_does_not_overwrite(bucket: Bucket, there: ObjectPath, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (there / "a").create(b"1")
    assert not (there / "a").create(b"2")
    monkeypatch.setattr(ObjectPath, "exists", lambda self: False)  # another one was faster by a moment
    assert not (there / "a").create(b"3")
    assert bucket.objects() == {"a": b"1"}


def fail_creating(monkeypatch: pytest.MonkeyPatch, number: int, times: int, before: Callable[[], None]) -> None:
    """Writing on a condition fails so often; ``before`` is called at each."""
    real, calls = s3fs.S3FileSystem._pipe_file, 0

    async def pipe(self: Any, path: str, data: bytes, mode: str = "overwrite", **options: Any) -> Any:
        nonlocal calls
        calls += mode == "create"
        if mode == "create" and calls <= times:
            before()
            raise OSError(number, "not now")
        return await real(self, path, data, mode=mode, **options)

    monkeypatch.setattr(s3fs.S3FileSystem, "_pipe_file", pipe)
    monkeypatch.setattr("prism_fast.synthesis.object_store._WAIT_S", 0.0)
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_store_without_conditions_is_written_to_with_a_warning(
    bucket: Bucket, there: ObjectPath, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fail_creating(monkeypatch, errno.ENOSYS, 10, lambda: None)
    assert (there / "a").create(b"1")
    assert not (there / "a").create(b"2")
    assert bucket.objects() == {"a": b"1"} and "begin one run after the other" in caplog.text


@pytest.mark.parametrize(("times", "number"), [(3, errno.EBUSY), (4, errno.EIO), (99, errno.EBUSY), (1, errno.EINVAL)])
def test_a_busy_store_is_asked_again_and_no_other(
    bucket: Bucket, there: ObjectPath, monkeypatch: pytest.MonkeyPatch, times: int, number: int
) -> None:
    fail_creating(monkeypatch, number, times, lambda: None)
    goes_on = times in (3, 4)
    if goes_on:
        assert (there / "a").create(b"1")
    else:
        with pytest.raises(StoreError, match="not now"):
            (there / "a").create(b"1")
    assert bucket.objects() == ({"a": b"1"} if goes_on else {})


def test_a_condition_that_fails_by_another_name(
    bucket: Bucket, there: ObjectPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_creating(monkeypatch, errno.EINVAL, 1, lambda: bucket.write("a", b"theirs"))
    assert not (there / "a").create(b"ours")
    assert bucket.objects() == {"a": b"theirs"}


# Sets


def test_a_set_has_the_bytes_that_it_has_in_a_folder(
    bucket: Bucket, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()
    monkeypatch.chdir(spool)
    monkeypatch.setattr(tempfile, "tempdir", str(spool))
    report = run(small_config(tmp_path), bucket.out)
    assert bucket.objects() == whole
    assert (str(report.out), report.made, report.images) == (bucket.out, 23, 23)
    assert not list(spool.iterdir())


def test_a_filtered_set_too(bucket: Bucket, tmp_path: Path) -> None:
    run(filtered(tmp_path), tmp_path / "out")
    run(filtered(tmp_path), bucket.out)
    assert bucket.objects() == contents(tmp_path / "out")


def test_files_appear_in_order(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    for method in ("upload", "write_bytes", "create"):
        real = getattr(ObjectPath, method)

        def noted(self: ObjectPath, data: Any, real: Any = real) -> Any:
            names.append(self.name)
            return real(self, data)

        monkeypatch.setattr(ObjectPath, method, noted)
    run(small_config(tmp_path), bucket.out)
    shards = [f"shard-{shard:06d}.{kind}" for shard in range(3) for kind in ("tar", "idx", "parquet", "json")]
    assert names == ["pilot.json", "_info.json", "config.yaml", *shards, "README.md", "_info.json"]


def test_a_finished_set_is_left_alone(bucket: Bucket, tmp_path: Path) -> None:
    config = small_config(tmp_path)
    run(config, bucket.out)
    times = bucket.times()
    report = run(config, bucket.out, models(before=lambda seeds: pytest.fail("sampled again")))
    assert (report.made, report.images, report.shards) == (0, 23, 3)
    assert bucket.times() == times


@pytest.mark.parametrize("kind", ["tar", "idx", "parquet", "json"])
@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_a_damaged_shard_is_made_again(
    bucket: Bucket, whole: dict[str, bytes], tmp_path: Path, kind: str, damage: str
) -> None:
    run(small_config(tmp_path), bucket.out)
    name = f"shard-000001.{kind}"
    if damage == "gone":
        bucket.remove(name)
    else:
        bucket.write(name, whole[name][:-3])
    assert run(small_config(tmp_path), bucket.out).made == 10
    assert bucket.objects() == whole


@pytest.mark.parametrize("stop_at", [1, 3, 6])
def test_a_signal_stops_after_the_batch_and_the_same_command_continues(
    bucket: Bucket, whole: dict[str, bytes], tmp_path: Path, stop_at: int
) -> None:
    batches = 0

    def before(seeds: Sequence[int]) -> None:
        nonlocal batches
        batches += 1
        if batches == stop_at:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted, match="the same command continues"):
        run(small_config(tmp_path), bucket.out, models(before))
    published = {f"shard-{shard:06d}" for shard in range(stop_at // 3)}
    shards = {name: data for name, data in bucket.objects().items() if name.startswith("shard-")}
    assert {name.partition(".")[0] for name in shards} == published and len(shards) == 4 * len(published)
    run(small_config(tmp_path), bucket.out)
    assert bucket.objects() == whole


def test_a_pilot_that_was_stopped_is_continued(bucket: Bucket, whole: dict[str, bytes], tmp_path: Path) -> None:
    made = models()
    make, calls = made.make_sampler, 0

    def stopping(config: Any, gate: Any) -> Any:
        sampler = make(config, gate)

        def before(seeds: Sequence[int]) -> None:
            nonlocal calls
            calls += 1
            if config.guidance is None and calls == 1:
                signal.raise_signal(signal.SIGTERM)

        sampler.before = before  # type: ignore[attr-defined]
        return sampler

    object.__setattr__(made, "make_sampler", stopping)
    with pytest.raises(Interrupted):
        run(small_config(tmp_path), bucket.out, made)
    assert list(bucket.objects()) == [".pilot-partial.json"]
    run(small_config(tmp_path), bucket.out, made)
    assert bucket.objects() == whole


@pytest.mark.parametrize("fails_at", [1, 2, 5])
def test_a_store_that_fails_ends_in_one_message_and_no_half_shard(
    bucket: Bucket, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    real, calls = ObjectPath.upload, 0

    def upload(self: ObjectPath, file: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == fails_at:
            raise StoreError(errno.EIO, "the network is down", str(self))
        real(self, file)

    with monkeypatch.context() as patch:
        patch.setattr(ObjectPath, "upload", upload)
        with pytest.raises(UserError, match=r"the network is down.*the same command continues"):
            run(small_config(tmp_path), bucket.out)
    published = [name for name in bucket.objects() if name.startswith("shard-") and name.endswith(".json")]
    assert published == [f"shard-{shard:06d}.json" for shard in range((fails_at - 1) // 3)]
    run(small_config(tmp_path), bucket.out)
    assert bucket.objects() == whole


def test_a_store_that_does_not_answer_a_reader_ends_in_one_message(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(small_config(tmp_path), bucket.out)
    before = bucket.times()

    async def refused(self: Any, path: str, **options: Any) -> None:
        raise PermissionError(errno.EACCES, "Access Denied")

    monkeypatch.setattr(s3fs.S3FileSystem, "_cat_file", refused)
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(UserError, match=r"Access Denied.*_info\.json.*the same command continues"):
        run(small_config(tmp_path), bucket.out)
    assert bucket.times() == before


# What is refused


def test_another_configuration_is_refused_and_nothing_is_touched(bucket: Bucket, tmp_path: Path) -> None:
    run(small_config(tmp_path), bucket.out)
    before = bucket.times()
    with pytest.raises(UserError, match="another configuration: seed is 0 there, 1 here"):
        run(small_config(tmp_path, seed=1), bucket.out)
    assert bucket.times() == before


@pytest.mark.parametrize("conditional", [True, False])
def test_of_two_that_claim_a_place_at_once_one_is_refused(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, conditional: bool
) -> None:
    """Another run's ``_info.json`` arrives between our look and our write, or right behind our write."""
    run(small_config(tmp_path, seed=1), bucket.out)
    theirs = bucket.read("_info.json")
    for name in bucket.objects():
        bucket.remove(name)
    if not conditional:
        fail_creating(monkeypatch, errno.ENOSYS, 99, lambda: None)
    real = ObjectPath.create

    def create(self: ObjectPath, data: bytes) -> bool:
        if self.name != "_info.json":
            return real(self, data)
        if conditional:
            bucket.write("_info.json", theirs)
            with monkeypatch.context() as patch:
                patch.setattr(ObjectPath, "exists", lambda self: False)
                assert not real(self, data)
            return False
        assert real(self, data)
        bucket.write("_info.json", theirs)
        return True

    monkeypatch.setattr(ObjectPath, "create", create)
    with pytest.raises(UserError, match="another configuration: seed is 1 there, 0 here"):
        run(small_config(tmp_path), bucket.out)
    assert not [name for name in bucket.objects() if name.startswith("shard-")]


@pytest.mark.parametrize("name", ["shard-000000.tar", "shard-000007.json", "config.yaml"])
def test_a_place_of_something_else_is_refused(bucket: Bucket, tmp_path: Path, name: str) -> None:
    bucket.write(name, b"mine")
    with pytest.raises(UserError, match=f"holds {name} of something else"):
        run(small_config(tmp_path), bucket.out)
    assert bucket.objects() == {name: b"mine"}


def test_other_objects_are_no_hindrance(bucket: Bucket, tmp_path: Path, whole: dict[str, bytes]) -> None:
    bucket.write("notes.txt", b"mine")
    run(small_config(tmp_path), bucket.out)
    assert bucket.objects() == {**whole, "notes.txt": b"mine"}


def test_what_a_store_lacks_is_named(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"no bucket 'nobody-s'.*make the bucket first"):
        run(small_config(tmp_path), "s3://nobody-s/a")
    s3fs.S3FileSystem.clear_instance_cache()
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        patch.setattr(s3fs.S3FileSystem, "retries", 1)
        with pytest.raises(UserError, match=r"cannot be the folder.*Could not connect.*s3fs finds"):
            run(small_config(tmp_path), bucket.out)
    s3fs.S3FileSystem.clear_instance_cache()
    with monkeypatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.delenv(name)
        with pytest.raises(UserError, match=r"cannot be the folder.*credentials.*s3fs finds"):
            run(small_config(tmp_path), bucket.out)
    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UserError, match=r"needs the package gcsfs: pip install 'prism_fast\[gcs\]'"):
        run(small_config(tmp_path), "gs://bucket/a")


# What runs survive


def lines(log: Path) -> list[int]:
    return [int(line) for line in log.read_text().splitlines()] if log.exists() else []


def test_killed_at_random_moments_and_continued(
    bucket: Bucket, variables: dict[str, str], whole: dict[str, bytes], tmp_path: Path, seed: int
) -> None:
    log, source, killed = tmp_path / "log", random.Random(seed), 0
    for _ in range(4):
        before = len(lines(log))
        process = start(slow_doubles_in_store, variables, tmp_path, bucket.out, log, 0.1)
        wait_until(lambda before=before: len(lines(log)) > before, process)
        time.sleep(source.uniform(0, 0.4))
        process.kill()
        process.join()
        killed += process.exitcode == -9
        found = bucket.objects()
        for name in found:  # what is published is final, and what is there is whole
            assert name in (".pilot-partial.json", "_info.json") or found[name] == whole[name]
    assert killed
    finish(start(slow_doubles_in_store, variables, tmp_path, bucket.out, log, 0.0))
    assert bucket.objects() == whole
    assert set(lines(log)) == {seed_of(0, index, 0) for index in range(23)}


def test_two_runs_at_one_place_make_the_set(
    bucket: Bucket, variables: dict[str, str], whole: dict[str, bytes], tmp_path: Path
) -> None:
    """Nobody can lock anything there: a row may be made twice, and nothing is wrong with that."""
    log = tmp_path / "log"
    for process in [start(slow_doubles_in_store, variables, tmp_path, bucket.out, log, 0.05) for _ in range(2)]:
        finish(process)
    assert bucket.objects() == whole
    counts = Counter(lines(log))
    assert set(counts) == {seed_of(0, index, 0) for index in range(23)} and max(counts.values()) <= 2
