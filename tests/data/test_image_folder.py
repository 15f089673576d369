"""Folders of image files, with and without a folder for each class."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from PIL import Image

from prism_fast.data.image_folder import ImageFolder
from prism_fast.errors import UserError


def save_image(path: Path, level: int, size: tuple[int, int] = (6, 4)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (level, 0, 0)).save(path)


def test_a_flat_folder_has_no_classes(tmp_path: Path) -> None:
    for name, level in (("b.PNG", 2), ("a.png", 1), ("c.webp", 3)):
        save_image(tmp_path / name, level)
    (tmp_path / "notes.txt").write_text("passed over")
    folder = ImageFolder(tmp_path)
    assert len(folder) == 3 and folder.classes(10, None) is None
    assert [int(folder.image(row)[0, 0, 0]) for row in range(2)] == [1, 2]
    assert folder.image(0).shape == (3, 4, 6) and folder.image(0).dtype == torch.uint8


@pytest.mark.parametrize(
    ("folders", "names", "classes"),
    [
        (["2", "0"], None, [0, 2]),
        (["coat", "bag"], ("top", "coat", "bag"), [2, 1]),
        (["n03", "n01", "n02"], ("top", "coat", "bag"), [0, 1, 2]),
        (["n03", "n01", "n02"], None, [0, 1, 2]),
    ],
)
def test_class_folders_by_number_name_or_order(
    folders: list[str], names: tuple[str, ...] | None, classes: list[int], tmp_path: Path
) -> None:
    for name in folders:
        save_image(tmp_path / name / "x.png", 9)
        save_image(tmp_path / name / "y.jpg", 9)
    (tmp_path / "empty").mkdir()
    found = ImageFolder(tmp_path).classes(3, names)
    assert found is not None and found.tolist() == [each for each in classes for _ in range(2)]


def test_folders_that_are_no_classes_are_refused(tmp_path: Path) -> None:
    for name in ("coat", "hat"):
        save_image(tmp_path / name / "x.png", 9)
    with pytest.raises(UserError, match="2 folders of images for 3 classes, and 'hat' is no class"):
        ImageFolder(tmp_path).classes(3, ("top", "coat", "bag"))
    with pytest.raises(UserError, match="'hat' is no class"):  # by order, hat would be bag
        ImageFolder(tmp_path).classes(2, ("coat", "bag"))


def test_what_is_no_folder_of_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder"):
        ImageFolder(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no images"):
        ImageFolder(tmp_path)
    save_image(tmp_path / "a.png", 1)
    save_image(tmp_path / "coat" / "a.png", 1)
    with pytest.raises(UserError, match="images beside folders of images"):
        ImageFolder(tmp_path)


def test_files_that_are_no_images_are_named(tmp_path: Path) -> None:
    data = io.BytesIO()
    Image.new("RGB", (8, 8)).save(data, format="PNG")
    (tmp_path / "a.png").write_bytes(data.getvalue()[:40])
    (tmp_path / "b.png").symlink_to("a.png")
    folder = ImageFolder(tmp_path)
    with pytest.raises(UserError, match=r"cannot read the image .*a\.png"):
        folder.image(0)
    with pytest.raises(UserError, match=r"b\.png is a symbolic link"):
        folder.image(1)
