"""Both loaders: the same images with the same labels in the same views, from any step on, whatever is damaged."""

from __future__ import annotations

import logging
import multiprocessing.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prism_fast.data.augment import draw_views, make_view
from prism_fast.data.augment_config import AugmentConfig
from prism_fast.data.choice import choose_loader, dali_is_installed
from prism_fast.data.loader import LoadedBatch, ShardLoader
from prism_fast.data.loader_config import LoaderConfig
from prism_fast.data.shards import ShardSet
from prism_fast.errors import UserError
from prism_fast.synthesis.images import IMAGE_FORMATS, ImageFormat
from tests.data.sets import LOADERS, NO_DALI, label_of, logits_of, row_of, write_set
from tests.distill.lives import ended, fork

CPU = torch.device("cpu")
BOTH = ("torch", "dali")
WHOLE = AugmentConfig(pad=0, flip=0.0)
CROPS = AugmentConfig(pad=0, flip=0.5, crop_scale=0.3)


@contextmanager
def loading(folder: Path, name: str, augment: AugmentConfig = CROPS, **changes: Any) -> Iterator[ShardLoader]:
    options = {key: changes.pop(key) for key in ("crop_size", "workers", "window", "max_corrupt") if key in changes}
    fields = {"batch": 8, "seed": 5, "device": CPU, **changes}
    loader = ShardLoader(ShardSet(folder), augment, LoaderConfig(**{"workers": 1, **options}), name=name, **fields)
    try:
        yield loader
    finally:
        loader.close()


def take(folder: Path, name: str, count: int, *arguments: Any, **changes: Any) -> list[LoadedBatch]:
    with loading(folder, name, *arguments, **changes) as loader:
        return [loader.load() for _ in range(count)]


def check_pairing(batch: LoadedBatch) -> None:
    """Colours, rows and labels of a batch of plain images belong together."""
    rows = batch.rows.tolist()
    assert [row_of(mean) for mean in batch.images.mean((2, 3)).tolist()] == rows
    assert batch.labels.tolist() == [label_of(row) for row in rows]
    if batch.logits is not None:
        assert torch.equal(batch.logits, torch.tensor(np.stack([logits_of(row) for row in rows])).float())


@pytest.mark.skipif(not dali_is_installed(), reason=NO_DALI)
@pytest.mark.parametrize("kind", IMAGE_FORMATS)
def test_labels_belong_to_images_and_both_loaders_agree(tmp_path: Path, kind: ImageFormat, seed: int) -> None:
    folder = write_set(tmp_path, (13, 9, 17), kind=kind)
    ours, theirs = (take(folder, name, 11, crop_size=16, seed=seed, window=2) for name in BOTH)
    for one, other in zip(ours, theirs, strict=True):
        check_pairing(one)
        check_pairing(other)
        assert torch.equal(one.rows, other.rows) and torch.equal(one.boxes, other.boxes) and one.view == other.view
        assert one.images.shape == (8, 3, 16, 16) and one.images.dtype == torch.float32
    assert len({int(row) for batch in ours[:4] for row in batch.rows}) == 32  # of an epoch of 39


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", LOADERS)
def test_stored_logits_come_with_their_images(tmp_path: Path, name: str, workers: int) -> None:
    folder = write_set(tmp_path, (13, 9))
    for batch in take(folder, name, 5, AugmentConfig(pad=0), stored=True, workers=workers):
        assert batch.logits is not None and batch.logits.dtype == torch.float32
        check_pairing(batch)


@pytest.mark.parametrize("name", LOADERS)
def test_the_largest_logits_alone_are_read_too(tmp_path: Path, name: str) -> None:
    shards = ShardSet(write_set(tmp_path, (13, 9), top_k=3))
    for batch in take(tmp_path, name, 3, WHOLE, stored=True):
        assert batch.logits is not None
        assert torch.equal(batch.logits, torch.stack([shards.sample(row)[2] for row in batch.rows.tolist()]))


def smooth(row: int) -> np.ndarray:
    """A picture with detail of many sizes, as decoders and resampling see in photos."""
    from scipy.ndimage import zoom

    rng = np.random.default_rng(row)
    layers = [
        zoom(rng.random((n, n, 3)), (128 / n, 128 / n, 1), order=1) / (2 + level) for level, n in enumerate((4, 16, 64))
    ]
    total = sum(layers)
    return np.clip(255 * (total - total.min()) / np.ptp(total), 0, 255).astype(np.uint8)


