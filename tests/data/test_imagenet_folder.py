"""ImageNet's test sets in the layouts of their archives, made small of real images."""

from __future__ import annotations

import pkgutil
import shutil
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from prism_fast.data.imagenet_folder import LAYOUTS, ImageNetFolder, centre_crop, check_order
from prism_fast.errors import UserError
from prism_fast.prompts.imagenet import imagenet_1k
from prism_fast.prompts.wordnet import imagenet_info
from tests.imagenet import labelled_files

SIZE = (224, 224)
WNIDS = list(imagenet_info("imagenet-1k"))
IN_R = ("n01443537", "n01484850", "n01494475")
"""ImageNet-R's first classes: 1, 2 and 4 of ImageNet's."""


def lay_out(
    folder: Path, called: Callable[[int], str], suffix: str = ".JPEG", only: Collection[int] = range(1000)
) -> Path:
    """The 20 images, those of the classes ``only``, in class folders, with the notes that archives bring."""
    for place, (file, label) in enumerate(labelled_files().items()):
        if label not in only:
            continue
        there = folder / called(label)
        there.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, there / f"{place}{suffix}")
    (folder / "README.txt").write_text("not an image")
    return folder


def wnid(label: int) -> str:
    return WNIDS[label]


def classes_in(listed: str) -> list[int]:
    """Those of a list of timm's: ``a`` or ``r``."""
    data = pkgutil.get_data("timm.data", f"_info/imagenet_{listed}_synsets.txt")
    assert data is not None
    return [WNIDS.index(name) for name in data.decode().split()]


def one_pixel(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).mkdir(parents=True)
        Image.new("RGB", (1, 1)).save(folder / name / "x.png")
    return folder


def test_class_numbers_are_read_as_numbers(tmp_path: Path) -> None:
    found = ImageNetFolder("imagenet-v2", one_pixel(tmp_path, "0", "2", "10", "100", "999"), SIZE, allow_partial=True)
    assert found.classes.tolist() == [0, 10, 100, 2, 999]  # in the order of the names, each its own class
    assert found.among is None


@pytest.mark.parametrize("kind", ["imagenet-train", "imagenet-val", "imagenet-v2", "imagenet-sketch"])
def test_wnids_are_classes_in_every_layout(kind: str, tmp_path: Path) -> None:
    found = ImageNetFolder(kind, lay_out(tmp_path, wnid), SIZE, allow_partial=True)
    labels = sorted(labelled_files().values(), key=wnid)
    assert found.classes.tolist() == labels == sorted(labels) and found.among is None
    assert len(found) == 20 and found.image(3).shape == (3, *SIZE) and found.image(3).dtype == torch.uint8


@pytest.mark.parametrize(
    ("kind", "inside", "outside"),
    [
        ("imagenet-a", ["n01498041", "n02007558", "n12267677"], ["n01440764", "n01443537"]),  # tench, goldfish
        ("imagenet-r", [*IN_R, "n09472597"], ["n01440764", "n01496331"]),  # tench, electric ray
    ],
)
def test_the_classes_of_a_subset_are_its_own(kind: str, inside: list[str], outside: list[str], tmp_path: Path) -> None:
    """All 200 are candidates whatever is there, and a class of ImageNet's other 800 is refused by name."""
    found = ImageNetFolder(kind, one_pixel(tmp_path, *inside), SIZE, allow_partial=True)
    assert found.classes.tolist() == [WNIDS.index(name) for name in inside]
    assert found.among is not None and len(found.among) == len(found.among.unique()) == 200
    assert set(found.classes.tolist()) < set(found.among.tolist())
    assert not {WNIDS.index(name) for name in outside} & set(found.among.tolist())
    one_pixel(tmp_path, outside[0])
    for partial in (False, True):
        with pytest.raises(UserError, match=f"has the folder {outside[0]}, which is no class of ImageNet-[AR]: give"):
            ImageNetFolder(kind, tmp_path, SIZE, allow_partial=partial)


def test_any_200_classes_are_not_a_subset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LAYOUTS, "imagenet-a", replace(LAYOUTS["imagenet-a"], images=200))  # type: ignore[index]
    listed = one_pixel(tmp_path / "a", *map(wnid, classes_in("a")))
    assert len(ImageNetFolder("imagenet-a", listed, SIZE)) == 200
    with pytest.raises(UserError, match="has the folder n01440764, which is no class of ImageNet-A"):
        ImageNetFolder("imagenet-a", one_pixel(tmp_path / "other", *WNIDS[:200]), SIZE)


def test_the_order_of_classes_is_timms() -> None:
    from timm.data import ImageNetInfo

    assert WNIDS == ImageNetInfo("imagenet-1k").label_names() == sorted(WNIDS)


