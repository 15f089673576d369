"""Sets as large as ImageNet: planning, starting on many shards; and a clock that goes backwards."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path

import pytest

from prism_fast.progress import PlainLines, progress
from prism_fast.prompts import build_prompts, load_vocabulary
from prism_fast.prompts.prompt_config import PromptConfig
from prism_fast.sampling.config import SamplerConfig
from prism_fast.synthesis.config import SynthesisConfig
from prism_fast.synthesis.plan import Plan
from prism_fast.synthesis.shards import SHARD_FILES, shard_name
from tests.synthesis.doubles import contents, run, small_config


def test_a_plan_of_imagenets_size_is_quick_and_small(tmp_path: Path) -> None:
    import tracemalloc

    (tmp_path / "classes.json").write_text(json.dumps([f"thing number {c}" for c in range(1000)]))
    config = SynthesisConfig(
        vocabulary=str(tmp_path / "classes.json"), images=1_281_167, prompts=PromptConfig(per_class=20)
    )
    vocabulary = load_vocabulary(config.vocabulary)
    prompts = build_prompts(vocabulary, config.prompts)
    tracemalloc.start()
    try:
        begin = time.process_time()
        plan = Plan(config, vocabulary, prompts)
        rows = [row for shard in (0, 1281, 2562) for row in plan.rows(shard)]
        seconds = time.process_time() - begin
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (len(plan), len(plan.shards), plan.counts[0], plan.counts[-1]) == (1_281_167, 2563, 1282, 1281)
    assert rows[-1].index == 1_281_166 and rows[-1].class_index == 166
    assert seconds < 5.0 and most < 64 * 2**20


def test_a_folder_of_ten_thousand_shards_is_read_in_seconds(tmp_path: Path) -> None:
    """Statistics of shards that nobody made: as small as they can be, with files of the sizes that they tell."""
    shards = 10_000
    config = small_config(tmp_path, images=shards, shard_size=1, sampler=SamplerConfig(steps=4, compute_batch=4))
    out = tmp_path / "out"
    stopped = small_config(tmp_path, images=1, shard_size=1, sampler=config.sampler)
    run(stopped, tmp_path / "one")
    one = json.loads((tmp_path / "one/shard-000000.json").read_text())
    with pytest.raises(_Claimed):
        run(config, out, engine=_claim_only)
    config_hash = json.loads((out / "_info.json").read_text())["config_hash"]
    for shard in range(shards):
        files = {kind: {**facts, "name": shard_name(shard, kind), "bytes": 0} for kind, facts in one["files"].items()}
        stats = {**one, "config_hash": config_hash, "shard": shard, "first_row": shard, "files": files}
        for kind in SHARD_FILES[:-1]:
            (out / shard_name(shard, kind)).touch()
        (out / shard_name(shard, "json")).write_text(json.dumps(stats))
    begin = time.process_time()
    report = run(config, out)
    seconds = time.process_time() - begin
    assert (report.made, report.images, report.shards) == (0, shards, shards)
    assert seconds < 15.0
    assert json.loads((out / "_info.json").read_text())["complete"]


class _Claimed(Exception):
    pass


def _claim_only(_work: object) -> None:
    raise _Claimed


def test_a_clock_that_goes_backwards_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(small_config(tmp_path), tmp_path / "whole")
    hours = iter(range(10**9, 0, -3600))
    asked = []

    def backwards() -> float:
        asked.append(next(hours))
        return float(asked[-1])

    for name in ("time", "time_ns"):
        monkeypatch.setattr(time, name, backwards)
    report = run(small_config(tmp_path), tmp_path / "out", progress=progress)
    assert 0 < report.seconds < 100 and report.images_per_second > 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    stream = io.StringIO()
    lines = PlainLines(stream, 10, "images", "")
    lines.update(5)
    lines.close(True)
    assert "took 0:0" in stream.getvalue() and "-" not in stream.getvalue()
