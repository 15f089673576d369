"""Several workers that publish to an object store: the same bytes as one process in a folder."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import s3fs

from prism_fast.engine.processes import Processes
from prism_fast.errors import UserError
from prism_fast.synthesis.part import Part
from tests.engine.runs import BLACK, Count, filtered_in, filtered_set, same
from tests.study.worlds import one_thread
from tests.synthesis import doubles
from tests.synthesis.doubles import darkened, models, run
from tests.synthesis.s3_server import Bucket, s3_server


@pytest.fixture(scope="module", autouse=True)
def _server() -> Iterator[None]:
    with s3_server(), one_thread():
        yield


@pytest.fixture(autouse=True)
def _fresh_clients() -> Iterator[None]:
    yield
    s3fs.S3FileSystem.clear_instance_cache()


def test_parts_make_the_set(tmp_path: Path) -> None:
    bucket, alone = Bucket(), filtered_set(tmp_path)
    for number in (2, 0, 1):
        run(filtered_in(tmp_path), bucket.out, models(spoil=darkened(BLACK)), part=Part(number=number, of=3))
    assert bucket.objects() == alone


@pytest.mark.slow
def test_processes_make_the_set(tmp_path: Path) -> None:
    bucket, alone, bar = Bucket(), filtered_set(tmp_path), Count()
    load = partial(doubles.load, black=BLACK)
    report = run(filtered_in(tmp_path), bucket.out, engine=Processes(workers=2), load=load, progress=bar)
    assert same(bucket.objects(), alone)
    assert (report.made, bar.rows, str(report.out)) == (23, 23, bucket.out)


@pytest.mark.slow
def test_actors_make_the_set(tmp_path: Path) -> None:
    ray = pytest.importorskip("ray", reason="Ray is not installed (extra ray)")
    from prism_fast.engine.ray import Cluster

    if ray.is_initialized():
        ray.shutdown()  # its workers do not know the server
    bucket, alone, bar = Bucket(), filtered_set(tmp_path), Count()
    load = partial(doubles.load, black=BLACK)
    report = run(filtered_in(tmp_path), bucket.out, engine=Cluster(workers=2), load=load, progress=bar)
    assert same(bucket.objects(), alone)
    assert (report.made, bar.rows) == (23, 23)


@pytest.mark.slow
def test_a_worker_that_the_store_refuses_ends_the_run_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = Bucket()

    class Elsewhere(Processes):
        def __call__(self, work: object) -> None:
            monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # what the workers will find
            super().__call__(work)  # type: ignore[arg-type]

    with pytest.raises(UserError, match=r"cannot be the folder of the images.*s3fs finds of credentials and endpoint"):
        run(filtered_in(tmp_path), bucket.out, engine=Elsewhere(workers=1))
    assert not [name for name in bucket.objects() if name.startswith("shard-")]
