"""Draws the newest measurement of every operation and of every pipeline, and writes the tables of the docs.

python -m bench.plot [--device cpu]     # ops-<device>.svg and throughput-<device>.svg in bench/results

Of operations: how many times faster than torch. Of pipelines: images a second of each contender of the last run.
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


def newest_runs(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The rows of each pipeline's last run, in the order of the pipelines."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    last = {row["pipeline"]: row["time"] for row in rows}
    return {name: [row for row in rows if (row["pipeline"], row["time"]) == (name, last[name])] for name in last}


def throughput_table(runs: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown."""
    lines = [
        "| pipeline | row | batch | images/s | / naive batch 1 | / naive | / same schedule | overhead | peak |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    ratios = ("ratio_to_naive_batch1", "ratio_to_naive_same_batch", "ratio_to_same_schedule", "guidance_overhead")
    for name, rows in runs.items():
        for row in rows:
            cells = " | ".join("-" if row[key] is None else f"{row[key]:.2f}" for key in ratios)
            rate = f"{row['images_per_s']:.3g} | {cells} | {row['peak_share']:.0%}"
            lines.append(f"| {name} | `{row['name']}` | {row['batch']} | {rate} |")
    return "\n".join(lines)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "prism_fast"  # the same figures give the same file
    from matplotlib import pyplot

    return pyplot


def _machine(row: dict[str, Any]) -> str:
    threads = f", {row['threads']} threads" if "threads" in row else ""
    return f"{row['device']}{threads}, torch {row['torch']}"


def draw_throughput(runs: dict[str, list[dict[str, Any]]], target: Path) -> None:
    """Bars: images a second of each row; one panel a pipeline."""
    pyplot = _pyplot()
    heights = [1 + 0.3 * len(rows) for rows in runs.values()]
    figure, panels = pyplot.subplots(
        len(runs), squeeze=False, figsize=(8, sum(heights)), height_ratios=heights, layout="constrained"
    )
    for axes, (name, rows) in zip(panels[:, 0], runs.items(), strict=True):
        ours = {"unguided", "exact", "fast", "fast-reuse"}
        colours = ["C0" if row["name"] in ours else "C7" for row in rows]
        bars = axes.barh(range(len(rows)), [row["images_per_s"] for row in rows], height=0.7, color=colours)
        axes.bar_label(bars, fmt="%.3g", padding=3, fontsize=8)
        axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.set_xlabel("images/s")
        steps, batch = rows[0]["published"]["steps"], rows[0]["published"]["compute_batch"]
        setting = f"{name}, {steps} steps, batch {batch}, {rows[0]['published']['dtype']}"
        axes.set_title(f"{setting}\n{_machine(rows[0])}", fontsize=10)
    figure.savefig(target, metadata={"Date": None})


def draw(rows: list[dict[str, Any]], target: Path) -> None:
    """Bars: seconds of eager and compiled torch over the operation's; one is as fast."""
    pyplot = _pyplot()
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
    axes.set_title(_machine(rows[0]), fontsize=10)
    axes.margins(x=0.12)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(target, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    ops, whole = (RESULTS / f"{name}-{options.device}.jsonl" for name in ("ops", "throughput"))
    if not ops.is_file() and not whole.is_file():
        parser.error(f"no results in {RESULTS}: run python -m bench.ops or bench.throughput --device {options.device}")
    if ops.is_file():
        rows = newest(ops)
        draw(rows, ops.with_suffix(".svg"))
        print(table(rows))
    if whole.is_file():
        runs = newest_runs(whole)
        draw_throughput(runs, whole.with_suffix(".svg"))
        print(throughput_table(runs))


if __name__ == "__main__":
    main()
