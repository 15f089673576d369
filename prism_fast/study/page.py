"""The frame of the report: one HTML file that needs nothing from outside."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

from prism_fast.config import replacing

STYLE = """
:root {
  color-scheme: light dark;
  --ink: #22262c; --soft: #68707c; --line: #dfe3e8; --paper: #fdfdfc; --panel: #f5f6f7; --good: #2ea06b;
  --plain: #8b929c; --prism: #2b66d0; --eda: #d07f24; --dpe: #12907f;
  --oracle: #8a5bc9; --random: #c14f6c; --real: #22262c;
  --cfg: #5b9bb5; --reject: #b08a2e; --dmkd: #7a9a3a; --dda: #a0522d; --bad: #c23b3b;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e4e7ea; --soft: #98a1ac; --line: #343a42; --paper: #16191d; --panel: #1e2227;
    --prism: #6b9dff; --eda: #e9a452; --dpe: #3dbfab; --oracle: #b08ae8; --random: #e57f99; --real: #e4e7ea;
    --cfg: #7cc0dc; --reject: #dcb65a; --dmkd: #a9cc66; --dda: #d68a5f; --bad: #f08080;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink); -webkit-text-size-adjust: 100%;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
main { max-width: 60rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .4rem; letter-spacing: -.01em; }
h2 { font-size: 1.15rem; margin: 3rem 0 .5rem; }
h3 { font-size: .95rem; margin: 0 0 .5rem; }
p { margin: .5rem 0 1rem; max-width: 44rem; }
.soft, figcaption, .legend, .note { color: var(--soft); font-size: .875rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .75rem; margin: 1.75rem 0; }
.tile { background: var(--panel); border: 1px solid var(--line); border-radius: 8px; padding: .8rem 1rem; }
.tile b { display: block; font-size: 1.5rem; font-weight: 600; font-variant-numeric: tabular-nums; line-height: 1.2; }
.tile span { display: block; margin-top: .2rem; color: var(--soft); font-size: .8rem; line-height: 1.35; }
.scroll { overflow-x: auto; margin-top: .75rem; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .45rem .5rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: baseline; }
td { white-space: nowrap; }
th { font-weight: 500; color: var(--soft); font-size: .8rem; vertical-align: bottom; line-height: 1.3; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
td small { color: var(--soft); white-space: normal; display: block; line-height: 1.35; }
td:first-child small { min-width: 9rem; }
tr.main td { font-weight: 600; }
tr.main td small { font-weight: 400; }
.classes {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(19rem, 1fr)); gap: 1.5rem 1.75rem; margin-top: 1.25rem;
}
figure { margin: 0; min-width: 0; }
figure img { display: block; width: 100%; height: auto; }
figcaption { margin-bottom: .4rem; line-height: 1.4; }
figcaption b { color: var(--ink); font-weight: 600; }
.charts {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); gap: 1.5rem 1.75rem; margin-top: 1rem;
}
.chart { max-width: 36rem; margin-top: 1rem; }
table + h3, .scroll + h3 { margin-top: 1.5rem; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg .label { fill: var(--soft); font-size: 11px; font-family: inherit; }
svg .at { paint-order: stroke; stroke: var(--paper); stroke-width: 3; }
svg .grid { stroke: var(--line); stroke-width: 1; }
svg .line { fill: none; stroke: var(--c); stroke-width: 1.8; stroke-linejoin: round; }
svg .area { fill: var(--c); fill-opacity: .3; stroke: var(--c); stroke-width: 1.2; stroke-linejoin: round; }
svg .dot { fill: var(--c); }
svg .median { stroke: var(--c); stroke-width: 2; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin-top: .4rem; }
.swatch, .key { display: inline-block; height: .22rem; border-radius: 2px; vertical-align: middle; }
.swatch { width: .75rem; background: var(--c); margin-right: .4rem; }
.key { width: 1.1rem; background: var(--good); }
.arm-plain, .arm-unguided { --c: var(--plain); }
.arm-prism, .arm-guided { --c: var(--prism); }
.arm-eda { --c: var(--eda); }
.arm-dpe { --c: var(--dpe); }
.arm-oracle { --c: var(--oracle); }
.arm-random-direction { --c: var(--random); }
.arm-real { --c: var(--real); }
.arm-plain-cfg { --c: var(--cfg); }
.arm-plain-reject { --c: var(--reject); }
.arm-dm-kd { --c: var(--dmkd); }
.arm-dda-sdedit { --c: var(--dda); }
svg .arm-real.line { stroke-dasharray: 5 3; }
.good { color: var(--good); }
.bad, .warning { color: var(--bad); }
.warning { font-weight: 600; }
details { margin-top: 1rem; border-top: 1px solid var(--line); padding-top: .75rem; }
summary { cursor: pointer; font-weight: 600; font-size: .95rem; }
dl {
  display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .2rem 1rem;
  font-size: .85rem; margin: .75rem 0 0;
}
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 30rem) {
  main { padding: 1.5rem 1rem 3rem; }
  h1 { font-size: 1.4rem; }
  .tiles { grid-template-columns: 1fr 1fr; }
  .tile b { font-size: 1.25rem; }
  th, td { padding: .4rem .45rem; }
  td:first-child small { min-width: 8rem; }
  dl { grid-template-columns: 1fr; }
  dd { margin-bottom: .4rem; }
}
""".strip()


PALETTE = (
    ("#9b424d", "#f59aa1"), ("#3e945c", "#65b27d"), ("#4e3e89", "#d0c5ff"), ("#8f5300", "#e6aa67"),
    ("#0094a2", "#2cb2bf"), ("#772d5f", "#ffb4e5"), ("#5b6c00", "#aec26f"), ("#5081c7", "#72a0e2"),
    ("#812e19", "#ffb7a0"), ("#00785c", "#62ceb0"), ("#966ab5", "#b38bd2"), ("#684600", "#efcd79"),
    ("#007096", "#5ec6ec"), ("#ba5f7a", "#d78098"), ("#225c13", "#aae39e"), ("#545aa6", "#a6b1fd"),
    ("#b66b31", "#d38b59"), ("#00605f", "#6de8e4"), ("#884783", "#e09dd9"), ("#88851b", "#a5a34c"),
)  # fmt: skip
"""On light and on dark paper: hues a golden angle apart, in three lightnesses."""


def arm_rules(names: Sequence[str]) -> str:
    """CSS: names without a colour in :data:`STYLE` get that of their place in :data:`PALETTE`, and dotted lines."""
    others = [name for name in names if not re.search(rf"\.arm-{re.escape(name)}[ ,]", STYLE)]  # a rule may be of two
    colours = [(name, *PALETTE[place % len(PALETTE)]) for place, name in enumerate(others)]
    light = [f".arm-{name} {{ --c: {colour}; }}" for name, colour, _ in colours]
    dark = [f".arm-{name} {{ --c: {colour}; }}" for name, _, colour in colours]
    dots = [f"svg .arm-{name}.line {{ stroke-dasharray: 2 2; }}" for name in others]
    return "\n".join([*light, "@media (prefers-color-scheme: dark) {", *dark, "}", *dots] if others else [])


_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""The page may load nothing, from nowhere."""


