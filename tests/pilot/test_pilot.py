"""``prism-fast pilot`` from the command line: on tiny random networks, and on a built-in world with a wrong list."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from prism_fast.cli import EXIT_ERROR, main
from prism_fast.config import canonical
from prism_fast.pilot.config import PilotConfig
from prism_fast.pilot.page import pilot_page
from prism_fast.pilot.pictures import matrix_picture, samples_picture
from prism_fast.pilot.run import FIGURES, MATRIX, PAGE, SAMPLES, look
from prism_fast.pilot.run import World as PilotWorld
from prism_fast.pilot.text import pilot_text
from prism_fast.prompts import build_prompts, load_vocabulary
from prism_fast.recipes.fields import build
from prism_fast.sampling.config import GuidanceConfig, SamplerConfig
from prism_fast.synthesis.config import SynthesisConfig
from prism_fast.synthesis.job import synthesize
from prism_fast.synthesis.models import Models
from prism_fast.synthesis.pilot import PILOT_FILE
from prism_fast.zoo.fashion_captions import GLOSSES, NAMES
from tests.pilot.worlds import BATCH, Replay, built_in, teacher
from tests.study.worlds import World, make_world, one_thread
from tests.tiny import save_tiny_decoder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


def arguments(world: World, out: Path, *more: str) -> list[str]:
    words = ["pilot", "--pipeline", str(world.pipeline), "--teacher", str(world.teacher), "--device", "cpu"]
    words += [
        "--pilot_images",
        "3",
        "--batch",
        "8",
        "--sampler.steps",
        "2",
        "--guided_images",
        "10",
        "--scales",
        "[0.1,0.4]",
    ]
    return [*words, "--out", str(out), *more]


def test_everything_is_written_and_told(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "pilot"
    call = arguments(world, out, "--price-per-hour", "2", "--images", "5000", "--judge", str(world.judge))
    with one_thread():
        assert main(call) == 0
    text = capsys.readouterr().out
    assert "WARNING: " in text and "cure: " in text  # random networks do not agree
    assert "images/s: " in text and "peak memory: " in text and "at 2 an hour" in text
    assert "prism-fast synthesize --pipeline" in text and "--images 5000" in text
    found = json.loads((out / FIGURES).read_text())
    assert len(found["classes"]) == 10 and sum(count for *_, count in found["matrix"]) == 30
    assert [row["scale"] for row in found["scales"]["table"]] == [0, 0.1, 0.4]
    assert len(found["gate"]["tau"]) == 10 and found["cost"]["pilot_images"] == 30
    page = (out / PAGE).read_text()
    assert 'src="http' not in page and "href" not in page and page.count("data:image/png;base64,") == 2
    for name in (MATRIX, SAMPLES):
        assert min(Image.open(io.BytesIO((out / name).read_bytes())).size) > 100
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with one_thread():
        assert main(call) == 0
    assert "holds this pilot already" in capsys.readouterr().out
    assert main([*call, "--seed", "4"]) == EXIT_ERROR
    assert "give another --out" in capsys.readouterr().err
    assert before == {path.name: path.read_bytes() for path in out.iterdir()}


def test_thresholds_are_those_that_a_synthesis_freezes(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with one_thread():
        assert main(arguments(world, tmp_path / "pilot", "--scales", "[]", "--images", "10")) == 0
        found = json.loads((tmp_path / "pilot" / FIGURES).read_text())
        config = found["config"]
        fields = {name: config[name] for name in ("pipeline", "teacher", "device", "pilot_images")}
        planned = build(PilotConfig, config).planned()
        assert isinstance(planned, SynthesisConfig) and all(getattr(planned, k) == v for k, v in fields.items())
        synthesize(planned, tmp_path / "images")
    frozen = json.loads((tmp_path / "images" / PILOT_FILE).read_text())["gate"]
    assert found["gate"]["tau"] == frozen["tau"] and found["gate"]["delta"] == frozen["delta"]
    assert found["scales"] is None and "no guided images were drawn" in capsys.readouterr().out


def test_a_pilot_is_of_one_decoder(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny, out = save_tiny_decoder(tmp_path / "tiny", seed=1), tmp_path / "pilot"
    fast = ["--sampler.level", "fast", "--sampler.guidance.decoder", "tiny", "--sampler.guidance.tiny", str(tiny)]
    call = arguments(world, out, "--scales", "[]", *fast)
    with one_thread():
        assert main(call) == main(call) == 0
    assert len(json.loads((out / FIGURES).read_text())["guidance_decoder"]) == 16
    save_tiny_decoder(tiny, seed=2)
    assert main(call) == EXIT_ERROR
    assert "give another --out" in capsys.readouterr().err


def test_some_classes_of_many(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with one_thread():
        assert main(arguments(world, tmp_path / "pilot", "--classes", "2-3,coat", "--recipe", "plain")) == 0
    found = json.loads((tmp_path / "pilot" / FIGURES).read_text())
    assert [row["index"] for row in found["classes"]] == [2, 3, 4]
    assert {asked for asked, *_ in found["matrix"]} == {2, 3, 4}
    assert found["scales"] is None and found["cost"]["guided_images_per_s"] is None  # plain does not guide
    assert "--recipe plain" in found["command"]
    capsys.readouterr()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--classes", "12"], "has the classes 0-9"),
        (["--scales", "[-1]"], "scales must be numbers above 0"),
        (["--pilot_images", "0"], "pilot_images must be a whole number"),
        (["--judge", "./nowhere"], "no such teacher folder"),
        (["--vocabulary", "fasion"], "unknown vocabulary"),
        (["--batch", "2", "--sampler.compute_batch", "2"], "same setting"),
    ],
)
def test_what_cannot_be(
    world: World, more: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(world, tmp_path / "pilot", *more)) == EXIT_ERROR
    assert message in capsys.readouterr().err
    assert not (tmp_path / "pilot").exists()


def test_another_folder_is_left_alone(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    assert main(arguments(world, tmp_path / "mine")) == EXIT_ERROR
    assert "holds something else than this pilot" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_a_vocabulary_in_another_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The built-in pipeline and teacher, with a user's list in which trousers and bag have changed places."""
    senses = [{"name": name, "gloss": gloss} for name, gloss in zip(NAMES, GLOSSES, strict=True)]
    senses[1], senses[8] = senses[8], senses[1]
    (tmp_path / "mine.json").write_text(json.dumps(senses))
    call = ["pilot", "--vocabulary", str(tmp_path / "mine.json"), "--out", str(tmp_path / "out"), "--scales", "[]"]
    call += ["--sampler.steps", "6", "--batch", "40", "--device", "cpu"]
    with one_thread():
        assert main(call) == 0
    text = capsys.readouterr().out
    assert "bag (1) → output 8" in text and "trousers (8) → output 1" in text
    (found,) = [
        one for one in json.loads((tmp_path / "out" / FIGURES).read_text())["concerns"] if one["classes"] == [1, 8]
    ]
    assert found["kind"] == "permuted" and "order of the teacher's outputs" in found["cure"]


