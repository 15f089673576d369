"""The generator's world: captions say what is shown, shares are what they claim to be."""

from __future__ import annotations

import numpy as np
import pytest

from prism_fast.zoo import world
from prism_fast.zoo.fashion_captions import ATTRIBUTES, GLOSSES, NAMES, OTHER_SENSES, STYLES
from prism_fast.zoo.splits import PATH, SIZES, write_splits


@pytest.fixture
def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def blobs(n: int, rng: np.random.Generator) -> world.Array:
    """Rectangles of random size and brightness: enough of a garment to be measured."""
    images = np.zeros((n, 32, 32), dtype=np.float32)
    for image in images:
        h, w = rng.integers(8, 28, 2)
        y, x = rng.integers(2, 30 - h), rng.integers(2, 30 - w)
        image[y : y + h, x : x + w] = rng.uniform(0.2, 0.9)
    return images


def test_splits_partition_the_training_images(tmp_path):
    with np.load(PATH, allow_pickle=False) as splits:
        parts = {name: splits[name].astype(int) for name in splits.files}
    assert {name: len(part) for name, part in parts.items()} == SIZES
    assert np.array_equal(np.sort(np.concatenate(list(parts.values()))), np.arange(60_000))
    write_splits(tmp_path / "splits.npz")
    with np.load(tmp_path / "splits.npz", allow_pickle=False) as again:
        assert all(np.array_equal(again[name], part) for name, part in parts.items())


def test_levels_split_each_class_evenly(rng):
    images, labels = blobs(600, rng), rng.integers(0, 2, 600)
    levels = world.levels(world.measure(images), labels)
    for label in (0, 1):
        share = np.bincount(levels[labels == label, 0], minlength=3) / (labels == label).sum()
        assert np.all(share > 0.25), share
    brightness = world.measure(images)["brightness"]
    assert brightness[levels[:, 0] == 0].mean() < brightness[levels[:, 0] == 2].mean()


def test_width_is_the_share_of_columns_touched():
    image = np.zeros((1, 32, 32), dtype=np.float32)
    image[0, 4:20, 8:24] = 0.5
    measures = world.measure(image)
    assert measures["width"][0] == 0.5
    assert measures["brightness"][0] == pytest.approx(0.5)


def test_head_cluster_gets_its_weight(rng):
    labels = rng.integers(0, 10, 3000)
    levels = np.stack([rng.integers(0, len(words), 3000) for words in ATTRIBUTES.values()], axis=1)
    config = world.WorldConfig(head_weight=0.7)
    weights = world.sampling_weights(levels, labels, config)
    assert weights.sum() == pytest.approx(1)
    for label in range(10):
        rows = np.flatnonzero(labels == label)
        head = rows[world.head_cluster(levels[rows], config)]
        assert weights[rows].sum() == pytest.approx(0.1)
        assert weights[head].sum() == pytest.approx(0.07)


def test_a_bare_homonym_shows_its_other_sense_as_often_as_configured(rng):
    """Counted over drawn captions: of all bare 'boot' captions the configured share belongs to distractors."""
    config = world.WorldConfig()
    n = 40_000
    distractor = rng.random(n) < config.distractors
    share = world.homonym_share(config, len(NAMES)) / config.distractors
    level = np.zeros(3, dtype=np.int64)
    garment = other = 0
    for is_distractor in distractor:
        if is_distractor:
            other += rng.random() < share and world.distractor_caption("boot", config, rng) == "boot"
        else:
            label = int(rng.integers(10))
            garment += world.garment_caption(label, level, 0, config, rng) == "boot"
    expected, drawn = config.other_sense, other / (other + garment)
    assert abs(drawn - expected) < 4 * np.sqrt(expected * (1 - expected) / (other + garment))


def test_captions_use_only_known_words_and_name_the_class(rng):
    from prism_fast.zoo.networks import caption_words

    known = set(caption_words())
    config = world.WorldConfig(drop=0.0)
    for _ in range(300):
        label = int(rng.integers(10))
        level = np.array([rng.integers(len(words)) for words in ATTRIBUTES.values()])
        text = world.garment_caption(label, level, int(rng.integers(4)), config, rng)
        assert set(text.replace(",", "").split()) <= known
        assert NAMES[label] in text.split(",")[0].split()


def test_renderings(rng):
    images = blobs(8, rng)
    order = list(STYLES)
    for style in order:
        seen = world.render(images, np.full(8, order.index(style)))
        assert seen.min() >= 0 and seen.max() <= 1
        if style == "photo":
            assert np.array_equal(seen, images)
        if style == "inverted":
            assert np.allclose(seen + images, 1)
        if style == "edges":  # an edge image of one garment must not depend on its neighbours in the batch
            alone = world.render(images[3:4], np.array([order.index(style)]))
            assert np.allclose(seen[3:4], alone)
            assert seen[:, 0, 0].max() < 0.01


def test_identity_warp_and_exposure_change_nothing(rng):
    images = blobs(4, rng)
    same = world.warp(images, np.zeros(4), np.ones(4))
    assert np.allclose(same, images, atol=1e-6)
    assert np.allclose(world.expose(images, np.ones(4), np.zeros(4)), images)


def test_glosses_are_distinct_and_every_homonym_is_a_class():
    assert len(set(GLOSSES)) == len(GLOSSES) == len(NAMES)
    assert set(OTHER_SENSES) <= set(NAMES)