def page(title: str, body: Sequence[str], style: str = "") -> str:
    """A whole document; ``body`` is HTML, ``style`` CSS beyond :data:`STYLE`."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f"<title>{escape(title)}</title>\n<style>\n{STYLE}\n{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body).replace(" %", "\u00a0%")  # a number and its sign stay on one line
        + "\n</main>\n</body>\n</html>\n"
    )


def write_page(html: str, path: Path) -> None:
    """Writes a document as one file, by a rename.

    Raises:
        UserError: the place cannot be written.
    """
    with replacing(path) as staged:
        staged.write_text(html, encoding="utf-8")


def tiles(items: Sequence[tuple[str, str]]) -> str:
    """Key figures: (value, what it is)."""
    return (
        '<div class="tiles">'
        + "".join(f'<div class="tile"><b>{escape(value)}</b><span>{escape(what)}</span></div>' for value, what in items)
        + "</div>"
    )


def table(head: Sequence[str], rows: Sequence[tuple[Sequence[str], bool]]) -> str:
    """Rows of HTML cells; the second part marks a row that matters most."""
    cells = "".join(f"<th>{escape(name)}</th>" for name in head)
    lines = "".join(
        f"<tr{' class=main' if main else ''}>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>"
        for row, main in rows
    )
    return f'<div class="scroll"><table><thead><tr>{cells}</tr></thead><tbody>{lines}</tbody></table></div>'


def definitions(items: Sequence[tuple[str, str]]) -> str:
    """Names and values."""
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in items) + "</dl>"
