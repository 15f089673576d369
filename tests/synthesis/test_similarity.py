"""Variations that are unlike their sources are drawn again, counted with their own reason."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from prism_fast.keyed import seed_of
from prism_fast.sampling.image_to_image import source_images
from prism_fast.sampling.image_to_image_config import ImageToImageConfig
from prism_fast.synthesis.config import SynthesisConfig, identity
from prism_fast.synthesis.filter_config import FLAT, UNLIKE_SOURCE, FilterConfig
from prism_fast.synthesis.filtering import Filter
from prism_fast.synthesis.models import Models
from prism_fast.synthesis.similarity import Similarity
from tests.sampling.sources import MemorySources
from tests.synthesis.doubles import CLASSES, PLAIN, SIZE, SeedSampler, contents, filtered, models, run
from tests.synthesis.test_filtering import labels_of, noise, tables

VARIED = replace(PLAIN, image_to_image=ImageToImageConfig(source="x", strengths=(0.5, 0.75)))


class Colours:
    """An embedding: the mean of each colour, around grey."""

    fingerprint = "colours"

    def __init__(self) -> None:
        self.shapes: set[tuple[int, ...]] = set()

    def features(self, images: torch.Tensor) -> torch.Tensor:
        self.shapes.add(tuple(images.shape))
        return images.mean((2, 3)) - 0.3


def _sources(seed: int) -> MemorySources:
    return MemorySources(seed, size=(SIZE, SIZE), classes=len(CLASSES))


def test_cosines_are_each_images_own(seed: int) -> None:
    sources, colours = _sources(seed), Colours()
    images, classes, seeds = noise(seed, 5), [0, 1, 2, 1, 0], [seed + row for row in range(5)]
    measure = Similarity(colours, sources, 8)
    found = measure(images, classes, seeds)
    shown = source_images(sources, classes, seeds, (SIZE, SIZE))
    expected = torch.cosine_similarity(images.double().div(255).mean((2, 3)) - 0.3, shown.double().mean((2, 3)) - 0.3)
    assert torch.allclose(torch.tensor(found), expected.float(), atol=1e-5)
    assert measure(images[3:4], classes[3:4], seeds[3:4]) == found[3:4] and colours.shapes == {(8, 3, SIZE, SIZE)}
    itself = (shown[:1] * 255).round().to(torch.uint8)
    assert measure(itself, classes[:1], seeds[:1]) == [1.0]


def test_unlike_images_are_rejected_last(seed: int) -> None:
    images = noise(seed, 4)
    images[1] = 7
    labels, keep = labels_of(energy=[0.0] * 4), Filter(config=FilterConfig(min_cosine=0.5))
    finite = torch.ones(4, dtype=torch.bool)
    found = keep.reasons(images, finite, [0] * 4, labels, [0.5, 0.0, 0.499, float("nan")])
    assert found == ["", FLAT, UNLIKE_SOURCE, UNLIKE_SOURCE]
    assert Filter(config=FilterConfig()).reasons(images, finite, [0] * 4, labels) == ["", FLAT, "", ""]


def _config(folder: Path, least: float | None) -> SynthesisConfig:
    return filtered(folder, sampler=VARIED, filter=FilterConfig(attempts=3, max_rejected=1.0, min_cosine=least))


def _models(seed: int, embedding: Colours | None) -> Models:
    return replace(models(), sources=_sources(seed), embedding=embedding)


def test_rejected_variations_are_drawn_again_and_counted(tmp_path: Path, seed: int) -> None:
    config = _config(tmp_path / "v", 0.2)
    sampler, measure = SeedSampler(config.sampler, None), Similarity(Colours(), _sources(seed), 4)

    def cosine(index: int, attempt: int) -> float:
        row, own = index % 3, seed_of(0, index, attempt)
        image = sampler.sample([rows[index]["prompt"]], [row], [own]).images
        return measure(image, [row], [own])[0]

    report = run(config, tmp_path / "set", _models(seed, Colours()))
    rows = {row["index"]: row for row in tables(tmp_path / "set")}
    expected, redrawn = Counter[str](), Counter[str]()
    for index, row in rows.items():
        kept = next((attempt for attempt in range(3) if cosine(index, attempt) >= 0.2), None)
        assert row["accepted"] is (kept is not None) and row["attempt"] == (2 if kept is None else kept)
        assert row["reason"] == ("" if row["accepted"] else UNLIKE_SOURCE)
        redrawn[UNLIKE_SOURCE] += row["attempt"]
        expected[UNLIKE_SOURCE] += kept is None
    assert report.rejected == dict(+expected) and report.redrawn == dict(+redrawn)
    stats = [json.loads(path.read_text()) for path in sorted((tmp_path / "set").glob("shard-*.json"))]
    assert sum((Counter(each["redrawn"]) for each in stats), Counter()) == +redrawn
    run(config, tmp_path / "again", _models(seed, Colours()))
    assert contents(tmp_path / "again") == contents(tmp_path / "set")


def test_what_compares_is_in_the_hash_and_what_it_is_called_is_not(tmp_path: Path, seed: int) -> None:
    config = _config(tmp_path / "v", 0.1)
    other = replace(config, filter=replace(config.filter, embedding="elsewhere"))
    assert identity(config) == identity(other) and "embedding" not in identity(config)["filter"]
    assert "min_cosine" not in identity(_config(tmp_path / "v", None))["filter"]
    run(config, tmp_path / "set", _models(seed, Colours()))
    made_from = json.loads((tmp_path / "set" / "_info.json").read_text())["made_from"]
    assert made_from["embedding"] == "colours" and made_from["sources"] == "memory"
    run(_config(tmp_path / "v", None), tmp_path / "without", _models(seed, None))
    assert "embedding" not in json.loads((tmp_path / "without" / "_info.json").read_text())["made_from"]


def test_there_is_nothing_to_compare_with_without_sources() -> None:
    with pytest.raises(ValueError, match=r"filter\.min_cosine .* needs sampler\.image_to_image"):
        SynthesisConfig(filter=FilterConfig(min_cosine=0.1))
    for value in (-1.1, 2.0, float("nan")):
        with pytest.raises(ValueError, match=r"filter\.min_cosine must be"):
            FilterConfig(min_cosine=value)
    with pytest.raises(ValueError, match=r"filter\.embedding"):
        FilterConfig(embedding="")
