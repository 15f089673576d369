"""A set of images beside real ones, from folders, shards and straight from a sampler."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from prism_fast.cli import EXIT_ERROR, main
from prism_fast.errors import UserError
from prism_fast.metrics.comparison import Settings, distance_figures
from prism_fast.metrics.features import observe
from prism_fast.metrics.frechet import frechet_distance, moments
from prism_fast.metrics.kernel_distance import kernel_distance
from prism_fast.metrics.prdc import PRDC, prdc
from prism_fast.pipeline.load import load_pipeline
from prism_fast.progress import silent
from prism_fast.sampling.config import SamplerConfig
from prism_fast.sampling.levels import make_sampler
from prism_fast.study import compared
from prism_fast.study.compared import CEILING, GENERATED, load_networks
from prism_fast.study.evaluate import evaluate, figures_text
from prism_fast.study.evaluate_config import EvaluateConfig
from prism_fast.study.evaluation_page import page_html
from prism_fast.study.sources import FolderSource, Source, in_batches
from prism_fast.study.text import percent
from prism_fast.synthesis.shards import CONFIG_FILE, INFO_FILE
from prism_fast.teachers.load import load_teacher
from tests.data.sets import write_set
from tests.study.worlds import World, make_world, one_thread
from tests.tiny import save_tiny_teacher

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with one_thread():
        yield make_world(tmp_path_factory.mktemp("world"))


def save_images(folder: Path, images: Tensor, names: list[str]) -> None:
    """One PNG each, in the folders of ``names``."""
    for number, (image, name) in enumerate(zip(images, names, strict=True)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(folder / name / f"{number:04d}.png")


def pixels(seed: int, count: int, side: int = 16) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=source)


@pytest.fixture
def folders(tmp_path: Path, seed: int) -> tuple[Path, Path]:
    """20 generated images of two of the ten classes, one of them twice and one a copy of a real one; 60 real ones."""
    real, made = pixels(seed, 60), pixels(seed + 1, 20)
    made[3], made[4] = made[2], real[7]
    save_images(tmp_path / "made", made, [str(number % 2) for number in range(20)])
    save_images(tmp_path / "real", real, [str(number % 3) for number in range(60)])
    return tmp_path / "made", tmp_path / "real"


def settings(world: World, target: Path, reference: Path, **more: object) -> EvaluateConfig:
    networks = {"teacher": str(world.teacher), "judge": str(world.judge), "device": "cpu", "extractors": "none"}
    return EvaluateConfig(
        **{**networks, "target": str(target), "reference": str(reference), "resamples": 20, "set_resamples": 3, **more}  # type: ignore[arg-type]
    )


def test_any_folder_is_compared_with_any_real_one(world: World, folders: tuple[Path, Path]) -> None:
    figures = evaluate(settings(world, *folders), silent).figures
    assert (figures["images"], figures["real_images"], figures["compared"]) == (20, 60, 20)
    rows = figures["figures"]
    whole = [row for row in rows if row["class_name"] is None]
    for of in (GENERATED, CEILING):
        metrics = [row["metric"] for row in whole if row["of"] == of]
        agreements = ["teacher_agreement", "judge_agreement"]
        assert metrics == [*PRDC, "frechet_distance", "kernel_distance", *agreements]
    for row in rows:
        assert row["interval"]["low"] <= row["value"] <= row["interval"]["high"]
        assert str(row["count"]) in row["name"] and row["extractor"] in row["name"]
        if "agreement" not in row["metric"]:
            assert str(folders[1]) in row["name"] and (row["k"] is None or f"k = {row['k']}" in row["name"])
    assert {row["count"] for row in whole if "agreement" not in row["metric"]} == {20}  # equal N, in the ceiling too
    for metric in ("recall", "kernel_distance"):
        assert len({row["class_name"] for row in rows if row["metric"] == metric} - {None}) == 2
    copies = figures["copies"]
    assert (copies["same_pixels_as_another"], copies["same_pixels_as_real"], copies["real_images"]) == (1, 1, 60)
    assert copies["nearest"][0]["distance"] == pytest.approx(0, abs=1e-6)


def test_the_figures_are_those_of_the_images_compared(world: World, folders: tuple[Path, Path]) -> None:
    found = evaluate(settings(world, *folders, resamples=0), silent)
    assert found.comparison is not None
    judge, chosen, sources = load_teacher(str(world.judge)), found.comparison.matched, found.comparison

    def features(source: Source, rows: Tensor) -> Tensor:
        images = torch.stack([source.image(int(row)) for row in rows])
        return judge.features(images.float() / 255).float()

    real = features(sources.reference, chosen.reference)
    for of, others in (
        (GENERATED, features(sources.generated, chosen.generated)),
        (CEILING, features(sources.reference, chosen.ceiling)),
    ):
        wanted = prdc(real, others)
        rows = {row["metric"]: row for row in found.figures["figures"] if row["of"] == of and not row["class_name"]}
        for name in PRDC:
            assert rows[name]["value"] == pytest.approx(getattr(wanted, name), abs=1e-9)
            assert rows[name]["interval"] is None
        distance = frechet_distance(moments(real), moments(others))
        assert rows["frechet_distance"]["value"] == pytest.approx(distance, rel=1e-4)


def test_distances_within_a_class(seed: int) -> None:
    """The same as of two sets of their own; the Fréchet distance only of more images than features."""
    generator = torch.Generator().manual_seed(seed)
    made, real = (torch.randn(30, 6, generator=generator) + shift for shift in (0.5, 0))
    shared = Settings(extractor="judge", reference="test", resamples=0)
    for count, metrics in ((30, ["frechet_distance", "kernel_distance"]), (6, ["kernel_distance"])):
        found = distance_figures(made[:count], real[:count], shared, GENERATED, "coat")
        assert [figure.metric for figure in found] == metrics
        assert found[-1].value == pytest.approx(kernel_distance(made[:count], real[:count]).value, rel=1e-9)
        assert all(figure.class_name == "coat" and "class coat" in figure.name for figure in found)
    whole = distance_figures(made[:6], real[:6], shared, GENERATED)
    assert [figure.metric for figure in whole] == ["frechet_distance", "kernel_distance"]


def test_each_class_has_its_intervals_in_the_page(world: World, folders: tuple[Path, Path]) -> None:
    config = settings(world, *folders)
    found = evaluate(config, silent)
    assert found.comparison is not None
    html = page_html(found.comparison, config).replace("\u00a0", " ")
    rows = dict(re.findall(r"<tr><td>(class \d)<small>N = 10</small></td>(.*?)</tr>", html))
    assert set(rows) == {"class 0", "class 1"}
    shown = 0
    for row in found.figures["figures"]:
        if row["class_name"] not in rows or row["metric"] == "frechet_distance":
            continue
        numbers = [row["value"], row["interval"]["low"], row["interval"]["high"]]
        if row["metric"].endswith("_agreement"):
            if row["of"] == CEILING:
                continue
            value, low, high = map(percent, numbers)
        else:
            value, low, high = (f"{(1000 if row['metric'] == 'kernel_distance' else 1) * each:.2f}" for each in numbers)
        made = f"{value}<small>{low} – {high}</small>"
        assert (made if row["of"] == GENERATED else f"<small>real {value} ({low} – {high})</small>") in rows[
            row["class_name"]
        ]
        shown += 1
    assert shown == 2 * (2 + 5 + 5)
    bare = replace(config, resamples=0)
    found = evaluate(bare, silent)
    assert found.comparison is not None
    html = page_html(found.comparison, bare)
    assert len(re.findall(r"<td>[\d.-]+<small>real [\d.-]+</small></td>", html)) == 2 * 5 and " – " not in html


def test_the_classes_of_lowest_and_highest_figures_are_told(world: World, folders: tuple[Path, Path]) -> None:
    figures = evaluate(settings(world, *folders), silent).figures
    known = {"class 0": (0.25, 0.2, 0.3), "class 1": (0.75, 0.7, 0.9)}
    for row in figures["figures"]:
        if row["class_name"] in known and row["metric"] in ("precision", "recall"):
            of_real = row["of"] == CEILING  # of which the lines do not tell
            value, low, high = (0.0, 0.0, 0.0) if of_real else known[row["class_name"]]
            row |= {"value": value, "interval": {"low": low, "high": high}}
    head = f"by class ({world.judge}, k = 3):"
    told = f"{head} lowest class 0 0.25 (0.20 to 0.30, N = 10), highest class 1 0.75 (0.70 to 0.90, N = 10)"
    assert [line for line in figures_text(figures).splitlines() if "by class" in line] == [
        f"precision {told}",
        f"recall {told}",
    ]
    for row in figures["figures"]:
        row |= {"value": 0.5, "interval": None}
    assert f"recall {head} 0.50 in each of 2 classes" in figures_text(figures)
    one = [row for row in figures["figures"] if row["class_name"] != "class 1"]
    assert "by class" not in figures_text({**figures, "figures": one})


def test_images_without_classes_are_compared_as_a_whole(world: World, tmp_path: Path, seed: int) -> None:
    for name, count in (("made", 12), ("real", 30)):
        save_images(tmp_path / name, pixels(seed, count), ["."] * count)
    figures = evaluate(settings(world, tmp_path / "made", tmp_path / "real", images=9, searched=0), silent).figures
    assert (figures["compared"], figures["copies"]["generated_images"], figures["copies"]["real_images"]) == (9, 9, 18)
    assert not [row for row in figures["figures"] if row["class_name"] or "agreement" in row["metric"]]


def test_features_are_never_the_teachers(world: World, folders: tuple[Path, Path]) -> None:
    with pytest.raises(UserError, match=r"the judge, .*, is the teacher, .* so give another --judge"):
        load_networks(settings(world, *folders, judge=str(world.teacher)), torch.device("cpu"))
    with pytest.raises(UserError, match=r"extractor .* is the teacher, .* leave it out of --extractors"):
        load_networks(settings(world, *folders, extractors=str(world.teacher)), torch.device("cpu"))
    with pytest.raises(UserError, match="unknown teacher"):
        load_networks(settings(world, *folders, extractors="efficientnet-lite9"), torch.device("cpu"))


@pytest.mark.parametrize("mode", ["", "mean:", "worst:"])
def test_features_are_never_those_of_a_member(world: World, folders: tuple[Path, Path], mode: str) -> None:
    """Neither where the teacher is an ensemble nor where the judge or an extractor is one."""
    teacher, judge = str(world.teacher), str(world.judge)
    both = f"{mode}{teacher}+{judge}"
    for networks in ({"teacher": both}, {"teacher": both, "judge": teacher}, {"judge": both}):
        with pytest.raises(UserError, match=r"the judge, .* has a network in common with it: .* another --judge"):
            load_networks(settings(world, *folders, **networks), torch.device("cpu"))
    with pytest.raises(UserError, match=r"has a network in common with it: .* leave it out of --extractors"):
        load_networks(settings(world, *folders, extractors=both), torch.device("cpu"))


def write_info(folder: Path, guide: str, name: str) -> Path:
    """What of a set of shards says whom it was drawn with."""
    write_set(folder, [1])
    info = json.loads((folder / INFO_FILE).read_text())
    (folder / INFO_FILE).write_text(json.dumps({**info, "made_from": {"teacher": guide}}))
    (folder / CONFIG_FILE).write_text(f"teacher: {name}\n")
    return folder


def test_features_are_never_those_that_a_set_was_drawn_with(world: World, tmp_path: Path) -> None:
    """Whatever teacher it is evaluated with."""
    judge, other = str(world.judge), str(save_tiny_teacher(tmp_path / "other", seed=5))
    made = write_info(tmp_path / "made", load_teacher(judge).fingerprint, judge)
    with pytest.raises(UserError, match=r"the judge, .*, is the one that the images were drawn with, .* --judge"):
        load_networks(settings(world, made, made), torch.device("cpu"))
    with pytest.raises(UserError, match=r"extractor .* is the one that the images were drawn with, .* --extractors"):
        load_networks(settings(world, made, made, judge=other, extractors=judge), torch.device("cpu"))
    assert load_networks(settings(world, made, made, judge=other), torch.device("cpu")).judge == other
    both = f"{judge}+{other}"
    of_both = write_info(tmp_path / "of-both", load_teacher(both).fingerprint, both)
    with pytest.raises(UserError, match=r"drawn with the ensemble .* give --teacher"):
        load_networks(settings(world, of_both, made), torch.device("cpu"))
    with pytest.raises(UserError, match=r"the judge, .*, is the teacher, or has a network in common"):
        load_networks(settings(world, of_both, made, teacher=both), torch.device("cpu"))
    assert load_networks(settings(world, of_both, made, teacher=both, judge=str(world.teacher)), torch.device("cpu"))


def test_the_second_extractor_is_left_out_where_it_cannot_be_had(
    world: World, folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="prism_fast")
    config = settings(world, *folders, extractors="auto")

    def missing(name: str, device: object) -> None:
        raise UserError(f"{name} needs a package")

    for load, told in ((missing, "imagenet needs a package"), (lambda *_: load_teacher(config.teacher), "the teacher")):
        monkeypatch.setattr(compared, "load_extractor", load)
        assert list(load_networks(config, torch.device("cpu")).extractors) == [config.judge]
        assert told in caplog.text
    monkeypatch.setattr(compared, "load_extractor", lambda *_: load_teacher(config.judge))
    assert list(load_networks(config, torch.device("cpu")).extractors) == [config.judge, "imagenet"]


def test_images_of_several_sizes_come_in_order(tmp_path: Path, seed: int) -> None:
    shapes = [16, 16, 24, 24, 24, 16]
    for number, side in enumerate(shapes):
        save_images(tmp_path / f"{number}", pixels(seed + number, 1, side), ["."])
    source = FolderSource(tmp_path, 6, None)
    batches = list(in_batches(source, torch.arange(6), "x", silent))
    assert [tuple(batch.shape[::3]) for batch in batches] == [(2, 16), (3, 24), (1, 16)]
    assert batches[2][0].equal(pixels(seed + 5, 1, 16)[0])


def test_a_samplers_images_are_looked_at_without_a_file(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = make_sampler(load_pipeline(str(world.pipeline)), SamplerConfig(steps=2, compute_batch=4, guidance=None))
    judge = load_teacher(str(world.judge))

    def drawn() -> Iterator[Tensor]:
        for first in (0, 4):
            yield sampler.sample(["a coat"] * 4, class_indices=[1] * 4, seeds=range(first, first + 4)).images

    kept = torch.cat(list(drawn()))
    monkeypatch.setattr("builtins.open", lambda *_, **__: pytest.fail("a file was opened"))
    seen = observe(drawn(), {"judge": judge}, {"judge": judge})
    assert len(seen) == len(set(seen.digests)) == 8
    assert torch.allclose(seen.features["judge"], judge.features(kept.float() / 255).float(), atol=1e-5)
    assert seen.predictions["judge"].shape == (8,)


def test_the_command_measures_folders_and_a_classifier_on_one(
    world: World, folders: tuple[Path, Path], tmp_path: Path, capsys: Capture
) -> None:
    made, real = map(str, folders)
    networks = ["--teacher", str(world.teacher), "--judge", str(world.judge), "--extractors", "none", "--device", "cpu"]
    few = ["--resamples", "20", "--set_resamples", "3", "--distances", "float32"]
    page = tmp_path / "page.html"
    assert main(["evaluate", made, "--reference", real, *networks, *few, "--report", str(page), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["compared"] == 20
    text = page.read_text()
    assert "Copies" in text and text.count("<figure>") == 3 and "http" not in text.replace("http-equiv", "")
    assert main(["evaluate", str(world.teacher), "--reference", real]) == EXIT_ERROR
    assert "knows 10 classes, the real images have 3" in capsys.readouterr().err
    assert main(["evaluate", made, "--reference", real, *networks, "--report", str(page)]) == EXIT_ERROR
    assert "exists already and is left as it is" in capsys.readouterr().err