def test_classes_in_another_order_are_refused() -> None:
    names = list(imagenet_1k().names)
    for usual in (WNIDS, names):
        check_order(usual, "it")
        with pytest.raises(
            UserError, match=f"it has ImageNet's classes in another order .*: class 1 is {usual[2]}, not"
        ):
            check_order([usual[0], usual[2], usual[1], *usual[3:]], "it")
    check_order(None, "it")
    check_order([f"class {index}" for index in range(1000)], "it")  # names of one's own say nothing


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            "imagenet-val",
            r"images of 3 classes, ImageNet's validation set of 1000, and lacks n01440764, n01491361, n01496331, …:",
        ),
        (
            "imagenet-r",
            "images of 3 classes, ImageNet-R of 200, and lacks n01498041, .*: unpack it again, or .* --allow-partial",
        ),
    ],
)
def test_what_lacks_classes_is_refused(kind: str, message: str, tmp_path: Path) -> None:
    one_pixel(tmp_path, *IN_R)
    with pytest.raises(UserError, match=message):
        ImageNetFolder(kind, tmp_path, SIZE)


def test_what_lacks_images_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LAYOUTS, "imagenet-r", replace(LAYOUTS["imagenet-r"], images=201))  # type: ignore[index]
    one_pixel(tmp_path, *map(wnid, classes_in("r")))
    with pytest.raises(UserError, match="has 200 images, ImageNet-R has 201: unpack it again"):
        ImageNetFolder("imagenet-r", tmp_path, SIZE)
    shutil.copy(tmp_path / IN_R[0] / "x.png", tmp_path / IN_R[0] / "y.png")
    assert len(ImageNetFolder("imagenet-r", tmp_path, SIZE)) == 201


@pytest.mark.parametrize(
    ("kind", "names", "message"),
    [
        ("imagenet-v2", ["0", "1000"], "has the folder 1000, which is no class of ImageNet-1k"),
        ("imagenet-v2", ["0", "n01440764"], "has the folder 0, which is no class"),
        ("imagenet-v2", ["1", "01"], "has two folders of class 1"),
        ("imagenet-a", ["0", "1"], "has the folder 0, .* called by wnids as n01440764"),
        ("imagenet-sketch", ["n00000001"], "has the folder n00000001, which is no class"),
        ("imagenet-val", ["val"], "has the folder val, .* give the folder that holds ImageNet's validation set"),
        ("imagenet-a", ["n01498041", "n00000001"], "has the folder n00000001, which is no class of ImageNet-A"),
    ],
)
def test_folders_of_another_set_are_refused(kind: str, names: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        ImageNetFolder(kind, one_pixel(tmp_path, *names), SIZE, allow_partial=True)


def test_a_folder_of_images_without_classes_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1)).save(tmp_path / "x.png")
    with pytest.raises(UserError, match="holds images, but ImageNet-V2 has a folder for each class"):
        ImageNetFolder("imagenet-v2", tmp_path, SIZE)


def test_a_damaged_file_is_named_when_it_is_read(tmp_path: Path) -> None:
    lay_out(tmp_path, str)
    victim = sorted((tmp_path / "245").iterdir() if (tmp_path / "245").exists() else tmp_path.glob("*/*"))[0]
    victim.write_bytes(victim.read_bytes()[:500])
    folder = ImageNetFolder("imagenet-v2", tmp_path, SIZE, allow_partial=True)
    with pytest.raises(UserError, match=f"cannot read the image .*{victim.name}"):
        [folder.image(row) for row in range(20)]


def test_the_crop_is_the_usual_one() -> None:
    """Shorter side to 256, then the middle 224 pixels, by torchvision; in another order, so to a rounding."""
    from torchvision.transforms import functional

    file = next(iter(labelled_files()))
    picture = Image.open(file).convert("RGB")
    image = functional.pil_to_tensor(picture)
    usual = functional.center_crop(functional.resize(image, 256, antialias=True), [224, 224])
    found = centre_crop(image, SIZE)
    assert found.shape == usual.shape
    assert float((found.float() - usual.float()).abs().mean()) < 6
    shifted = torch.roll(usual, 8, 2)  # the bound means something: half a crop's margin away is farther
    assert float((found.float() - shifted.float()).abs().mean()) > 6


def test_the_crop_has_the_shape_that_is_asked_for() -> None:
    image = torch.arange(100).view(1, 1, 100).expand(3, 64, 100).to(torch.uint8)
    assert centre_crop(image, (56, 56))[0, 0].tolist() == list(range(22, 78))  # nothing to resize
    assert centre_crop(image, (20, 30)).shape == (3, 20, 30)
    assert centre_crop(image[:, :1, :1], (8, 8)).shape == (3, 8, 8)