@pytest.mark.skipif(not dali_is_installed(), reason=NO_DALI)
def test_both_loaders_give_the_same_statistics(tmp_path: Path, seed: int) -> None:
    """Decoders round differently: a grey level here and there, and no bias."""
    folder = write_set(tmp_path, (16, 16), picture=smooth)
    augment = AugmentConfig(pad=2, flip=0.5, crop_scale=0.2, jitter=0.4, mixup=0.3, cutmix=1.0)
    ours, theirs = (
        torch.cat([batch.images for batch in take(folder, name, 8, augment, crop_size=48, seed=seed)]) for name in BOTH
    )
    difference = 255 * (ours - theirs)
    assert difference.abs().mean() < 0.5 and difference.mean().abs() < 0.1
    assert torch.allclose(ours.mean((0, 2, 3)), theirs.mean((0, 2, 3)), atol=1e-3)
    assert torch.allclose(ours.std((0, 2, 3)), theirs.std((0, 2, 3)), atol=1e-3)
    assert torch.allclose(ours.std((1, 2, 3)), theirs.std((1, 2, 3)), atol=0.01)
    assert ours.std() > 0.1


def ramp(row: int) -> np.ndarray:
    """Red grows from left to right, green from top to bottom."""
    y, x = np.meshgrid(np.linspace(0, 255, 120), np.linspace(0, 255, 160), indexing="ij")
    return np.stack([x, y, np.full_like(x, row)], 2).round().astype(np.uint8)


@pytest.mark.parametrize("name", LOADERS)
def test_crop_parameters_are_those_of_the_crop(tmp_path: Path, name: str, seed: int) -> None:
    folder = write_set(tmp_path, (16,), kind="png", picture=ramp)
    augment = AugmentConfig(pad=0, flip=0.5, crop_scale=0.2)
    for batch in take(folder, name, 4, augment, crop_size=24, seed=seed):
        flip = draw_views(augment, 16, seed, batch.view).flip[batch.rows]
        top, left, height, width = batch.boxes.T
        red, green = batch.images.mean((2, 3)).T[:2]
        assert torch.allclose(red, left + width / 2, atol=0.015)
        assert torch.allclose(green, top + height / 2, atol=0.015)
        falling = batch.images[:, 0, :, 0].mean(1) > batch.images[:, 0, :, -1].mean(1)
        assert torch.equal(falling, flip)


@pytest.mark.parametrize("name", LOADERS)
def test_a_position_is_taken_up_exactly(tmp_path: Path, name: str, seed: int) -> None:
    folder = write_set(tmp_path, (13, 9, 17), picture=smooth, damage={20: lambda data: data[:50]})
    augment = AugmentConfig(pad=1, crop_scale=0.3, jitter=0.2, mixup=0.5)
    options = {"crop_size": 16, "seed": seed, "max_corrupt": 0.1, "batch": 13}  # three steps read all of it
    whole = take(folder, name, 9, augment, **options)
    with loading(folder, name, augment, **options) as first:
        for _ in range(6):
            first.load()
        state = first.state()
    with loading(folder, name, augment, **options) as second:
        second.load()
        second.restore(state)
        assert second.corrupt.rows == {20}
        rest = [second.load() for _ in range(3)]
        assert torch.equal(second.load(2).images, whole[2].images)
    for one, other in zip(whole[6:], rest, strict=True):
        assert torch.equal(one.images, other.images) and torch.equal(one.rows, other.rows)
        assert torch.equal(one.labels, other.labels)


@pytest.mark.parametrize("name", LOADERS)
def test_global_random_state_is_left_alone(tmp_path: Path, name: str) -> None:
    folder = write_set(tmp_path, (8,))
    before = torch.get_rng_state()
    take(folder, name, 2, AugmentConfig(mixup=0.5))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", LOADERS)
