"""Charts, pictures and sentences of the report."""

from __future__ import annotations

import io
import math
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from PIL import Image

from prism_fast.errors import UserError
from prism_fast.study import page
from prism_fast.study.arms import DemoConfig
from prism_fast.study.demo import distribution
from prism_fast.study.measure import distribution_settings
from prism_fast.study.pairs import Pair, pair_figures
from prism_fast.study.plots import Mark, Series, line_chart, ridges, scatter_chart, ticks
from prism_fast.study.reading import conclusions
from prism_fast.study.samples import class_picture, overview
from prism_fast.study.sets import LabelledSet
from prism_fast.study.sources import MemorySource
from prism_fast.study.text import compared_images, demo_summary, duration, percent, points
from tests.study.test_measure import Brightness


def made(classes: list[int], judged: list[int], top1: list[int], first: int = 0) -> LabelledSet:
    """Images that :class:`Brightness` takes for ``judged``; row numbers from ``first``."""
    images = torch.full((len(classes), 3, 4, 4), 200, dtype=torch.uint8)
    images[:, :, 0, 0] = torch.tensor(judged, dtype=torch.uint8)[:, None]
    rows = list(range(first, first + len(classes)))
    table: dict[str, list[Any]] = {"index": rows, "seed": [row * 7 for row in rows], "prompt": [f"p{r}" for r in rows]}
    table |= {"class_index": classes, "teacher_top1": top1, "energy": [float(row) for row in rows]}
    names = tuple(str(index) for index in range(10))
    return LabelledSet(folder=Path("x"), identity="x", class_names=names, images=images, table=table)


CLASSES = [0, 1, 2, 3, 4, 5, 6, 7]


@pytest.fixture
def pair() -> Pair:
    unguided = made(CLASSES, [0, 1, 9, 9, 9, 9, 9, 9], [0, 1, 2, 9, 9, 9, 9, 9])
    guided = made(CLASSES, [0, 9, 2, 3, 9, 9, 9, 9], [0, 1, 2, 3, 4, 5, 6, 9])
    return Pair.of_sets("dpe", unguided, guided, Brightness())  # type: ignore[arg-type]


def figures_of(pair: Pair) -> dict[str, Any]:
    labels = torch.arange(40) % 10
    images = torch.randint(0, 256, (40, 3, 4, 4), dtype=torch.uint8)
    return pair_figures(pair, Brightness(), "b", MemorySource("test", images, labels), 0)  # type: ignore[arg-type]


def test_a_pair_counts_agreement_before_and_after(pair: Pair) -> None:
    found = figures_of(pair)
    assert found["teacher_agreement"] | {"gain_standard_error": 0} == {
        "unguided": 3 / 8, "guided": 7 / 8, "gain": 0.5, "gain_standard_error": 0,
    }  # fmt: skip
    assert found["judge_agreement"]["gain"] == 1 / 8  # two won, one lost
    assert found["judge_gain_per_teacher_gain"] == 0.25
    changes = torch.tensor([0, -1, 1, 1, 0, 0, 0, 0.0])
    assert found["judge_agreement"]["gain_standard_error"] == pytest.approx(float(changes.std()) / 8**0.5, abs=1e-6)
    assert (found["images"], found["without"]) == (8, "dpe")


def test_a_pair_keeps_the_rows_that_both_sets_have() -> None:
    left, right = made([0, 1, 2], [0, 1, 2], [0, 1, 2], first=0), made([1, 2, 3], [1, 2, 3], [1, 2, 3], first=1)
    pair = Pair.of_sets("x", left, right, Brightness())  # type: ignore[arg-type]
    assert pair.prompts == ("p1", "p2") and pair.classes.tolist() == [1, 2]
    assert pair.unguided.energies.tolist() == [1.0, 2.0]


def test_sets_of_other_seeds_are_no_pair() -> None:
    left, right = made([0, 1], [0, 1], [0, 1]), made([0, 1], [0, 1], [0, 1])
    right.table["seed"][1] += 1
    with pytest.raises(ValueError, match="differ in their seed"):
        Pair.of_sets("x", left, right, Brightness())  # type: ignore[arg-type]


def test_a_class_picture_marks_what_the_judge_takes_for_its_class(pair: Pair) -> None:
    def marks(class_index: int) -> list[bool]:
        picture = Image.open(io.BytesIO(class_picture(pair, class_index, columns=1))).convert("RGBA")
        half = picture.height // 2
        return [
            any(picture.getpixel((2, y)) == (46, 160, 107, 255) for y in rows)
            for rows in (range(half), range(half, picture.height))
        ]

    assert [marks(index) for index in (0, 1, 2, 4)] == [[True, True], [True, False], [False, True], [False, False]]


def test_the_overview_shows_every_class(pair: Pair) -> None:
    small = Image.open(io.BytesIO(overview(pair, ["a", "b"])))
    large = Image.open(io.BytesIO(overview(pair, list("abcdefgh"))))
    assert large.height > small.height and large.width == small.width


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (-7, 13, [-5, 0, 5, 10]), (3, 3, [3]), (0, 480, [0, 100, 200, 300, 400])],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == expected


