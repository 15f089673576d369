"""The study in another world than the built-in one: other classes, real images in folders, the suites of ImageNet."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from prism_fast.cli import EXIT_ERROR, main
from prism_fast.data.shards import ShardSet
from prism_fast.errors import UserError
from prism_fast.progress import silent
from prism_fast.recipes.fields import build, default_fields, lay_over
from prism_fast.study import experiment
from prism_fast.study.experiment import BY_COUNT, CEILING, EQUAL_IMAGES, Experiment
from prism_fast.study.methods import FURTHER, MAIN, TRIALS, suite, synthesis_config
from prism_fast.study.sources import Chosen, FolderSource, MemorySource, labels_of
from prism_fast.study.study import REPORT, RESULTS, run_study
from prism_fast.study.study_config import SUITES, StudyConfig, usual
from tests.study.folders import CLASSES, config_of, options, two_methods
from tests.study.studies import prepared_methods
from tests.study.worlds import forbid_real_images, one_thread


def test_a_world_of_other_classes_and_of_real_images_in_folders(
    four_classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_real_images(monkeypatch)
    monkeypatch.setattr(experiment, "counts", lambda *_: (8, 16))
    config = config_of(four_classes, tmp_path / "out", suite="imagenet-full", format="jpg", further_seeds=1)
    with one_thread():
        figures = run_study(config, lambda _: None, silent, two_methods())
    assert figures["failures"] == {} and figures["compared_images"] == {config.judge: 16, config.extractor: 12}
    rows = {table: [row for row in figures["rows"] if row["table"] == table] for table in (EQUAL_IMAGES, BY_COUNT)}
    assert {row["recipe"] for row in rows[EQUAL_IMAGES]} == {"real", "plain", "prism"}
    assert {f["reference"] for row in rows[EQUAL_IMAGES] for f in row["figures"]} == {str(four_classes / "val")}
    assert Counter((row["recipe"], row["images"]) for row in rows[BY_COUNT]) == {("plain", 8): 1, ("prism", 8): 1}
    shards = Path(config.out, "sets", "plain", "seed-0", "shards")
    assert ShardSet(shards).image_format == "jpg"
    assert f"real images, {four_classes / 'val'}" in Path(config.out, REPORT).read_text()
    with pytest.raises(UserError, match=r"format jpg there, png now"):  # the default, which folders of old do not name
        Experiment(replace(config, format="png"), print, silent, two_methods())
    real = config.reference, config.real
    with pytest.raises(UserError, match="of other settings"):
        Experiment(replace(config, reference=real[1], real=real[0]), print, silent, two_methods())


@pytest.mark.slow
def test_what_is_made_before_a_set_is_of_the_studys_classes(four_classes: Path, tmp_path: Path) -> None:
    methods = tuple(prepared_methods()[name] for name in ("ddis", "diffdfkd"))
    with one_thread():
        figures = run_study(config_of(four_classes, tmp_path / "out"), lambda _: None, silent, methods)
    assert figures["failures"] == {}
    assert {row["recipe"] for row in figures["rows"]} == {"real", "ddis", "diffdfkd"}


def test_without_real_images_there_is_no_ceiling(four_classes: Path, tmp_path: Path) -> None:
    said: list[str] = []
    config = config_of(four_classes, tmp_path / "out", suite="imagenet")
    with one_thread():
        figures = run_study(replace(config, real="none"), said.append, silent, two_methods()[:1])
    assert {row["recipe"] for row in figures["rows"]} == {"plain"} and figures["gap_closed"] is None
    assert any("real: left out, no real images are given for it (--real)" in line for line in said)
    assert CEILING.name not in figures["curves"] and Path(config.out, RESULTS).exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": "7"}, "--images 7: 4 classes need 2 images each, give at least 8"),
        ({"vocabulary": "fashion"}, "the teacher knows 4 classes, the vocabulary fashion has 10"),
        ({"reference": "{world}/nowhere"}, "is neither one of .* nor a folder of images or shards"),
        ({"reference": "imagenet-val@{world}/val"}, "has ImageNet's 1000 classes, the classifier knows 4"),
        ({"real": "{world}/val/0"}, "holds images whose classes nothing says: give a folder for each class"),
        ({"images": "200"}, "200 images asked for, but class 0 has only 30 images, not 50"),
        ({"dtype": "float8"}, "dtype"),
    ],
)
def test_what_cannot_be_is_refused_with_its_cure(
    four_classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, str], message: str
) -> None:
    out = tmp_path / "out"
    given = {name: value.format(world=four_classes) for name, value in changes.items()}
    assert main(options(four_classes, out, **given)) == EXIT_ERROR
    assert re.search(message, capsys.readouterr().err)
    assert not out.exists()


@pytest.mark.parametrize("name", SUITES)
@pytest.mark.parametrize("quick", [False, True])
def test_what_a_suite_has_where_nothing_else_is_given(name: str, quick: bool) -> None:
    fields = lay_over(StudyConfig, default_fields(StudyConfig), usual(name, quick), "suite")
    config = build(StudyConfig, {**fields, "suite": name, "quick": quick})
    classes = 1000 if name.startswith("imagenet") else 10
    assert min(config.images, config.trial_images, config.extractor_images) >= 2 * classes
    assert config.images % classes == 0 and (config.vocabulary == "fashion") == (classes == 10)
    assert not {"trials", "grid"} & usual(name, quick).keys()


def test_a_suite_of_imagenet_searches_as_much_and_has_no_oracle() -> None:
    config = StudyConfig(**usual("imagenet", False))
    full, missing = suite("imagenet-full")
    assert {m.name for m in full} == {m.name for m in (*MAIN, *FURTHER)} - {"oracle"} and missing == ()
    fashion = {method.name: method for method in (*MAIN, *FURTHER)}
    for method in full:
        assert len(method.grid) in (0, TRIALS) and bool(method.grid) == bool(fashion[method.name].grid)
        for chosen in method.grid or ({},):
            made = synthesis_config(config, method, chosen=chosen, images=2000, seed=0)
            assert (made.vocabulary, made.format, made.sampler.dtype) == ("imagenet-1k", "jpg", "bfloat16")
            if made.sampler.guidance is not None:
                assert made.sampler.guidance.decoder == ("kl" if method.exact else "tiny@224")


def test_a_file_says_what_a_suite_would(four_classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the suite's own values only those are taken that neither flag nor file gives."""
    path = tmp_path / "study.yaml"
    path.write_text("suite: imagenet\nimages: 7\n")
    line = options(four_classes, tmp_path / "out")
    del line[line.index("--images") : line.index("--images") + 2]
    assert main([*line, "--config", str(path)]) == EXIT_ERROR
    assert "--images 7: 4 classes" in capsys.readouterr().err


def numbered(count: int, classes: Tensor) -> MemorySource:
    pixels = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 2, 2)
    return MemorySource("n", pixels, classes)


def test_rows_are_counted_on_from_one_source_to_the_next() -> None:
    first, second = numbered(3, torch.tensor([5, 6, 7])), numbered(2, torch.tensor([8, 9]))
    rows = torch.tensor([4, 0, 2, 3])
    chosen = Chosen([first, second], rows)
    assert len(chosen) == 4 and labels_of(chosen).tolist() == [9, 5, 7, 8]
    assert [int(chosen.image(row)[0, 0, 0]) for row in range(4)] == [1, 0, 2, 0]


def test_images_without_classes_have_no_labels(four_classes: Path) -> None:
    with pytest.raises(UserError, match="a folder for each class"):
        labels_of(FolderSource(four_classes / "val" / "0", CLASSES, None))