def test_a_program_that_closes_nothing_ends(tmp_path: Path, name: str) -> None:
    folder = write_set(tmp_path, (8,))

    def life() -> None:
        loader = ShardLoader(ShardSet(folder), CROPS, LoaderConfig(workers=2), name=name, batch=8, seed=0, device=CPU)
        loader.load()
        multiprocessing.util._exit_function()  # type: ignore[attr-defined]  # as Python's end does

    assert ended(fork(life), 30.0) == 0


@pytest.mark.parametrize("name", LOADERS)
def test_ranks_read_different_images_and_equally_many(tmp_path: Path, name: str) -> None:
    folder = write_set(tmp_path, (13, 9, 17))
    rows = []
    for rank in range(2):
        with loading(folder, name, batch=4, rank=rank, ranks=2) as loader:
            assert loader.steps_per_epoch == 4
            rows.append({row for _ in range(4) for row in loader.load().rows.tolist()})
    assert len(rows[0]) == len(rows[1]) == 16 and not rows[0] & rows[1]


# Damage


def _cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _end(data: bytes) -> bytes:
    """DALI fills what is missing with grey."""
    return data[:-3]


def _zeros(data: bytes) -> bytes:
    return bytes(len(data))


@pytest.mark.parametrize("kind", ["jpg", "png"])
@pytest.mark.parametrize("damage", [_cut, _end, _zeros])
@pytest.mark.parametrize("name", LOADERS)
def test_a_corrupt_image_in_the_middle_of_a_shard_misaligns_nothing(
    tmp_path: Path, name: str, damage: Callable[[bytes], bytes], kind: ImageFormat, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_set(tmp_path, (13, 9, 17), kind=kind, damage={6: damage, 17: damage})
    sound = write_set(tmp_path / "sound", (13, 9, 17), kind=kind)
    with caplog.at_level(logging.WARNING), loading(folder, name, WHOLE, stored=True, max_corrupt=0.1) as loader:
        batches = [loader.load() for _ in range(10)]
        assert loader.corrupt.rows == {6, 17}
    named = [message for message in caplog.messages if "another image takes its place" in message]
    assert len(named) == 2 and any("shard-000001.tar: its image number 4" in message for message in named)
    for batch, expected in zip(batches, take(sound, name, 10, WHOLE, stored=True), strict=True):
        check_pairing(batch)
        good = (expected.rows != 6) & (expected.rows != 17)
        assert torch.equal(batch.rows[good], expected.rows[good])
        assert torch.equal(batch.images[good], expected.images[good])
        assert not {6, 17} & set(batch.rows.tolist())


@pytest.mark.parametrize("name", LOADERS)
def test_too_many_corrupt_images_are_fatal(tmp_path: Path, name: str) -> None:
    folder = write_set(tmp_path, (13, 9), damage=dict.fromkeys((2, 7, 15), _zeros))
    with pytest.raises(
        UserError, match=r"3 of 22 images cannot be decoded, more than max_corrupt 0.1; the last: .*tar"
    ):
        take(folder, name, 8, max_corrupt=0.1)


@pytest.mark.parametrize("name", LOADERS)
def test_a_set_without_a_sound_image_is_refused(tmp_path: Path, name: str) -> None:
    folder = write_set(tmp_path, (8,), damage=dict.fromkeys(range(8), _zeros))
    with pytest.raises(UserError, match="can be decoded"):
        take(folder, name, 1, max_corrupt=1.0)
    with pytest.raises(UserError, match="no image of a whole batch can be decoded"):
        take(folder, name, 1, max_corrupt=1.0, crop_size=8)


@pytest.mark.parametrize("name", LOADERS)
def test_an_archive_that_changes_while_it_is_read_is_refused(tmp_path: Path, name: str) -> None:
    folder = write_set(tmp_path, (8, 8))
    with loading(folder, name) as loader:
        shard, number = loader._shards.locate(11)
        place = int(shard.places[number, 0, 0]) - 512
        data = bytearray(shard.path.read_bytes())
        data[place : place + 9] = b"000000001"
        shard.path.write_bytes(data)
        with pytest.raises(UserError, match=r"shard-000001.tar: its image number 3 has another name"):
            list(map(loader.load, range(2)))


# Refusals, before anything is read


def test_stored_logits_cannot_label_a_crop(tmp_path: Path) -> None:
    folder = write_set(tmp_path, (8,))
    for augment in (CROPS, AugmentConfig(pad=1), AugmentConfig(pad=0, jitter=0.1), AugmentConfig(pad=0, cutmix=1.0)):
        with pytest.raises(UserError, match="stored logits are those of whole images"):
            take(folder, "torch", 0, augment, stored=True)


def test_views_that_are_known_already_are_the_ones_read(tmp_path: Path, seed: int) -> None:
    folder = write_set(tmp_path, (16,), kind="png", picture=ramp)
    known = [draw_views(CROPS, 16, seed + 1, view) for view in range(2)]
    augment = AugmentConfig(pad=0, crop_scale=0.3, views=2)
    for batch in take(folder, "torch", 6, augment, seed=seed, views=known.__getitem__):
        box = known[batch.view].box
        assert box is not None and torch.allclose(batch.boxes[:, 3], box[batch.rows, 2])
    with pytest.raises(UserError, match="stored views that mix images cannot be streamed"):
        take(folder, "torch", 0, AugmentConfig(mixup=0.5), views=known.__getitem__)


@pytest.mark.parametrize("name", LOADERS)
def test_a_view_is_the_one_of_images_in_memory(tmp_path: Path, name: str, seed: int) -> None:
    """But for the resampling: labels of the same row and view fit both. Boxes end at whole pixels here, of 120."""
    folder = write_set(tmp_path, (8,), kind="png", picture=ramp)
    augment = AugmentConfig(pad=3, flip=0.5, crop_scale=0.3)
    images = torch.from_numpy(np.stack([ramp(row) for row in range(8)])).permute(0, 3, 1, 2) / 255
    (batch,) = take(folder, name, 1, augment, seed=seed)
    expected = make_view(images[batch.rows], draw_views(augment, 8, seed, 0), batch.rows, augment.pad)
    assert batch.images.shape == expected.shape and (batch.images - expected).abs().max() < 0.03


def test_an_unfit_set_is_refused(tmp_path: Path) -> None:
    folder = write_set(tmp_path, (4, 4))
    with pytest.raises(UserError, match="3 ranks for 2 shards"):
        take(folder, "torch", 0, batch=1, ranks=3)
    with pytest.raises(UserError, match=r"augment.pad is 20; it must be below 20"):
        take(folder, "torch", 0, AugmentConfig(pad=20))
    with pytest.raises(UserError, match="unknown loader 'webdataset'"):
        take(folder, "webdataset", 0)
    (folder / "shard-000001.idx").write_text("v1.2 0\n")
    with pytest.raises(UserError, match=r"stale index .*shard-000001.idx"):
        take(folder, "torch", 0)


def test_ranks_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(12)))
    assert LoaderConfig().workers_here() == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert LoaderConfig().workers_here() == 3 and LoaderConfig(workers=5).workers_here() == 5
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    assert LoaderConfig().workers_here() == 1