def looked_at(images: torch.Tensor, bad: list[int], promptless: tuple[int, ...] = ()) -> tuple[dict, str, str]:
    """Figures, text and page of a pilot whose pipeline draws ``images``, guided or not."""
    vocabulary, config = load_vocabulary("fashion"), PilotConfig(
        sampler=SamplerConfig(compute_batch=BATCH, guidance=GuidanceConfig()), scales=(0.1,), guided_images=20
    )  # fmt: skip
    models = Models(
        teacher=teacher(), make_sampler=lambda *_: Replay(built_in().rows, images, bad), pipeline_fingerprint="0" * 16,
        fits=None, device=torch.device("cpu"),
    )  # fmt: skip
    prompts = build_prompts(vocabulary, config.prompts)
    classes = [c for c in range(10) if c not in promptless]
    world = PilotWorld(
        vocabulary=vocabulary, prompts=prompts, models=models, judge=None, classes=classes, promptless=promptless
    )
    with one_thread():
        found, drawn, seen = look(config, world)
    head = {
        "config": canonical(config),
        "environment": {"device": "cpu"},
        "judge": None,
    }
    found = json.loads(json.dumps({**head, **found}, allow_nan=False))
    pictures = matrix_picture(seen, vocabulary.names), samples_picture(drawn, seen, vocabulary.names)
    return found, pilot_text(found, "out"), pilot_page(found, *pictures)


def test_no_image_is_finite() -> None:
    found, text, _ = looked_at(built_in().images, list(range(160)))
    assert [one["kind"] for one in found["concerns"]] == ["flat", "unusable"]
    assert found["gate"] is None and found["scales"] is None and found["agreement"]["images"] == 0
    assert "0 of 10 classes are usable" in text and "160 with latents that are not finite" in " ".join(text.split())


def test_one_class_is_not_finite_and_one_has_no_prompts() -> None:
    found, text, page = looked_at(built_in().images, [n for n in range(160) if n % 10 == 2], promptless=(9,))
    assert [row["index"] for row in found["classes"]] == list(range(9))
    assert found["classes"][2]["tau"] is None and found["classes"][3]["tau"] is not None
    (fewer,) = [one for one in found["concerns"] if one["kind"] == "unusable"]
    assert fewer["title"] == "8 of 10 classes are usable" and "no prompts: boot (9)" in fewer["evidence"]
    assert "no scale is proposed" in text and "No scale is proposed" in page  # the guided images are the unguided ones


def test_names_are_escaped_in_the_page() -> None:
    found, *_ = looked_at(built_in().images, [])
    found["classes"][0]["name"] = found["concerns"][0]["title"] = "<script>alert(1)</script>"
    assert "<script>" not in pilot_page(found, b"", b"")
