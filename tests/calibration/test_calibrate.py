"""``prism-fast calibrate`` and ``fit-decoder`` on tiny random networks."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from prism_fast.calibration.config import CalibrateConfig
from prism_fast.calibration.measure import Bench, Drawn, Measured, Walk, compare, cosine, kept_share
from prism_fast.calibration.options import EXACT, Option, decoder_fingerprints, find_options
from prism_fast.calibration.proposal import flags, propose, settings
from prism_fast.cli import EXIT_ERROR, main
from prism_fast.errors import UserError
from prism_fast.prompts import build_prompts, load_vocabulary
from prism_fast.recipes.command_line import CommandLine
from prism_fast.sampling.config import GuidanceConfig, SamplerConfig
from prism_fast.synthesis.config import SynthesisConfig
from prism_fast.synthesis.plan import Plan
from prism_fast.teachers.eager import EagerTeacher
from prism_fast.teachers.load import load_teacher
from tests.study.worlds import World, make_world, one_thread
from tests.tiny import save_tiny_decoder, tiny_pipeline

IMAGES = 6


def _silent(_: int) -> None:
    pass


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny_pipeline(0)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def teacher(world: World) -> EagerTeacher:
    return load_teacher(str(world.teacher))


@dataclasses.dataclass
class Ready:
    bench: Bench
    unguided: Drawn
    reference: Drawn
    walks: list[Walk]

    def measure(self, option: Option) -> Measured:
        return self.bench.measure(option, self.unguided, self.reference, self.walks, _silent)


@pytest.fixture(scope="module")
def ready(pipe: Any, teacher: EagerTeacher) -> Ready:
    with one_thread():
        guidance = GuidanceConfig(gate="none", scale=0.5)
        base = SamplerConfig(steps=6, compute_batch=4, scheduler="ddim", guidance=guidance)
        config = SynthesisConfig(images=IMAGES, sampler=base)
        vocabulary = load_vocabulary("fashion")
        plan = Plan(config, vocabulary, build_prompts(vocabulary, config.prompts))
        bench = Bench(pipe, teacher, base, [plan.row(index) for index in range(IMAGES)], None)
        return Ready(bench, bench.unguided(_silent), *bench.reference(_silent))


def test_no_approximation_has_cosine_one_and_keeps_everything(ready: Ready) -> None:
    found = ready.measure(EXACT)
    assert found.cosine == pytest.approx(1, abs=1e-4)
    assert [value == pytest.approx(1, abs=1e-3) for value in found.cosines] == [True] * 6
    assert all(value == pytest.approx(1, abs=1e-3) for value in found.step_cosines)
    assert found.kept == pytest.approx(1, abs=1e-2) and found.passes(0.95)
    assert found.seconds_per_image > 0
    assert ready.reference.energy < ready.unguided.energy


def test_a_random_direction_has_cosine_zero_and_keeps_little(ready: Ready) -> None:
    found = ready.measure(Option(name="random", knobs=("decoder",), guidance={"direction": "random"}))
    assert found.cosine is not None and abs(found.cosine) < 0.2  # 256 dimensions, mean over steps: about 0.06
    assert found.kept < 0.6 and not found.passes(0.9)


def test_schedules_have_a_cosine_where_they_guide(ready: Ready) -> None:
    sparse = ready.measure(Option(name="s", knobs=("every",), guidance={"every": 2}))
    assert [value is None for value in sparse.cosines] == [False, True] * 3
    assert sparse.cosine == pytest.approx(1, abs=1e-4) and 0 < sparse.kept < 1.2
    reused = ready.measure(Option(name="r", knobs=("every",), guidance={"every": 2, "reuse_gradient": True}))
    new, kept = reused.cosines[::2], reused.cosines[1::2]
    assert all(value == pytest.approx(1, abs=1e-3) for value in new)
    assert all(value is not None and value < 1 - 1e-4 for value in kept)
    features = ready.measure(Option(name="f", knobs=("features",), sampler={"reuse_features": 2}))
    assert features.cosines[0] == pytest.approx(1, abs=1e-3)
    assert features.step_cosines[1] is not None and features.step_cosines[1] < 1 - 1e-6
    late = ready.measure(Option(name="c", knobs=("CFG interval",), sampler={"cfg_start": 0.5}))
    assert late.step_cosines[0] is not None and late.step_cosines[0] < 1 - 1e-6
    assert late.step_cosines[-1] == pytest.approx(1, abs=1e-3)


def test_decoders_are_seen_at_the_same_latents(ready: Ready) -> None:
    full = ready.measure(Option(name="kl@32", knobs=("decoder",), guidance={"decoder": "kl@32"}))
    assert full.cosine == pytest.approx(1, abs=1e-3)
    small = ready.measure(Option(name="kl@16", knobs=("decoder",), guidance={"decoder": "kl@16"}))
    assert small.cosine is not None and -1 <= small.cosine < 0.999


def test_cosine_by_hand() -> None:
    a = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0], [torch.nan, 1.0], [1e-30, 0.0], [2.0, 0.0]])
    b = torch.tensor([[0.0, 3.0], [2.0, 2.0], [1.0, 0.0], [1.0, 1.0], [1e-30, 1e-30], [-1.0, 0.0]])
    found = cosine(a, b)
    torch.testing.assert_close(found[[0, 1, 4, 5]], torch.tensor([0, 1, 0.5**0.5, -1], dtype=torch.float64))
    assert found[2:4].isnan().all()


def test_compare_leaves_padding_and_unguided_steps_out() -> None:
    one = torch.ones(3, 1, 1, 1)
    walk = Walk(states=[0 * one, one, 2 * one[:2]], changes=[one, None])
    guided, steps = compare([(-one, 2 * one), (one, 0 * one)], walk)
    assert guided[0].tolist() == [1, 1] and guided[1].isnan().all()
    assert steps.tolist() == [[1, 1], [-1, -1]]


def test_share_of_the_gain() -> None:
    plain, guided = torch.tensor([0.0, 0.0, 2.0]).double(), torch.tensor([-2.0, -4.0, -4.0]).double()
    assert kept_share(plain, guided, guided) == (1, 0)
    assert kept_share(plain, guided, plain) == (0, 0)
    half, error = kept_share(plain, guided, (plain + guided) / 2)
    assert (half, error) == (pytest.approx(0.5), pytest.approx(0, abs=1e-12))
    assert kept_share(plain, guided, guided.flip(0))[1] > 0
    with pytest.raises(UserError, match="guidance gains nothing here"):
        kept_share(guided, plain, plain)


def _measured(option: Option, kept: float, seconds: float, along: float | None = 1.0) -> Measured:
    return Measured(
        option=option, energy=0.0, kept=kept, kept_error=0.0, seconds_per_image=seconds, cosine=along, cosines=[],
        step_cosines=[],
    )  # fmt: skip


def test_the_proposal_holds_only_what_passes_and_helps() -> None:
    def option(knob: str, name: str) -> Option:
        return Option(name=name, knobs=(knob,), guidance={knob: name})

    exact = _measured(EXACT, 1.0, 10.0)
    singles = [
        _measured(option("decoder", "bad"), 0.5, 1.0),
        _measured(option("decoder", "askew"), 0.99, 1.5, 0.4),
        _measured(option("decoder", "good"), 0.95, 4.0),
        _measured(option("decoder", "better"), 0.99, 5.0),
        _measured(option("every", "two"), 0.93, 6.0),
        _measured(option("interval", "late"), 0.97, 7.0, None),
        _measured(option("features", "slow"), 0.99, 12.0),
    ]
    results = {"good + two": (0.85, 3.0), "good + late": (0.92, 3.5)}
    found = propose(exact, singles, 0.9, lambda both: _measured(both, *results[both.name]))
    assert [one.option.name for one in found.tried] == list(results)
    assert found.chosen.option.name == "good + late" and found.chosen.passes(0.9)
    assert settings(found.chosen.option) == {
        "sampler": {"level": "fast", "guidance": {"decoder": "good", "interval": "late"}}
    }
    none = propose(exact, singles, 1.0, lambda _: pytest.fail("nothing to combine"))
    assert none.chosen is exact and settings(none.chosen.option) == {"sampler": {"level": "exact"}}


def test_what_to_paste_is_what_was_measured() -> None:
    both = Option(name="a", knobs=("every",), guidance={"every": 2, "reuse_gradient": True}).together(
        Option(name="b", knobs=("features",), sampler={"reuse_features": 2})
    )
    line = CommandLine(program="prism-fast synthesize", description="", kind=SynthesisConfig, recipe="prism")
    fields = line.parse(flags(settings(both)).split()).fields["sampler"]
    base = SamplerConfig(guidance=GuidanceConfig())
    guidance = GuidanceConfig(**fields.pop("guidance"))
    assert SamplerConfig(**fields, guidance=guidance) == both.applied(base)


def test_options_there_are(pipe: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PRISM_FAST_CACHE", str(tmp_path))
    base = SamplerConfig(guidance=GuidanceConfig(start=0.2, every=2), cfg_scale=3.0)
    options, left_out = find_options(pipe, base, (32, 32))
    names = [option.name for option in options]
    assert [name for name in names if name.startswith("kl")] == ["kl@16", "kl@8"]
    assert set(left_out) == {"tiny", "tiny@16", "tiny@8", "linear"} and "fit-decoder" in left_out["linear"]
    assert "gradient every 4, reused" in names and "guidance 0.4 to 1" in names and "features every 3" in names
    assert len(set(names)) == len(names)
    for option in options:
        assert option.applied(base).level == "fast"
    plain = [o.name for o in find_options(pipe, dataclasses.replace(base, cfg_scale=1.0), (32, 32))[0]]
    assert not any("CFG" in name for name in plain)


def test_a_tiny_decoder_of_the_users_is_an_option(pipe: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PRISM_FAST_CACHE", str(tmp_path))
    place = str(save_tiny_decoder(tmp_path / "tiny"))
    base = SamplerConfig(guidance=GuidanceConfig(tiny=place))
    options, left_out = find_options(pipe, base, (32, 32))
    tiny = {option.name: option for option in options if option.name.startswith("tiny")}
    assert set(tiny) == {"tiny", "tiny@16", "tiny@8"} and set(left_out) == {"linear"}
    assert settings(tiny["tiny@8"])["sampler"]["guidance"] == {"decoder": "tiny@8", "tiny": place}
    found = decoder_fingerprints(pipe, options)
    assert list(found) == ["tiny"]
    save_tiny_decoder(place, seed=1)
    assert decoder_fingerprints(pipe, options)["tiny"] != found["tiny"]
    lost = dataclasses.replace(base, guidance=GuidanceConfig(tiny=str(tmp_path / "nowhere")))
    with pytest.raises(UserError, match="no tiny decoder"):
        find_options(pipe, lost, (32, 32))


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"guidance": None}, "needs sampler.guidance"),
    ({"guidance": GuidanceConfig(scale=0.0)}, "needs sampler.guidance"),
    ({"guidance": GuidanceConfig(direction="random")}, "leave guidance.direction at energy"),
    ({"guidance": GuidanceConfig(at="latent"), "level": "reference"}, "nothing to calibrate"),
    ({"guidance": GuidanceConfig(decoder="tiny"), "level": "fast"}, "guidance.decoder: calibrate starts from"),
    ({"guidance": GuidanceConfig(), "level": "fast", "reuse_features": 2}, "reuse_features: calibrate starts from"),
]


@pytest.mark.parametrize(("sampler", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_samplers_that_cannot_be_calibrated(sampler: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        CalibrateConfig(sampler=SamplerConfig(**sampler))


def _arguments(world: World, out: Path, *more: str) -> list[str]:
    networks = ["--pipeline", str(world.pipeline), "--teacher", str(world.teacher), "--device", "cpu"]
    sizes = ["--images", "4", "--sampler.steps", "3", "--pilot-images", "2", "--sampler.guidance.scale", "0.5"]
    return ["calibrate", *networks, *sizes, "--out", str(out), *more]


def test_the_command_from_end_to_end(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRISM_FAST_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "new" / "c.json"
    tiny = tmp_path / "tiny"
    flags = ["--fidelity", "0.5", "--sampler.guidance.tiny", str(save_tiny_decoder(tiny))]
    with one_thread():
        assert main(_arguments(world, out, *flags)) == 0
    text = capsys.readouterr().out
    found = json.loads(out.read_text())
    assert f"page: {out.with_suffix('.html')}" in text and "left out: linear: no linear decoder" in text
    assert found["images"] == 4 and len(found["timesteps"]) == 3 and found["fidelity"] == 0.5
    assert found["config"]["sampler"]["guidance"]["scale"] == 0.5
    assert found["unguided"]["energy"] > found["reference"]["energy"]
    for one in found["options"]:
        assert len(one["cosines"]) == len(one["step_cosines"]) == 3 and one["seconds_per_image"] > 0
        assert one["cosine"] is None or -1 <= one["cosine"] <= 1.000001
        assert one["name"] in text
    chosen = found["proposal"]
    assert chosen["passes"] and chosen["energy_kept"] >= 0.5 and chosen["flags"] in text
    assert yaml.safe_load(chosen["yaml"]) == chosen["settings"]
    passing = {one["name"] for one in found["options"] if one["passes"]} | {"exact"}
    assert set(chosen["name"].split(" + ")) <= passing
    page = out.with_suffix(".html").read_text()
    assert page.count("<svg") >= 4 and "http" not in page.replace("http-equiv", "")
    before = out.read_bytes(), page
    out.with_suffix(".html").unlink()
    with one_thread():
        assert main(_arguments(world, out, *flags)) == 0  # the same again: kept, the page drawn anew
    assert "holds this calibration already" in capsys.readouterr().out
    assert (out.read_bytes(), out.with_suffix(".html").read_text()) == before
    assert main(_arguments(world, out, *flags, "--images", "3")) == EXIT_ERROR
    assert "holds something else than this calibration" in capsys.readouterr().err
    save_tiny_decoder(tiny, seed=1)  # what was measured is another one
    assert main(_arguments(world, out, *flags)) == EXIT_ERROR
    assert "holds something else than this calibration" in capsys.readouterr().err
    assert (out.read_bytes(), out.with_suffix(".html").read_text()) == before


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--fidelity", "1.5"], "fidelity must be a number from 0 to 1"),
        (["--images", "0"], "images must be a whole number from 1"),
        (["--recipe", "plain", "--sampler.guidance", "null"], "needs sampler.guidance"),
        (["--batch", "2", "--sampler.compute_batch", "3"], "the same setting"),
        (["--vocabulary", "fasion"], "unknown vocabulary"),
        (["--fidelty", "1"], "did you mean --fidelity"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    world: World, more: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(_arguments(world, tmp_path / "c", *more)) == EXIT_ERROR
    error = capsys.readouterr().err.splitlines()
    assert message in error[-1] and error[-1].startswith("prism-fast: error: ")
    assert not (tmp_path / "c").exists()


def test_other_files_are_left_alone(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "calibration.html").write_text("mine")
    assert main(_arguments(world, tmp_path)) == EXIT_ERROR
    (tmp_path / "notes.json").write_text("[]")
    assert main(_arguments(world, tmp_path / "notes.json")) == EXIT_ERROR
    assert "something else than this calibration" in capsys.readouterr().err
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "calibration.html": "mine",
        "notes.json": "[]",
    }


def test_fit_decoder_fits_once(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRISM_FAST_CACHE", str(tmp_path / "cache"))
    command = ["fit-decoder", "--pipeline", str(world.pipeline), "--images", "5", "--batch", "3", "--steps", "2"]
    command += ["--device", "cpu", "--scheduler", "euler", "--cfg-scale", "1"]
    assert main(command) == 0
    text = capsys.readouterr().out
    (file,) = (tmp_path / "cache" / "decoders").iterdir()
    assert "R²: red " in text and "rms error" in text and str(file) in text
    first, made = file.read_bytes(), file.stat().st_ino
    assert main([*command, "--steps", "3"]) == 0
    text = capsys.readouterr().out
    assert "fitted already" in text and "(images 5, scheduler euler, steps 2, cfg_scale 1.0, seed 0, pipeline " in text
    assert file.stat().st_ino == made
    file.write_bytes(first + b" ")
    assert main(command) == EXIT_ERROR
    assert "is damaged" in capsys.readouterr().err
    assert main([*command, "--force"]) == 0
    assert file.read_bytes() == first
    assert main([*command, "--steps", "3", "--force"]) == 0
    assert file.read_bytes() != first
    from prism_fast.pipeline.decoder import load_decoder
    from prism_fast.pipeline.load import load_pipeline

    assert load_decoder(load_pipeline(str(world.pipeline)), "linear").name == "linear"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--images", "0"], "images must be a whole number"),
        (["--batch", "0"], "compute_batch must be a whole number"),
        (["--pipeline", "./nowhere"], "no such pipeline folder"),
        (["--vocabulary", "fasion"], "unknown vocabulary"),
        (["--dtype", "int8"], "--dtype takes one of float32, bfloat16, float16, not 'int8'"),
    ],
)
def test_fits_that_are_asked_for_wrongly(
    world: World, more: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("PRISM_FAST_CACHE", str(tmp_path / "cache"))
    assert main(["fit-decoder", "--pipeline", str(world.pipeline), "--device", "cpu", *more]) == EXIT_ERROR
    assert message in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()