def svg_of(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(text[: text.index("</svg>") + 6])


def axis_titles(svg: ElementTree.Element) -> list[str | None]:
    """Of x in the middle below, of y turned, beside the middle."""
    return [label.text for label in svg.findall("text") if label.get("y") == "246.0" or label.get("transform")]


def test_line_charts_keep_to_their_frame_and_leave_out_what_is_not_finite() -> None:
    points = [(0.0, 1.0), (1.0, math.nan), (2.0, 5.0), (3.0, -2.0)]
    svg = svg_of(line_chart([Series(name="plain", title="a <b>", points=points)], "x", "y"))
    assert axis_titles(svg) == ["x", "y"]
    (line,) = svg.findall("polyline")
    assert line.get("class") == "line arm-plain"
    places = [tuple(map(float, pair.split(","))) for pair in line.get("points", "").split()]
    assert len(places) == 3
    assert places[1][1] < places[0][1] < places[2][1]  # larger values are higher up
    assert all(0 <= x <= 440 and 0 <= y <= 250 for x, y in places)
    assert "a &lt;b&gt;" in line_chart([Series(name="plain", title="a <b>", points=points)], "x", "y")


def test_labelled_points_are_dots_and_x_may_be_logarithmic() -> None:
    points = [(1000.0, 1.0), (2000.0, math.nan), (4000.0, 2.0), (16000.0, 3.0)]
    line = Series(name="plain", title="a", points=points, labels=["a", "b", "c", "<d>"])
    svg = svg_of(line_chart([line], "x", "y", x_ticks=(1000, 4000, 16000)))
    places = [(float(dot.get("cx", "")), float(dot.get("cy", ""))) for dot in svg.findall("circle")]
    assert len(places) == 3  # the one that is not finite is left out with its label
    (first, _), (middle, _), (last, _) = places
    assert middle - first == pytest.approx(last - middle, abs=0.2)
    texts = [label.text for label in svg.findall("text")]
    assert [text for text in texts if text in ("a", "b", "c", "<d>")] == ["a", "c", "<d>"]
    assert {"1,000", "4,000", "16,000"} <= set(texts)


def test_scatter_charts_show_every_mark_and_write_the_labels_apart() -> None:
    marks = [Mark(name="prism", title=title, x=x, y=y) for title, x, y in (("a", 1, 1), ("b", 1, 1), ("c", 2, -0.5))]
    text = scatter_chart(marks, "ms", "kept", 0.9, {"a", "b"}, [Series(name="prism", title="all", points=())])
    svg = svg_of(text)
    assert axis_titles(svg) == ["ms", "kept"]
    places = [(float(dot.get("cx", "nan")), float(dot.get("cy", "nan"))) for dot in svg.findall("circle")]
    assert len(places) == 3 and places[2][0] > places[0][0] and places[2][1] > places[0][1]
    assert all(0 <= x <= 440 and 0 <= y <= 250 for x, y in places)
    written = {
        label.text: float(label.get("y", "nan")) for label in svg.findall("text") if label.text in ("a", "b", "c")
    }
    assert set(written) == {"a", "b"} and abs(written["a"] - written["b"]) > 10


def test_histograms_put_the_median_mark_at_the_median(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    low = torch.randn(2000, generator=generator)
    svg = svg_of(ridges([("plain", "plain", low), ("prism", "PRISM", low + 1)], "energy"))
    first, second = (float(line.get("x1", "nan")) for line in svg.findall("line") if "median" in line.get("class", ""))
    assert second > first
    assert len(svg.findall("polygon")) == 2
    svg_of(ridges([("plain", "plain", torch.zeros(5))], "energy"))  # all the same: still a chart


def test_a_page_that_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "new" / "page.html"
    page.write_page("é", path)
    with pytest.raises(UnicodeEncodeError):
        page.write_page("\ud800", path)
    assert path.read_bytes() == "é".encode() and list(path.parent.iterdir()) == [path]
    with pytest.raises(UserError, match="cannot write"):
        page.write_page("x", path / "below.html")


def rules_of(html: str, name: str) -> dict[str, str]:
    """What a document's style says of an arm on light paper, and of its lines: the last rule that names it."""
    style = html.partition("<style>")[2].partition("</style>")[0]
    style = re.sub(r"@media[^{]*\{(?:[^{}]*\{[^{}]*\})*\s*\}", "", style)
    found = {}
    for selectors, body in re.findall(r"([^{}]+)\{([^{}]*)\}", style):
        if {f".arm-{name}", f"svg .arm-{name}.line"} & {selector.strip() for selector in selectors.split(",")}:
            found |= dict(re.findall(r"([\w-]+): ([^;]+);", body))
    return found


def test_arms_that_have_a_colour_keep_it() -> None:
    named = ("plain", "unguided", "prism", "guided", "eda", "dm-kd", "real")
    assert page.arm_rules(named) == ""
    html = page.page("x", [], page.arm_rules(["real", "plain", "prism", "new", "prism-new", "dm"]))
    assert rules_of(html, "prism") == {"--c": "var(--prism)"} and rules_of(html, "plain") == {"--c": "var(--plain)"}
    assert rules_of(html, "real") == {"--c": "var(--real)", "stroke-dasharray": "5 3"}
    for place, name in enumerate(("new", "prism-new", "dm")):
        assert rules_of(html, name) == {"--c": page.PALETTE[place][0], "stroke-dasharray": "2 2"}


def metrics_of(
    plain: float, prism: float, ratio: float | None, closed: float | None = None, recall: float = 0.6
) -> dict[str, Any]:
    sides = {"unguided": 0.5, "guided": 0.7, "gain": 0.2, "gain_standard_error": 0.01}
    pair = {"images": 10, "teacher_agreement": sides, "judge_agreement": sides, "judge_gain_per_teacher_gain": ratio}
    pair |= {"precision": {"unguided": 0.5, "guided": 0.5}, "recall": {"unguided": 0.6, "guided": recall}}
    return {"student_accuracy": {"plain": plain, "prism": prism}, "same_seeds": {"prism": pair}, "gap_closed": closed}


@pytest.mark.parametrize(
    ("plain", "prism", "said"),
    [(0.7, 0.8, "10.0 points better"), (0.7, 0.73, "less than the 5 points"), (0.7, 0.6, "PRISM did not help here")],
)
def test_a_missed_aim_is_told(plain: float, prism: float, said: str) -> None:
    assert said in " ".join(conclusions(metrics_of(plain, prism, 0.8), DemoConfig()))


@pytest.mark.parametrize(
    ("ratio", "said"),
    [(0.3, "pleases the teacher alone"), (None, "does not do its work"), (0.7, "from 50.0 % to 70.0 %")],
)
def test_partly_adversarial_guidance_is_told(ratio: float | None, said: str) -> None:
    text = " ".join(conclusions(metrics_of(0.7, 0.8, ratio), DemoConfig()))
    assert said in text
    assert ("pleases the teacher alone" in text) is (ratio == 0.3)


def test_lost_recall_is_told() -> None:
    assert "falls" not in " ".join(conclusions(metrics_of(0.7, 0.8, 0.8), DemoConfig()))
    text = " ".join(conclusions(metrics_of(0.7, 0.8, 0.8, recall=0.55), DemoConfig()))
    assert "recall falls from 0.60 to 0.55" in text and "precision falls" not in text


@pytest.mark.parametrize(
    ("closed", "said"), [(0.6, "closes 60 %"), (0.2, "less than the 50 %"), (None, "no gap to close")]
)
def test_the_gap_is_told(closed: float | None, said: str) -> None:
    assert said in " ".join(conclusions(metrics_of(0.7, 0.8, 1.0, closed), DemoConfig(full=True)))


def test_the_summary_lines_up() -> None:
    metrics = metrics_of(0.7, 0.812, 0.8) | {"seconds": 75.2}
    metrics |= {name: {"plain": 0.5, "prism": 0.75} for name in ("teacher_agreement", "judge_agreement")}
    metrics["distribution"] = {
        "settings": distribution_settings("judge", "test", 20, 30),
        "arms": {arm: {"precision": 0.5, "recall": 0.25} for arm in ("plain", "prism")},
    }
    lines = demo_summary(metrics, DemoConfig(), Path("r.html"), Path("m.json")).splitlines()
    table = [line for line in lines if re.match(r"plain|PRISM  ", line)]
    assert len({len(line) for line in table}) == 1 and table[1].endswith("81.2 %")
    assert "PRISM over plain: +11.2 points" in "\n".join(lines) and "1 min 15 s" in "\n".join(lines)
    assert "Precision and recall: features of judge, k = 3, 20 generated against 30 real images (test)." in lines


def test_arms_of_other_numbers_of_images_say_their_own() -> None:
    """Figures are stated with the images that they were measured on, in as few words as that takes."""
    settings = {"plain": (1990, 1990), "prism": (2000, 2000)}
    found = distribution(
        {
            arm: {"recall": 0.5, "settings": distribution_settings("judge", "test", *counts)}
            for arm, counts in settings.items()
        }
    )
    assert not {"generated_images", "real_images"} & found["settings"].keys()
    assert found["settings"]["k_precision_recall"] == 3
    assert found["arms"]["plain"] == {"recall": 0.5, "generated_images": 1990, "real_images": 1990}
    told = "plain 1,990 generated against 1,990 real images, PRISM 2,000 generated against 2,000 real images"
    assert compared_images(found, ",") == told
    alike = distribution({arm: {"settings": distribution_settings("judge", "test", 2000, 1000)} for arm in settings})
    assert alike == {"settings": distribution_settings("judge", "test", 2000, 1000), "arms": {"plain": {}, "prism": {}}}
    assert compared_images(alike) == "2000 generated against 1000 real images"


def test_numbers_in_words() -> None:
    assert (percent(0.6412), percent(None), percent(0.7, 0)) == ("64.1 %", "–", "70 %")
    assert (points(-0.0312), points(0.1, 0.012)) == ("-3.1 points", "+10.0 ± 1.2 points")
    assert (duration(59.4), duration(59.6), duration(601)) == ("59 s", "1 min 00 s", "10 min 01 s")
