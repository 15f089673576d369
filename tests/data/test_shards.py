from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prism_fast.data.shards import ShardDataset, ShardSet
from prism_fast.errors import UserError
from prism_fast.synthesis.images import encode_image
from prism_fast.synthesis.shards import Sample, claim_shard
from prism_fast.synthesis.soft import describe_logits, top_k_dtype
from prism_fast.synthesis.tar import index_text, scan_tar
from tests.data.hostile import (
    ARCHIVES,
    CONTENTS,
    bomb,
    fit_statistics,
    outside,
    trap_path,
    write_archive,
)

CLASSES = ("cat", "dog", "eel")
COUNTS = (3, 2)


def picture(seed: int, size: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)


def record(index: int, **changes: Any) -> dict[str, Any]:
    return {
        "index": index, "seed": 2**62 + index, "attempt": 0, "class_index": index % 3, "class_name": CLASSES[index % 3],
        "prompt": f"prompt {index}", "sense": "", "content": "none", "style": "none", "source": "test",
        "energy": -float(index), "free_energy": 0.5, "class_energy": 0.5, "teacher_probability": 0.5,
        "teacher_top1": index % 3, "skipped": 0, "compute_batch": 4, "accepted": True, "reason": "", **changes,
    }  # fmt: skip


def sample(index: int, size: int = 8) -> Sample:
    return Sample(
        index=index,
        image=encode_image(picture(index, size), "png"),
        extension="png",
        label=index % 3,
        logits=np.array([index, 0.5, -1], np.float16),
        record=record(index),
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A set of five images in two shards, with a rejected row between them."""
    row = 0
    for shard, count in enumerate(COUNTS):
        writer = claim_shard(tmp_path, shard)
        assert writer is not None
        with writer:
            for _ in range(count):
                writer.add(sample(row))
                row += 1
            if shard == 0:
                writer.add_rejected(record(row, accepted=False, reason="not finite"))
                row += 1
            writer.publish({"shard": shard, "images": count, "config_hash": "x"})
    info = {
        "shards": 2, "num_classes": 3, "class_names": list(CLASSES), "members": ["png", "cls", "label", "soft", "json"],
        "splits": {"train": {"name": "train", "num_samples": 5, "shard_lengths": list(COUNTS),
                             "filenames": ["shard-000000.tar", "shard-000001.tar"]}},
    }  # fmt: skip
    (tmp_path / "_info.json").write_text(json.dumps(info))
    return tmp_path


INDICES = (0, 1, 2, 4, 5)


def change(path: Path, **fields: Any) -> None:
    value = json.loads(path.read_text())
    path.write_text(json.dumps({**value, **fields}))


# Reading


def test_samples_are_what_was_written(folder: Path) -> None:
    dataset = ShardDataset(folder)
    assert len(dataset) == 5
    for place, index in enumerate(INDICES):
        image, label, logits = dataset[place]
        assert image.dtype == torch.uint8 and torch.equal(image, torch.from_numpy(picture(index)).permute(2, 0, 1))
        assert label == index % 3
        assert logits.dtype == torch.float16 and logits.tolist() == [index, 0.5, -1]
        assert dataset.shards.record(place) == record(index)
    with pytest.raises(IndexError):
        dataset[5]
    with pytest.raises(IndexError):
        dataset[-1]


def test_everything_at_once(folder: Path) -> None:
    shards = ShardSet(folder)
    images, labels, logits = shards.arrays()
    assert images.shape == (5, 3, 8, 8) and labels.tolist() == [i % 3 for i in INDICES] and logits.shape == (5, 3)
    assert torch.equal(shards.images(), images)
    assert (shards.num_classes, shards.class_names, shards.complete) == (3, CLASSES, True)
    table = shards.table()
    assert table.column("index").to_pylist() == list(INDICES)
    assert table.column("seed").to_pylist() == [2**62 + i for i in INDICES]


def test_the_fingerprint_follows_the_archives(folder: Path) -> None:
    first = ShardSet(folder).fingerprint
    assert first == ShardSet(folder).fingerprint
    stats = json.loads((folder / "shard-000001.json").read_text())
    stats["files"]["tar"]["sha256"] = "0" * 64
    (folder / "shard-000001.json").write_text(json.dumps(stats))
    assert ShardSet(folder).fingerprint != first


def test_a_loader_with_worker_processes(folder: Path) -> None:
    loader = torch.utils.data.DataLoader(ShardDataset(folder), batch_size=2, num_workers=1)
    batches = list(loader)
    assert [len(labels) for _, labels, _ in batches] == [2, 2, 1]
    assert torch.equal(torch.cat([images for images, _, _ in batches]), ShardSet(folder).images())


def test_webdataset_and_timm_read_the_set_unchanged(folder: Path) -> None:
    import webdataset
    from timm.data.readers.reader_wds import ReaderWds

    shards = ShardSet(folder)
    paths = [str(folder / f"shard-{n:06d}.tar") for n in range(2)]
    theirs = list(webdataset.WebDataset(paths, shardshuffle=False).decode("rgb8"))
    assert [s["cls"] for s in theirs] == shards.arrays()[1].tolist()
    assert all(np.array_equal(s["png"], picture(i)) for s, i in zip(theirs, INDICES, strict=True))
    assert [s["json"]["prompt"] for s in theirs] == [f"prompt {i}" for i in INDICES]
    reader = ReaderWds(str(folder), split="train")
    assert len(reader) == 5
    assert [(np.asarray(image).tolist(), target) for image, target in reader] == [
        (picture(i).tolist(), i % 3) for i in INDICES
    ]


def of_the_largest(folder: Path, top_k: int = 2) -> None:
    """Makes of both shards what they would be with ``soft_top_k``."""
    change(folder / "_info.json", logits=describe_logits(3, top_k))
    for shard, rows in enumerate(((0, 1, 2), (4, 5))):
        writer = claim_shard(folder, shard)
        assert writer is not None
        with writer:
            for row in rows:
                writer.add(replace(sample(row), top_k=top_k))
            writer.publish({"shard": shard, "images": len(rows), "config_hash": "x"})


def test_of_the_largest_logits_dense_ones_are_made(folder: Path) -> None:
    full = ShardSet(folder).arrays()[2]
    of_the_largest(folder)
    shards = ShardSet(folder)
    assert shards.top_k == 2
    _, labels, logits = shards.arrays()
    assert logits.dtype == torch.float32 and torch.allclose(
        logits, full.float(), atol=1e-6
    )  # one other: nothing is lost
    assert labels.tolist() == [i % 3 for i in INDICES]
    of_the_largest(folder, 1)
    one = ShardSet(folder).arrays()[2]
    assert (
        torch.allclose(one.softmax(1).amax(1), full.float().softmax(1).amax(1)) and (one[:, 1] == one[:, 2])[2:].all()
    )


@pytest.mark.parametrize(
    "logits",
    [{"top_k": 2}, {"top_k": 0}, {"top_k": True}, {**describe_logits(4, 2)}, {**describe_logits(3, 2), "x": 1}],
)
def test_a_layout_of_logits_that_is_not_ours_is_refused(folder: Path, logits: dict[str, Any]) -> None:
    change(folder / "_info.json", logits=logits)
    with pytest.raises(UserError, match=r"_info\.json describes logits"):
        ShardSet(folder)


def test_largest_logits_of_the_wrong_size_or_class_are_refused(folder: Path) -> None:
    change(folder / "_info.json", logits=describe_logits(3, 2))
    with pytest.raises(UserError, match=r"000000000\.soft' has 6 bytes, expected 16"):
        ShardSet(folder).sample(0)
    of_the_largest(folder)
    record = np.zeros((), top_k_dtype(2))
    record["index"] = 3, 0
    members = [member for index in range(3) for member in replace(sample(index), top_k=2).members()]
    members[3] = (members[3][0], record.tobytes())
    rewrite(folder, members)
    with pytest.raises(
        UserError, match=r"image number 0 has logits of classes \[3, 0\], which are not 2 of 3 in order"
    ):
        ShardSet(folder).sample(0)


# Refusing


def test_no_folder_or_no_set(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no folder .*synthesize --out"):
        ShardSet(tmp_path / "none")
    with pytest.raises(UserError, match="holds no shards"):
        ShardSet(tmp_path)


def test_an_unfinished_set_is_refused_unless_asked_for(folder: Path) -> None:
    (folder / "shard-000001.json").unlink()
    with pytest.raises(UserError, match="1 of 2 shards are there"):
        ShardSet(folder)
    part = ShardSet(folder, partial=True)
    assert len(part) == 3 and not part.complete
    (folder / "shard-000000.json").unlink()
    empty = ShardSet(folder, partial=True)
    assert len(empty) == 0
    for ask in (empty.arrays, empty.table):
        with pytest.raises(UserError, match="no images yet"):
            ask()


@pytest.mark.parametrize(
    "fields",
    [
        {"shards": None}, {"shards": 10**12}, {"shards": True}, {"num_classes": 4}, {"class_names": "cat"},
        {"class_names": [1, 2, 3]}, {"members": ["pkl", "cls", "label", "soft", "json"]}, {"members": ["png", "cls"]},
        {"members": None},
    ],
)  # fmt: skip
def test_a_nonsensical_info_is_refused(folder: Path, fields: dict[str, Any]) -> None:
    change(folder / "_info.json", **fields)
    with pytest.raises(UserError, match=r"_info\.json"):
        ShardSet(folder)


@pytest.mark.parametrize("name", ["_info.json", "shard-000001.json"])
@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_damaged_json_is_named(folder: Path, name: str, text: bytes) -> None:
    (folder / name).write_bytes(text)
    with pytest.raises(UserError, match=name):
        ShardSet(folder)


@pytest.mark.parametrize("fields", [{"images": -1}, {"images": "3"}, {"files": {}}, {"files": {"tar": {"bytes": "1"}}}])
def test_nonsensical_statistics_are_refused(folder: Path, fields: dict[str, Any]) -> None:
    change(folder / "shard-000001.json", **fields)
    with pytest.raises(UserError, match=r"shard-000001\.json"):
        ShardSet(folder)


def rewrite(folder: Path, members: Sequence[tuple[str, bytes] | tarfile.TarInfo]) -> None:
    """Puts another archive in place of shard 0, with statistics that fit it."""
    write_archive(folder / "shard-000000.tar", members)
    fit_statistics(folder)


def good() -> list[tuple[str, bytes]]:
    return [member for index in range(3) for member in sample(index).members()]


def replaced(place: int, name: str | None = None, data: bytes | None = None) -> list[tuple[str, bytes]]:
    members = good()
    members[place] = (name or members[place][0], members[place][1] if data is None else data)
    return members


def test_the_rewritten_archive_is_good_when_nothing_is_changed(folder: Path) -> None:
    rewrite(folder, good())
    assert ShardSet(folder).arrays()[1].tolist() == [0, 1, 2, 1, 2]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (replaced(4, "000000000.pkl"), r"'000000000\.pkl' where '000000000\.json'"),
        (replaced(0, "000000000.pyd"), r"'000000000\.pyd'"),
        (replaced(0, "../../etc/000000000.png"), r"'\.\./\.\./etc"),
        (replaced(0, "/000000000.png"), "'/000000000.png'"),
        (replaced(5, "a/0000001.png"), "'a/0000001.png'"),
        (replaced(5, "1.png"), r"'1\.png'"),
        (replaced(6, "000000007.cls"), r"'000000007\.cls' where '000000001\.cls'"),
        (good()[:-1], "14 members where 3 images have 5 each"),
        (good() + good()[:5], "is there twice"),
        (replaced(2, data=bytes(7)), "7 bytes, expected 8"),
        (replaced(3, data=bytes(8)), "8 bytes, expected 6"),
        (replaced(1, data=b"1" * 21), "21 bytes, expected 1 to 20"),
        (replaced(1, data=b""), "0 bytes"),
        (replaced(4, data=b" " * (2**20 + 1)), "1048577 bytes"),
    ],
)
def test_archives_of_other_members_are_refused_by_name(
    folder: Path, members: list[tuple[str, bytes]], message: str
) -> None:
    rewrite(folder, members)
    with pytest.raises(UserError, match=rf"shard-000000\.tar.*{message}"):
        ShardSet(folder).sample(0)


@pytest.mark.parametrize("case", ARCHIVES)
def test_hostile_archives_are_refused_and_nothing_else_happens(folder: Path, case: str) -> None:
    spoil, message = ARCHIVES[case]
    inner = folder / "set"
    inner.mkdir()
    for path in folder.iterdir():
        if path.is_file():
            path.rename(inner / path.name)
    spoil(inner)
    before = outside(inner)
    with pytest.raises(UserError, match=rf"shard-000000\.tar.*{message}|shard-000000\.tar: 16 members"):
        ShardSet(inner).arrays()
    assert outside(inner) == before and not trap_path(inner).exists()


@pytest.mark.parametrize("case", CONTENTS)
def test_hostile_contents_are_refused(folder: Path, case: str) -> None:
    spoil, message = CONTENTS[case]
    spoil(folder)
    shards = ShardSet(folder)
    with pytest.raises(UserError, match=rf"shard-000000\.tar.*{message}"):
        (shards.record if "record" in case else shards.sample)(0)


@pytest.mark.parametrize("name", ["_info.json", *(f"shard-000000.{kind}" for kind in ("tar", "parquet", "json"))])
@pytest.mark.parametrize("entry", ["link", "pipe"])
def test_entries_that_are_no_regular_files_are_refused(folder: Path, name: str, entry: str) -> None:
    path = folder / name
    path.rename(folder / "elsewhere")
    if entry == "link":
        path.symlink_to(folder / "elsewhere")
    else:
        os.mkfifo(path)  # opening it to read would wait for a writer
    with pytest.raises(UserError, match=rf"{name}.*{'symbolic link' if entry == 'link' else 'no regular file'}"):
        (ShardSet(folder).table if name.endswith("parquet") else ShardSet(folder).arrays)()


@pytest.mark.parametrize(
    ("place", "data", "message"),
    [
        (0, b"no image", "not a readable png"),
        (0, encode_image(picture(0), "jpg"), "not a readable png"),
        (0, bomb(), "9000 x 9000 pixels"),
        (2, (3).to_bytes(8, "little"), "label 3 of 3 classes"),
        (2, b"\xff" * 8, "label -1 of 3 classes"),
        (3, np.array([0, np.nan, 0], "<f2").tobytes(), "logits that are not finite"),
    ],
)
def test_members_that_say_nonsense_are_refused(folder: Path, place: int, data: bytes, message: str) -> None:
    rewrite(folder, replaced(5 + place, data=data))
    shards = ShardSet(folder)
    shards.sample(0)
    with pytest.raises(UserError, match=rf"shard-000000\.tar: its image number 1 has .*{message}"):
        shards.sample(1)


@pytest.mark.parametrize("data", [b"{", b"[1]", b"[" * 100_000])
def test_a_record_that_is_no_object_is_refused(folder: Path, data: bytes) -> None:
    rewrite(folder, replaced(4, data=data))
    with pytest.raises(UserError, match=r"image number 0 has record"):
        ShardSet(folder).record(0)


def test_a_truncated_archive_is_refused(folder: Path) -> None:
    path = folder / "shard-000000.tar"
    path.write_bytes(path.read_bytes()[:-10240])
    with pytest.raises(UserError, match=r"shard-000000\.tar: \d+ bytes where its \.json says"):
        ShardSet(folder).sample(0)


def test_a_missing_archive_or_table_is_named(folder: Path) -> None:
    shards = ShardSet(folder)
    (folder / "shard-000001.tar").unlink()
    with pytest.raises(UserError, match=r"cannot read shard .*shard-000001\.tar"):
        shards.sample(4)
    (folder / "shard-000001.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"damaged table .*shard-000001\.parquet"):
        shards.table()


def test_images_of_different_sizes_are_refused_only_in_one_array(folder: Path) -> None:
    rewrite(folder, [member for index in range(3) for member in sample(index, 8 + index).members()])
    shards = ShardSet(folder)
    assert [tuple(shards.sample(i)[0].shape) for i in range(3)] == [(3, 8, 8), (3, 9, 9), (3, 10, 10)]
    with pytest.raises(UserError, match="different sizes"):
        shards.images()


def test_the_index_fits_the_archive(folder: Path) -> None:
    for n in range(2):
        assert (folder / f"shard-{n:06d}.idx").read_text() == index_text(scan_tar(folder / f"shard-{n:06d}.tar"))
