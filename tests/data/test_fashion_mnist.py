"""The real test set: fetched from one source after another, checked by content, written atomically."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from prism_fast.data import fashion_mnist
from prism_fast.errors import UserError


def _idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> Path:
    """A folder with a small data set of the right form, and its hashes pinned in place of the real ones."""
    folder = tmp_path / "source"
    folder.mkdir()
    rng = np.random.default_rng(seed)
    hashes = {}
    for prefix, count in (("train", 30), ("t10k", 20)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for suffix, array in (("images-idx3-ubyte", images), ("labels-idx1-ubyte", labels)):
            name = f"{prefix}-{suffix}.gz"
            (folder / name).write_bytes(gzip.compress(_idx(array)))
            hashes[name] = hashlib.sha256(_idx(array)).hexdigest()
    monkeypatch.setattr(fashion_mnist, "HASHES", hashes)
    return folder


def _only(monkeypatch: pytest.MonkeyPatch, **sources: object) -> None:
    monkeypatch.setattr(fashion_mnist, "_SOURCES", sources)


def test_loads_images_and_labels(source: Path) -> None:
    images, labels = fashion_mnist.load("train", source)
    assert images.shape == (30, 28, 28) and images.dtype == torch.uint8
    assert labels.dtype == torch.int64 and labels.tolist() == [i % 10 for i in range(30)]
    expected = np.frombuffer(gzip.decompress((source / "train-images-idx3-ubyte.gz").read_bytes())[16:], np.uint8)
    assert np.array_equal(images.numpy().ravel(), expected)


def test_fetch_tries_sources_in_order_and_publishes(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def broken(_: Path) -> Path:
        asked.append("broken")
        raise fashion_mnist._Unavailable("no network")

    def good(_: Path) -> Path:
        asked.append("good")
        return source

    _only(monkeypatch, broken=broken, good=good)
    root = tmp_path / "deep" / "root"
    assert fashion_mnist.fetch(root) == root
    assert asked == ["broken", "good"]
    assert sorted(path.name for path in root.iterdir()) == sorted(fashion_mnist.HASHES)
    fashion_mnist.fetch(root)
    assert asked == ["broken", "good"], "a complete folder needs no source"


@pytest.mark.parametrize("damage", ["truncated", "other content", "not gzip", "missing"])
def test_damaged_file_is_fetched_again(
    damage: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _only(monkeypatch, good=lambda _: source)
    root = fashion_mnist.fetch(tmp_path / "root")
    victim = root / "t10k-images-idx3-ubyte.gz"
    whole = victim.read_bytes()
    if damage == "missing":
        victim.unlink()
    else:
        other = gzip.compress(_idx(np.zeros((20, 28, 28), np.uint8)))
        victim.write_bytes({"truncated": whole[:-20], "other content": other, "not gzip": b"<html>"}[damage])
    images, _ = fashion_mnist.load("test", root)
    assert images.shape == (20, 28, 28) and images.float().mean() > 100
    assert victim.read_bytes() == whole


def test_wrong_content_is_refused_and_nothing_is_published(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"tampered"))
    _only(monkeypatch, mirror=lambda _: source)
    with pytest.raises(UserError, match=r"mirror: train-labels.*SHA-256.*Cure: "):
        fashion_mnist.fetch(tmp_path / "root")
    assert list((tmp_path / "root").iterdir()) == []


def test_commands_that_fail_are_reasons_not_tracebacks(tmp_path: Path) -> None:
    with pytest.raises(fashion_mnist._Unavailable, match="gone"):
        fashion_mnist._command(["sh", "-c", "echo gone >&2; exit 100"], tmp_path)


def test_split_is_a_selection_of_the_training_images(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "zoo" / "fashion").mkdir(parents=True)
    np.savez(tmp_path / "zoo" / "fashion" / "splits.npz", V=np.array([29, 3, 17], np.uint16))
    monkeypatch.setattr(fashion_mnist.resources, "files", lambda _: tmp_path)
    images, labels = fashion_mnist.load("train", source)
    chosen, classes = fashion_mnist.load_split("V", source)
    assert torch.equal(chosen, images[[29, 3, 17]]) and classes.tolist() == [9, 3, 7]
    assert torch.equal(classes, labels[[29, 3, 17]])


def test_as_images_pads_with_black(seed: int) -> None:
    x = torch.randint(0, 256, (3, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    images = fashion_mnist.as_images(x)
    assert images.shape == (3, 3, 32, 32) and images.dtype == torch.uint8 and images.is_contiguous()
    assert torch.equal(images[:, 1, 2:30, 2:30], x)
    assert images.long().sum() == 3 * x.long().sum()


@pytest.mark.parametrize("call", [lambda: fashion_mnist.load("valid"), lambda: fashion_mnist.load_split("X")])
def test_unknown_part_is_named(call: object) -> None:
    with pytest.raises(UserError, match="unknown"):
        call()  # type: ignore[operator]
