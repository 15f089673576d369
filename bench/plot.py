"""Draws the newest measurement of every operation: how many times faster than torch, and writes the table of the docs.

python -m bench.plot [--device cpu]     # bench/results/ops-<device>.svg, and the table on the standard output
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from bench.record import RESULTS


def newest(path: Path) -> list[dict[str, Any]]:
    """The last row of each operation, shape and dtype, in the order they were first measured in."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return list({(row["op"], row["shape"], row["dtype"]): row for row in rows}.values())


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| operation | shape | dtype | ms | GB/s | share of a copy | eager / ours | compiled / ours |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ratios = f"{row['ratio_to_eager']:.1f} | {row['ratio_to_compiled']:.1f}"
        rates = f"{row['seconds_p50'] * 1e3:.3g} | {row['gb_per_s']:.1f} | {row['share_of_peak']:.0%}"
        lines.append(f"| `{row['op']}` | {row['shape'].replace('x', '×')} | {row['dtype']} | {rates} | {ratios} |")
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]], target: Path) -> None:
    """Bars: seconds of eager and compiled torch over the operation's; one is as fast."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "prism_fast"  # the same figures give the same file
    from matplotlib import pyplot

    places = range(len(rows))
    figure, axes = pyplot.subplots(figsize=(8, 1.2 + 0.34 * len(rows)), layout="constrained")
    for shift, key, label in ((-0.2, "ratio_to_eager", "eager torch"), (0.2, "ratio_to_compiled", "torch.compile")):
        bars = axes.barh([place + shift for place in places], [row[key] for row in rows], height=0.38, label=label)
        axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=8)
    axes.set_yticks(list(places), [f"{row['op']} {row['shape'].replace('x', '×')} {row['dtype']}" for row in rows])
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlabel("time of torch / time of the operation")
    threads = f", {rows[0]['threads']} threads" if "threads" in rows[0] else ""
    axes.set_title(f"{rows[0]['device']}{threads}, torch {rows[0]['torch']}", fontsize=10)
    axes.margins(x=0.12)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(target, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    path = RESULTS / f"ops-{options.device}.jsonl"
    if not path.is_file():
        parser.error(f"no results in {path}: run python -m bench.ops --device {options.device}")
    rows = newest(path)
    draw(rows, path.with_suffix(".svg"))
    print(table(rows))


if __name__ == "__main__":
    main()