def test_auto_says_what_it_takes(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    with caplog.at_level(logging.INFO):
        assert choose_loader("auto", CPU) == "torch"
        monkeypatch.setattr("prism_fast.data.choice.dali_is_installed", lambda: True)
        assert choose_loader("auto", torch.device("cuda")) == "dali"
        monkeypatch.setattr("prism_fast.data.choice.dali_is_installed", lambda: False)
        assert choose_loader("auto", torch.device("cuda")) == "torch"
    assert [message.partition(":")[0] for message in caplog.messages] == [
        "images are loaded by torch", "images are loaded by dali", "images are loaded by torch",
    ]  # fmt: skip
    assert "pip install 'prism_fast[dali]'" in caplog.messages[2]
    with pytest.raises(UserError, match=r"not installed: pip install 'prism_fast\[dali\]'"):
        choose_loader("dali", CPU)


@pytest.mark.gpu
@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("kind", IMAGE_FORMATS)
def test_on_a_gpu_images_and_labels_belong_together(tmp_path: Path, kind: ImageFormat, name: str) -> None:
    folder = write_set(tmp_path, (13, 9, 17), kind=kind, damage={6: _cut})
    device = torch.device("cuda")
    for batch in take(folder, name, 11, crop_size=16, device=device, max_corrupt=0.1):
        assert batch.images.is_cuda and batch.labels.is_cuda
        check_pairing(batch)
