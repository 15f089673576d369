"""The methods of the study: what each is, how settings are chosen, and what rows add up to."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prism_fast.config import canonical
from prism_fast.distill.config import DistillConfig, LossConfig
from prism_fast.errors import UserError
from prism_fast.inversion.config import InversionConfig
from prism_fast.recipes import TOKENS, load_recipe, recipe_names
from prism_fast.recipes.fields import build, lay_over
from prism_fast.study import page
from prism_fast.study.costs import Budget, affordable
from prism_fast.study.expected import Expected
from prism_fast.study.experiment import BY_COUNT, EQUAL_COMPUTE, EQUAL_IMAGES, _identity
from prism_fast.study.methods import FURTHER, MAIN, TRIALS, Method, counts, suite, synthesis_config
from prism_fast.study.preparations import first_student, inverted_images, learned_words
from prism_fast.study.results import claims, comparisons, controls, gap, gap_by_seed, of, overlap_comparisons
from prism_fast.study.stages import Stages
from prism_fast.study.student_config import student_config
from prism_fast.study.study_charts import accuracy_chart, curve_charts, scale_charts
from prism_fast.study.study_config import SUITES, StudyConfig, usual
from prism_fast.study.trials import Trial, choose
from prism_fast.tokens.config import TokensConfig

STUDY = StudyConfig(images=100, steps=9, batch=8)
METHODS = {method.name: method for method in (*MAIN, *FURTHER)}


def config_of(name: str, images: int = 100, seed: int = 0) -> Any:
    method = METHODS[name]
    followed = METHODS[method.follows] if method.follows else method
    chosen = followed.grid[-1] if followed.grid else {}
    return synthesis_config(STUDY, method, chosen=chosen, images=images, seed=seed)


def test_every_tuned_method_has_the_same_number_of_different_trials() -> None:
    tuned = [method for method in METHODS.values() if method.grid]
    assert {"plain-cfg", "plain-reject", "dm-kd", "dda-sdedit", "prism"} == {method.name for method in tuned}
    for method in tuned:
        assert len(method.grid) == TRIALS == len({str(fields) for fields in method.grid})


def test_a_suite_names_what_it_leaves_out() -> None:
    there, missing = suite("fashion", known=["plain", "prism"])
    assert [method.name for method in there] == ["plain", "prism"]
    assert set(missing) == {m.name for m in MAIN} - {"plain", "prism"}
    full, _ = suite("fashion-full", known=recipe_names())
    assert {m.name for m in full} >= {"eda", "dpe", "no-gate", "scale-away", "energy-bn"}
    assert len(MAIN) == 8 and len(METHODS) == len(MAIN) + len(FURTHER)
    assert suite("fashion-full")[1] == () and [method.name for method in full] == list(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_makes_a_set_of_the_studys_sizes(name: str) -> None:
    config = config_of(name, seed=3)
    recipe = METHODS[name].made_of
    assert recipe in recipe_names()  # what config.yaml says can be asked for again
    assert (config.recipe, config.images, config.seed, config.sampler.compute_batch) == (recipe, 100, 3, 8)
    assert (config.sampler.reuse_features == 1) == METHODS[name].exact
    guided = ("prism", "eda", "random-direction", "ddis", "diffdfkd")
    assert (config.sampler.guidance is not None) == (METHODS[name].made_of in guided)


def test_rivals_are_drawn_as_their_papers_say_whatever_the_others_share() -> None:
    """Each trial of DDA at one strength; steps and guidance of DDIS and DiffDFKD their own."""
    strengths = []
    for fields in METHODS["dda-sdedit"].grid:
        config = synthesis_config(STUDY, METHODS["dda-sdedit"], chosen=fields, images=100, seed=0)
        assert config.sampler.image_to_image is not None and config.filter is not None
        strengths += config.sampler.image_to_image.strengths
        assert (config.filter.min_cosine, config.sampler.steps, config.sampler.cfg_stop) == (0.5, 9, 1.0)
    assert strengths == [0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
    for name, steps in (("ddis", 30), ("diffdfkd", 50)):
        sampler = config_of(name).sampler
        assert METHODS[name].grid == () and sampler.scheduler == "ddim"
        assert (sampler.steps, sampler.guidance.start, sampler.guidance.every) == (steps, 0.0, 1)
        assert not sampler.guidance.reuse_gradient and sampler.reuse_features == 1


def test_a_method_is_another_one_with_another_preparation() -> None:
    dda, ddis = METHODS["dda-sdedit"], METHODS["ddis"]
    others = [
        replace(dda, prepare=None),
        *(replace(dda, prepare=inverted_images(InversionConfig(**fields))) for fields in (
            {"per_class": 10, "steps": 151}, {"per_class": 11, "steps": 150}, {"steps": 150, "bn_weight": 2.0},
        )),
    ]  # fmt: skip
    identities = [_identity(method) for method in (dda, *others)]
    assert len(set(identities)) == len(identities)
    words = TokensConfig(**load_recipe("ddis", TOKENS))
    for fields in ({"steps": 16}, {"stop_at": None}, {"start": None}, {"guidance_scale": 0.0}):
        assert _identity(ddis) != _identity(replace(ddis, prepare=learned_words(replace(words, **fields))))
    steps = {_identity(replace(ddis, prepare=first_student(per_class=20, steps=n))) for n in (300, 301)}
    assert len(steps) == 2
    # what the study itself decides is none of it
    same = replace(ddis, prepare=learned_words(replace(words, seed=7, device="cpu", teacher="other")))
    assert _identity(same) == _identity(ddis)


def test_who_follows_takes_the_chosen_values() -> None:
    prism, random, oracle = (
        config_of("prism").sampler,
        config_of("random-direction").sampler,
        config_of("oracle").sampler,
    )
    assert prism.guidance is not None and random.guidance is not None
    assert (random.guidance.scale, random.cfg_scale) == (prism.guidance.scale, prism.cfg_scale) == (0.3, 2.0)
    assert random.guidance.direction == "random"
    assert (oracle.cfg_scale, oracle.steps) == (5.0, 20)
    dpe = config_of("dpe").sampler
    assert dpe.guidance is None and dpe.cfg_scale == 2.0
    scales = {name: config_of(name).sampler.guidance.scale for name in ("scale-away", "scale-half", "scale-double")}
    assert scales == pytest.approx({"scale-away": -0.3, "scale-half": 0.15, "scale-double": 0.6})


def test_ablations_differ_from_prism_in_one_thing() -> None:
    prism = config_of("prism")
    for name, fields in {
        "no-gate": {"gate"}, "interval": {"start", "stop"}, "energy-free": {"class_weight"},
        "energy-class": {"free_weight"}, "energy-entropy": {"entropy_weight"}, "energy-bn": {"bn_weight"},
    }.items():  # fmt: skip
        other = config_of(name)
        assert other.prompts == prism.prompts
        left, right = vars(prism.sampler.guidance), vars(other.sampler.guidance)
        assert {key for key in left if left[key] != right[key]} == fields
    for name, field in {"prism-bare-name": "sense", "prism-no-content": "content", "prism-no-style": "style"}.items():
        other = config_of(name)
        assert other.sampler == prism.sampler and other.sampler.guidance is not None
        left, right = vars(prism.prompts), vars(other.prompts)
        assert {key for key in left if left[key] != right[key]} == {field}


def test_methods_of_a_study_that_has_begun_stay_what_they_are() -> None:
    """With another identity a folder cannot go on: a line changes here with a dated one in the protocol alone."""
    assert {method.name: _identity(method) for method in MAIN} == {
        "plain": "fd57868f1d6b2abc", "plain-cfg": "ffffa134445195cc", "plain-reject": "cbad487aaffc424c",
        "oracle": "f94732700b16a5f0", "random-direction": "773f96c3a890d26d", "dm-kd": "25bb8b90f0e573f9",
        "dda-sdedit": "53cd3484402bc4c6", "prism": "3a1efc5cc541be50",
    }  # fmt: skip


def test_papers_that_say_how_they_train_a_student_have_a_training_of_their_own() -> None:
    shared = student_config(STUDY, "x", Path("x"), 0)
    for name, temperature, hard, kind, milestones in (
        ("dm-kd", 10, 0, "multistep", (0.3, 0.6, 0.9)), ("diffdfkd", 30, 0, "multistep", (0.625, 0.75, 0.875)),
        ("dda-sdedit", 20, 1, "cosine", shared.schedule.milestones),
    ):  # fmt: skip
        own = METHODS[name].own
        assert own is not None
        made = build(DistillConfig, lay_over(DistillConfig, canonical(shared), own, "own loss"))
        assert (made.temperature, made.loss) == (temperature, LossConfig(hard=hard))
        assert (made.schedule.kind, tuple(made.schedule.milestones)) == (kind, tuple(milestones))
        assert (made.optimizer, made.peak_lr, made.momentum, made.ema, made.warmup) == ("momentum", 0.1, 0.9, 0, 0)
        assert made.decay_norms and (made.batch, made.steps, made.augment) == (
            shared.batch,
            shared.steps,
            shared.augment,
        )
    assert {name for name, method in METHODS.items() if method.own} == {"dm-kd", "dda-sdedit", "diffdfkd"}


def test_numbers_of_images_follow_the_studys() -> None:
    assert counts(4000, 10) == (1000, 2000, 4000, 8000, 16000)
    assert counts(usual("fashion", True)["images"], 10) == (20, 50, 100, 200, 400)
    assert counts(20, 10) == (10, 20, 40, 80) and counts(25, 10) == (10, 25, 50, 100)


def colour_of(html: str, name: str, scheme: str) -> str:
    """What ``--c`` is for a method."""
    dark = re.compile(r"@media \(prefers-color-scheme: dark\) \{(.*?)\n\}", re.DOTALL)
    css = dark.sub("", html) + ("".join(dark.findall(html)) if scheme == "dark" else "")
    value = re.findall(rf"\.arm-{name}[ ,][^{{}}]*{{ --c: ([^;]+);", css)[-1]
    return str(re.findall(rf"{value[4:-1]}: (#\w+);", css)[-1] if value.startswith("var") else value)


def contrast(one: str, other: str) -> float:
    """Of WCAG 2.2, from relative luminances; it asks for 3 of what is not text."""
    light = []
    for colour in (one, other):
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        light.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(light) + 0.05) / (min(light) + 0.05)


@pytest.mark.parametrize("name", SUITES)
def test_every_method_has_a_colour_of_its_own_that_is_seen_on_light_and_dark(name: str) -> None:
    names = ["real", *(method.name for method in suite(name)[0])]
    html = page.page("x", [], page.arm_rules(names))
    looks = []
    for scheme, paper in (("light", "#fdfdfc"), ("dark", "#16191d")):
        colours = [colour_of(html, method, scheme) for method in names]
        assert all(contrast(colour, paper) >= 2.9 for colour in colours)
        looks.append(colours)
    assert len(set(zip(*looks, strict=True))) == len(names)


def trial(agreement: float, diversity: float) -> Trial:
    return Trial(fields={}, images=1, agreement=agreement, diversity=diversity, seconds=0.0)


def test_the_most_diverse_trial_that_shows_what_was_asked_for() -> None:
    assert choose([trial(1.0, 2.0), trial(0.95, 3.0), trial(0.9499, 9.0)]) == 1
    assert choose([trial(0.5, 2.0), trial(0.5, 2.0)]) == 0
    assert choose([trial(0.0, 1.0), trial(0.0, 4.0)]) == 1


def test_images_that_a_budget_buys() -> None:
    assert affordable(4000, 1.0, 2.0, 10) == 4000 == affordable(4000, 0.5, 2.0, 10)
    assert affordable(4000, 1.049, 2.0, 10) == 4000 and affordable(4000, 1.0501, 2.0, 10) == 4200
    assert affordable(4000, 1.5037, 2.0, 10) == 6010  # 6014.8, in whole rounds of ten classes
    assert affordable(4000, 3.0, 2.0, 10) == 8000


def rows(table: str, **accuracies: list[float]) -> list[dict[str, Any]]:
    return [
        {
            "recipe": name.replace("_", "-"), "seed": seed, "table": table, "student_accuracy": value,
            "figures": [{"metric": m, "extractor": "judge", "value": value} for m in ("precision", "recall")],
        }
        for name, values in accuracies.items()
        for seed, value in enumerate(values)
    ]  # fmt: skip


def test_what_the_rows_say() -> None:
    """prism is 1, 2 and 3 points above plain, and 0.1, 0, −0.1 above dm-kd; real images are 8 above plain."""
    made = rows(
        EQUAL_IMAGES, real=[0.78, 0.79, 0.80], plain=[0.70, 0.71, 0.72], dm_kd=[0.709, 0.73, 0.751],
        prism=[0.71, 0.73, 0.75],
    )  # fmt: skip
    found = comparisons(made, {})
    by_name = {line["second"]: line for line in found}
    assert by_name["plain"]["differences"] == pytest.approx([0.01, 0.02, 0.03])
    assert by_name["plain"]["low"] == pytest.approx(0.02 - 4.302653 * 0.01 / 3**0.5, abs=1e-6)
    assert by_name["plain"]["holm_p_value"] == pytest.approx(2 * by_name["plain"]["p_value"], abs=1e-7)
    assert by_name["real"]["holm_p_value"] is None and by_name["dm-kd"]["mean"] == pytest.approx(0, abs=1e-9)
    assert gap(made) == pytest.approx(0.25)
    told = {claim["claim"]: claim["holds"] for claim in claims(made, found, "judge", 3, ("plain", "dm-kd"))}
    assert told["prism beats plain at equal images"] is False  # three seeds: the interval has 0 in it
    assert told["prism beats plain-cfg at equal images"] is None
    assert told["prism closes at least 50% of the gap between plain and real images"] is False
    clear = rows(EQUAL_IMAGES, real=[0.8, 0.8], plain=[0.7, 0.7], prism=[0.76, 0.76001])
    told = {claim["claim"]: claim["holds"] for claim in claims(clear, comparisons(clear, {}), "judge", 2, ("plain",))}
    assert told["prism beats plain at equal images"] is True
    assert told["prism closes at least 50% of the gap between plain and real images"] is True
    assert told["prism has a higher recall than plain in the judge's features"] is True


def test_the_random_direction_is_paired_with_plain_and_with_the_energys() -> None:
    made = rows(EQUAL_IMAGES, plain=[0.70, 0.71], random_direction=[0.70, 0.73], prism=[0.8, 0.8])
    scales = {"plain": 3.0, "random-direction": 2.0, "eda": 2.0, "dpe": 2.0, "scale-away": 2.0}
    (line,) = controls(made, scales)
    assert (line["first"], line["second"], line["cfg_scales"]) == ("random-direction", "plain", [2.0, 3.0])
    assert line["differences"] == pytest.approx([0.0, 0.02]) and line["table"] == EQUAL_IMAGES
    found = controls([*made, *rows(EQUAL_IMAGES, eda=[0.75, 0.76])], scales)
    assert [(line["first"], line["second"]) for line in found][1:] == [("eda", "random-direction")]
    assert found[1]["differences"] == pytest.approx([0.05, 0.03])
    (away,) = controls(rows(EQUAL_IMAGES, dpe=[0.7, 0.71], scale_away=[0.75, 0.75]), scales)
    assert (away["first"], away["second"]) == ("scale-away", "dpe") and away["mean"] == pytest.approx(0.045)
    assert controls(rows(EQUAL_IMAGES, plain=[0.7, 0.7]), scales) == []


def test_charts_of_scale_and_number_show_what_was_measured_and_nothing_else() -> None:
    made = rows(EQUAL_IMAGES, plain=[0.5, 0.6], dpe=[0.6, 0.6], prism=[0.7, 0.8], scale_half=[0.6, 0.7])
    few = [{**row, "images": 4000} for row in made]
    shown = scale_charts({"rows": few, "headline": "judge"})
    assert shown.count("<svg") == 2 and shown.count("<polyline") == 2
    lines = [len(line.split()) for line in re.findall(r'<polyline[^>]* points="([^"]*)"', shown)]
    assert lines == [3, 3]  # 0, a half and once the chosen scale
    assert scale_charts({"rows": few[:4], "headline": "judge"}) == accuracy_chart({"rows": few}) == ""
    more = [{**row, "images": 8000} for row in rows(BY_COUNT, plain=[0.6, 0.6], prism=[0.9, 0.9])]
    assert accuracy_chart({"rows": few + more}).count("<polyline") == 2


def test_points_of_a_chart_are_means_over_the_same_seeds() -> None:
    made = rows(EQUAL_IMAGES, plain=[0.5, 0.6], dpe=[0.61], prism=[0.71, 0.9], scale_half=[0.66, 0.8])
    few = [{**row, "images": 4000} for row in made]
    student, _ = scale_charts({"rows": few, "headline": "judge"}).split("</svg>")[:2]
    assert re.findall(r'"label at"[^>]*>([^<]*)<', student) == ["61.0", "66.0", "71.0"]
    more = [{**row, "images": 8000} for row in rows(BY_COUNT, plain=[0.55], prism=[0.95])]
    drawn = accuracy_chart({"rows": few + more})
    assert re.findall(r'"label at"[^>]*>([^<]*)<', drawn) == ["50.0", "55.0", "71.0", "95.0"]
    assert "prism, seed 0" in drawn and ">4,000<" in drawn and ">8,000<" in drawn
    assert "mean of 2 seeds" in accuracy_chart({"rows": few + [{**row, "seed": s} for row in more for s in (0, 1)]})


def test_variants_of_prism_have_a_chart_of_curves_of_their_own() -> None:
    points = [{"precision": 0.5, "recall": 0.1 * k} for k in range(1, 4)]
    main = {"real": points, "plain": points, "ddis": points, "prism": points}
    assert curve_charts({"curves": {}}) == ""
    alone = curve_charts({"curves": main})
    assert alone.count("<svg") == 1 and alone.startswith('<div class="chart">')  # not as wide as the page
    left, right = curve_charts({"curves": main | {"no-gate": points, "eda": points}}).split("</svg>")[:2]
    assert re.findall(r'"line arm-([a-z-]+)"', left) == ["real", "plain", "ddis", "prism"]
    assert re.findall(r'"line arm-([a-z-]+)"', right) == ["real", "prism", "no-gate", "eda"]


def test_who_is_no_cheaper_stands_with_equal_images_at_equal_compute() -> None:
    made = rows(EQUAL_IMAGES, plain=[0.5, 0.6], dm_kd=[0.4, 0.4], prism=[0.7, 0.8]) + rows(
        EQUAL_COMPUTE, plain=[0.6, 0.8]
    )
    found = {
        c["second"]: c["mean"]
        for c in comparisons(made, {"plain": 1, "dm-kd": 3, "prism": 2})
        if c["table"] == EQUAL_COMPUTE
    }
    assert found == pytest.approx({"plain": 0.05, "dm-kd": 0.35})
    assert [row["student_accuracy"] for row in of(made, EQUAL_COMPUTE, "prism")] == [0.7, 0.8]


def test_what_is_left_is_told_from_what_stages_of_a_kind_took(tmp_path: Any) -> None:
    now = [0.0]
    stages = Stages(tmp_path, clock=lambda: now[0])
    expected = Expected(stages, ["a: draw", "b: draw", "c: draw", "a: look"])
    for name, seconds in (("a: draw", 10.0), ("b: draw", 20.0)):
        with stages.stage(name):
            now[0] += seconds
    assert expected.seconds_left() == (15.0, False) and expected.share == "2 of 4"
    expected.leave_out("a: look")
    assert expected.seconds_left() == (15.0, True)
    assert "15 s left" in expected.line("b: draw", "done") and "at least" not in expected.line("b: draw", "done")


def test_bad_settings_are_refused() -> None:
    for changes in ({"suite": "all"}, {"seeds": 1}, {"images": 1}, {"more": 0.5}, {"passes": 0}, {"further_seeds": 6}):
        with pytest.raises(UserError):
            StudyConfig(**changes)  # type: ignore[arg-type]
    assert Method(name="x", about="").made_of == "x"


def test_a_training_of_its_own_makes_no_other_images() -> None:
    for name in ("dm-kd", "dda-sdedit", "diffdfkd"):
        assert _identity(METHODS[name]) == _identity(replace(METHODS[name], own=None))


def test_what_was_tuned_on_real_images_says_so_in_the_world_where_it_was() -> None:
    assert {name for name, method in METHODS.items() if method.caveat} == {"prism"}
    assert (METHODS["prism"].caveat or "").startswith("oracle-tuned")
    assert not [method.name for method in suite("imagenet-full")[0] if method.caveat]


def test_figures_against_real_images_are_compared_in_each_networks_features() -> None:
    made = rows(EQUAL_IMAGES, real=[0.9, 0.9], plain=[0.5, 0.6], prism=[0.7, 0.9])
    for row in made:
        row["figures"] += [{"metric": "recall", "extractor": "other", "value": -row["student_accuracy"]}]
    found = {(c["extractor"], c["second"], c["figure"]): c for c in overlap_comparisons(made, ["judge", "other"])}
    assert set(found) == {("judge", "plain", "precision"), ("judge", "plain", "recall"), ("other", "plain", "recall")}
    assert found["judge", "plain", "recall"]["differences"] == pytest.approx([0.2, 0.3])
    assert found["other", "plain", "recall"]["mean"] == pytest.approx(-0.25)
    assert overlap_comparisons(rows(EQUAL_IMAGES, plain=[0.5, 0.6]), ["judge"]) == []


def test_the_gap_has_an_interval_over_the_seeds() -> None:
    made = rows(EQUAL_IMAGES, real=[0.9, 0.9, 0.9], plain=[0.7, 0.8, 0.7], prism=[0.8, 0.84, 0.82])
    found = gap_by_seed(made)
    assert found is not None and found["differences"] == pytest.approx([0.5, 0.4, 0.6])
    assert (found["low"], found["high"]) == pytest.approx((0.5 - 0.248414, 0.5 + 0.248414), abs=1e-5)
    assert gap(made) == pytest.approx(0.26 / 0.5)  # of the sums over the seeds
    assert gap_by_seed(made[:3]) is None and gap(made[:3]) is None
    no_gap = rows(EQUAL_IMAGES, real=[0.9, 0.7], plain=[0.7, 0.8], prism=[0.8, 0.8])
    assert gap_by_seed(no_gap) is None


def cost_rows(**seconds: float) -> list[dict[str, Any]]:
    return [
        {"recipe": name.replace("_", "-"), "seed": 0, "images": 10, "seconds": {"sampling": 10 * spent}}
        for name, spent in seconds.items()
    ]


def test_the_costs_that_a_table_was_begun_with_stay_and_who_failed_then_comes_to_it(tmp_path: Path) -> None:
    budget = Budget(tmp_path, 2.0)
    budget.begin(cost_rows(plain=1.0, prism=2.0))
    before = budget.kept()
    assert before["of_an_image_of_prism"] == {"plain": 0.5, "prism": 1.0}
    written = (tmp_path / "compute.json").stat().st_ino
    budget.begin(cost_rows(plain=3.0, prism=2.0))
    assert budget.kept() == before and (tmp_path / "compute.json").stat().st_ino == written
    budget.begin(cost_rows(plain=3.0, dm_kd=1.5, prism=2.0))
    assert budget.kept()["of_an_image_of_prism"] == {"plain": 0.5, "dm-kd": 0.75, "prism": 1.0}


def test_a_budget_never_buys_fewer_images_than_there_are() -> None:
    """Not in whole rounds of many classes either."""
    assert affordable(2500, 1.1, 2.0, 1000) == 2500 and affordable(25, 1.17, 2.0, 10) == 25
    assert affordable(2500, 1.3, 2.0, 1000) == 3000
