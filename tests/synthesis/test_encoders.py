"""Which libraries wrote a set's files is part of what it remembers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import PIL
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import features

from prism_fast.errors import UserError
from prism_fast.progress import silent
from prism_fast.synthesis import job
from prism_fast.synthesis.encoders import ENCODERS, encoder_versions
from prism_fast.synthesis.images import IMAGE_FORMATS, ImageFormat
from prism_fast.verification.repair import repair
from prism_fast.verification.run import verify
from tests.synthesis.doubles import contents, models, run, small_config


@pytest.mark.parametrize("kind", IMAGE_FORMATS)
def test_versions_are_those_of_the_libraries(kind: ImageFormat) -> None:
    found = encoder_versions(kind)
    assert tuple(found) == ENCODERS
    assert (found["pillow"], found["pyarrow"]) == (PIL.__version__, pa.__version__)
    name, version = found["codec"].split()
    assert re.match(r"\d", version) and version == features.version(name)
    assert name in {"png": ("zlib", "zlib_ng"), "webp": ("webp",), "jpg": ("jpg", "libjpeg_turbo")}[kind]


def test_a_table_names_who_wrote_it(tmp_path: Path) -> None:
    """So its bytes change with every release of pyarrow."""
    run(small_config(tmp_path), tmp_path / "out")
    writer = pq.read_metadata(tmp_path / "out/shard-000000.parquet").created_by
    assert encoder_versions("png")["pyarrow"] in writer


def other(name: str) -> Callable[[ImageFormat], dict[str, str]]:
    return lambda kind: {**encoder_versions(kind), name: "9.9"}


@pytest.mark.parametrize("name", ENCODERS)
def test_other_versions_neither_continue_nor_repair_a_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    config, out = small_config(tmp_path), tmp_path / "out"
    run(config, out)
    (out / "shard-000001.tar").write_bytes(b"damaged")
    before, found = contents(out), verify(out, progress=silent)
    message = rf"another environment: {name} is .* there, 9\.9 here"
    with monkeypatch.context() as patch:
        patch.setattr(job, "encoder_versions", other(name))
        with pytest.raises(UserError, match=message):
            run(config, out)
        with pytest.raises(UserError, match=message):
            repair(found, progress=silent, models=models())
    assert contents(out) == before
    assert repair(found, progress=silent, models=models()).after.sound


def test_a_set_from_before_goes_on(tmp_path: Path) -> None:
    config, out = small_config(tmp_path), tmp_path / "out"
    run(config, out)
    whole = contents(out)
    info = json.loads((out / "_info.json").read_text())
    for name in ENCODERS:
        del info["environment"][name]
    (out / "_info.json").write_text(json.dumps({**info, "complete": False, "splits": {}}))
    (out / "shard-000001.json").unlink()
    assert run(config, out).made == 10
    assert {**contents(out), "_info.json": b""} == {**whole, "_info.json": b""}
    assert not set(ENCODERS) & set(json.loads((out / "_info.json").read_text())["environment"])
