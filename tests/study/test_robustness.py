"""``prism-fast evaluate`` of classifiers: shifts, others beside them, ImageNet's test sets, the report."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from prism_fast.cli import main
from prism_fast.data.imagenet_folder import CLASSES
from prism_fast.errors import UserError
from prism_fast.metrics.bootstrap import mean_interval
from prism_fast.metrics.predictions import predict
from prism_fast.metrics.shifts import SEVERITIES, SHIFTS, shifted
from prism_fast.progress import silent
from prism_fast.study import robustness
from prism_fast.study.evaluate import evaluate
from prism_fast.study.evaluate_config import EvaluateConfig
from prism_fast.study.real import real_images
from prism_fast.study.sources import Source, in_batches
from prism_fast.teachers.imagenet import PACKAGED
from prism_fast.teachers.load import load_teacher
from tests.data.test_imagenet_folder import classes_in, lay_out, wnid
from tests.imagenet import require
from tests.study.worlds import TEST_IMAGES, World, make_world, use_fake_images


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True)
def _fake(monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake_images(monkeypatch)


def test_figures_are_those_of_the_shifted_images(world: World, seed: int) -> None:
    config = EvaluateConfig(
        target=str(world.teacher), beside=str(world.judge), shifts=True, seed=seed, resamples=200, device="cpu"
    )
    found = evaluate(config, silent).figures
    images, labels = real_images("test")
    right = {}
    for name in (str(world.teacher), str(world.judge)):
        classifier = load_teacher(name)
        each = [
            predict(classifier, shifted(images, "noise", s, range(TEST_IMAGES), seed)) == labels for s in range(1, 6)
        ]
        right[name] = torch.stack(each).double()
    own, other = right.values()
    noise = found["shifts"]["noise"]
    assert noise["by_severity"] == [round(float(each.mean()), 6) for each in own]
    assert noise["accuracy"] == pytest.approx(float(own.mean()), abs=1e-6)
    means = [shift["accuracy"] for shift in found["shifts"].values()]
    assert list(found["shifts"]) == list(SHIFTS) and found["shifted_accuracy"] == pytest.approx(
        sum(means) / len(means), abs=1e-5
    )
    change = found["beside"][0]["difference"]["noise"]
    ends = mean_interval(own.mean(0) - other.mean(0), 200, seed)
    assert change["value"] == pytest.approx(float((own - other).mean()), abs=1e-6)
    assert change["interval"] == {"low": ends.low, "high": ends.high}
    assert change["value"] == pytest.approx(
        noise["accuracy"] - found["beside"][0]["shifts"]["noise"]["accuracy"], abs=2e-6
    )


def test_a_classifier_beside_its_copy_differs_by_nothing(world: World, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.symlink_to(world.teacher)
    found = evaluate(EvaluateConfig(target=str(world.teacher), beside=str(copy), device="cpu"), silent).figures
    assert found["beside"][0]["difference"] == {"accuracy": {"value": 0.0, "interval": {"low": 0.0, "high": 0.0}}}
    assert "shifts" not in found


def test_fewer_images_are_a_choice_of_the_seed(world: World, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[list[int]] = []

    def recorded(source: Source, rows: Tensor, *more: Any) -> Iterator[Tensor]:
        chosen.append(rows.tolist())
        return in_batches(source, rows, *more)

    monkeypatch.setattr(robustness, "in_batches", recorded)
    config = EvaluateConfig(target=str(world.teacher), images=20, seed=seed, device="cpu")
    images, labels = real_images("test")
    right = predict(load_teacher(str(world.teacher)), images) == labels
    for asked in (config, config, replace(config, seed=seed + 1)):
        found = evaluate(asked, silent)
        assert found.figures["images"] == 20 and found.robustness is not None
        assert found.robustness.verdicts[str(world.teacher)].plain.equal(right[chosen[-1]])
    assert chosen[0] == chosen[1] == sorted(set(chosen[0]))
    assert chosen[2] != chosen[0] and len(set(chosen[2])) == 20  # of 60 images: once in 10¹⁵ they are the same
    assert chosen[0] != list(range(20))


def test_the_report_has_a_panel_for_each_shift(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, out = tmp_path / "page.html", tmp_path / "figures.json"
    names = [str(world.teacher), "--beside", str(world.judge)]
    assert main(["evaluate", *names, "--shifts", "--images", "12", "--report", str(page), "--out", str(out)]) == 0
    text, html, found = capsys.readouterr().out, page.read_text(), json.loads(out.read_text())
    assert html.count("<svg") == len(SHIFTS) == html.count("data:image/png;base64,")
    assert html.count('<polyline class="line') == 2 * len(SHIFTS)
    for points in re.findall(r'points="([^"]+)"/>', html):
        assert len(points.split()) == SEVERITIES + 1
    assert all(kind in text and kind in html for kind in SHIFTS)
    assert f"beside {world.judge}: accuracy" in text and f"less {world.judge}" in html
    assert found["config"]["shifts"] is True and len(found["severities"]["blur"]["strengths"]) == SEVERITIES
    assert "://" not in html  # nothing from outside


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beside": "a,,b"}, "has an empty name"),
        ({"beside": "{teacher}"}, "stands beside itself"),
        ({"beside": "nonsense"}, "unknown teacher 'nonsense'"),
        ({"reference": "imagenet-a@"}, "'imagenet-a@' names no folder: write imagenet-a@FOLDER"),
        ({"reference": "imagenet-r@{folder}"}, "has ImageNet's 1000 classes, the classifier knows 10"),
        ({"reference": "imagenet-q@{folder}"}, "nor one of imagenet-train, imagenet-val, imagenet-v2"),
        ({"allow_partial": "yes"}, "--allow-partial is of ImageNet's test sets, and test is none"),
    ],
)
def test_what_cannot_be_compared_is_refused(change: dict[str, str], message: str, world: World, tmp_path: Path) -> None:
    filled: Any = {name: value.format(teacher=world.teacher, folder=tmp_path) for name, value in change.items()}
    with pytest.raises(UserError, match=message):
        evaluate(EvaluateConfig(target=str(world.teacher), device="cpu", **filled), silent)


def test_shifts_are_of_classifiers(tmp_path: Path, world: World) -> None:
    (tmp_path / "3").mkdir()
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "3" / "x.png")
    with pytest.raises(UserError, match="holds images; --shifts and --beside are of classifiers"):
        evaluate(EvaluateConfig(target=str(tmp_path), shifts=True), silent)


@pytest.fixture
def imagenet() -> str:
    require(PACKAGED["imagenet"].module.replace("_", "-"))
    require("foolbox")
    return "imagenet"


def right_among(folder: Path, candidates: torch.Tensor | None) -> float:
    """Accuracy by hand: each image alone, the largest logit of the candidates."""
    from prism_fast.data.imagenet_folder import ImageNetFolder

    found = ImageNetFolder("imagenet-sketch", folder, (224, 224), allow_partial=True)
    teacher, hits = load_teacher("imagenet"), 0
    with torch.no_grad():
        for row, label in enumerate(found.classes.tolist()):
            logits = teacher.outputs(found.image(row)[None].float() / 255).logits[0].tolist()
            among = range(CLASSES) if candidates is None else candidates.tolist()
            hits += max(among, key=lambda index: logits[index]) == label
    return hits / len(found)


def test_imagenets_sets_are_measured_with_real_weights(imagenet: str, tmp_path: Path) -> None:
    by_wnid, by_number = lay_out(tmp_path / "sketch", wnid), lay_out(tmp_path / "v2", str)
    of_r = classes_in("r")
    some = lay_out(tmp_path / "r", wnid, only=of_r)
    expected = {
        f"imagenet-v2@{by_number}": (right_among(by_wnid, None), None, 20),
        f"imagenet-sketch@{by_wnid}": (right_among(by_wnid, None), None, 20),
        f"imagenet-r@{some}": (right_among(some, torch.tensor(of_r)), 200, 7),  # all 200, though few are there
    }
    for reference, told in expected.items():
        config = EvaluateConfig(target=imagenet, reference=reference, allow_partial=True, device="cpu")
        found = evaluate(config, silent).figures
        assert (found["accuracy"], found["among_classes"], found["images"]) == (pytest.approx(told[0]), *told[1:])
        assert found["accuracy"] >= 0.7  # real images and weights: most are recognised, in their own class order


def test_a_partial_set_is_refused_on_the_command_line(
    imagenet: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = lay_out(tmp_path / "a", wnid, only=classes_in("a"))
    command = ["evaluate", imagenet, "--reference", f"imagenet-a@{folder}", "--device", "cpu"]
    assert main(command) != 0
    assert "images of 5 classes, ImageNet-A of 200, and lacks n01498041, " in capsys.readouterr().err
    assert main([*command, "--allow-partial"]) == 0
    assert "among its 200 classes" in capsys.readouterr().out


def test_a_damaged_image_of_a_set_is_named(imagenet: str, tmp_path: Path) -> None:
    folder = lay_out(tmp_path / "r", wnid, only=classes_in("r"))
    victim = next(iter(sorted(folder.glob("*/*"))))
    victim.write_bytes(b"nothing")
    with pytest.raises(UserError, match=f"cannot read the image {victim}"):
        evaluate(
            EvaluateConfig(target=imagenet, reference=f"imagenet-r@{folder}", allow_partial=True, device="cpu"), silent
        )
