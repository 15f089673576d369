"""``--weights`` goes the whole way: a user's own network guides, labels and teaches."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

import prism_fast
from prism_fast.cli import main
from prism_fast.commands.weights import WEIGHTS, add_weights
from prism_fast.data.shards import ShardSet
from prism_fast.errors import UserError
from prism_fast.recipes.command_line import CommandLine
from prism_fast.synthesis.config import SynthesisConfig
from prism_fast.teachers.load import load_teacher
from tests.study.worlds import TEST_IMAGES, one_thread, use_fake_images
from tests.teachers import own_networks
from tests.tiny import save_tiny_pipeline

MODULE = "networks_of_the_command_line"
CLASSES = {index: {"name": f"thing {index}", "gloss": "of some kind"} for index in range(4)}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder one is in, with a pipeline, code of one channel, and imported weights."""
    save_tiny_pipeline(tmp_path / "pipeline")
    shutil.copy(own_networks.__file__, tmp_path / f"{MODULE}.py")
    (tmp_path / "weights").mkdir()
    network = own_networks.grey()
    torch.nn.init.normal_(network[-1].weight)
    save_file(network.state_dict(), tmp_path / "weights" / "model.safetensors")
    settings = {"input_size": 24, "mean": 0.5, "std": 0.2, "channels": 1, "classes": CLASSES}
    (tmp_path / "weights" / "teacher.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.chdir(tmp_path)
    with one_thread():
        yield tmp_path
    sys.modules.pop(MODULE, None)


def test_from_weights_to_a_student(place: Path) -> None:
    own = ["--teacher", f"{MODULE}:grey", "--weights", "weights"]
    what = ["--pipeline", "./pipeline", "--vocabulary", "weights/teacher.yaml", "--images", "8", "--batch", "4"]
    how = ["--sampler.steps", "2", "--pilot-images", "1", "--device", "cpu", "--out", "images"]
    assert main(["synthesize", *own, *what, *how]) == 0
    told = yaml.safe_load((place / "images" / "config.yaml").read_text())
    assert told["teacher"] == f"{MODULE}:grey@weights"
    shards = ShardSet("images")
    image, _, logits = shards.sample(5)
    teacher = load_teacher(told["teacher"])
    torch.testing.assert_close(
        torch.as_tensor(logits).float(),
        teacher.outputs(torch.as_tensor(image)[None] / 255).logits[0],
        rtol=2e-3,
        atol=2e-3,
    )
    assert tuple(shards.class_names) == teacher.label_names == tuple(entry["name"] for entry in CLASSES.values())
    assert main(["distill", *own, "--data", "images", "--out", "run", "--steps", "2", "--batch", "4"]) == 0
    assert load_teacher("run/student").num_classes == 4


def test_a_pilot_of_ones_own_network(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = ["--teacher", f"{MODULE}:grey", "--weights", "weights", "--vocabulary", "weights/teacher.yaml"]
    how = ["--pipeline", "./pipeline", "--batch", "4", "--sampler.steps", "2", "--pilot-images", "2", "--device", "cpu"]
    assert main(["pilot", *own, *how, "--scales", "[0.2]", "--guided-images", "4", "--out", "pilot"]) == 0
    text = capsys.readouterr().out
    assert f"--teacher {MODULE}:grey@weights --vocabulary weights/teacher.yaml" in text and "thing 3" in text
    assert {path.name for path in (place / "pilot").iterdir()} >= {"pilot.json", "pilot.html", "agreement.png"}


def test_the_name_goes_wherever_a_teacher_is_named(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = prism_fast.compile("./pipeline", teacher=f"{MODULE}:grey@weights")
    assert len(pipe("a coat", num_inference_steps=2, seeds=[1], classes=[3]).images) == 1
    save_file(own_networks.of_fashion().state_dict(), place / "ten.safetensors")
    (place / "teacher.yaml").write_text("{input_size: 28, mean: [0.5, 0.5, 0.5], std: [0.2, 0.2, 0.2]}")
    with pytest.MonkeyPatch.context() as patch:
        use_fake_images(patch)
        assert main(["evaluate", f"{MODULE}:of_fashion@ten.safetensors", "--device", "cpu"]) == 0
    assert f"on {TEST_IMAGES} real images" in capsys.readouterr().out


def teacher_of(*arguments: str) -> str:
    parsed = CommandLine(program="x", description="", kind=SynthesisConfig, options=[WEIGHTS]).parse(arguments)
    add_weights(parsed)
    return str(parsed.fields["teacher"])


def test_the_flag_is_part_of_the_name(tmp_path: Path) -> None:
    assert teacher_of("--teacher", "a:b", "--weights", "x/y@z") == "a:b@x/y@z"
    assert teacher_of("--teacher", "a:b@c") == "a:b@c"
    assert teacher_of() == "fashion"
    for wrong, message in (
        (("--teacher", "a:b@c"), "names its weights already"),
        ((), "'fashion' brings its own weights"),
    ):
        with pytest.raises(UserError, match=message):
            teacher_of(*wrong, "--weights", "x")


def test_the_flag_replaces_the_weights_of_a_file(tmp_path: Path) -> None:
    """A saved ``config.yaml`` has them in the name; flags are above files."""
    file = tmp_path / "config.yaml"
    file.write_text("teacher: a:b@old\n")
    assert teacher_of("--config", str(file)) == "a:b@old"
    assert teacher_of("--config", str(file), "--weights", "new") == "a:b@new"
