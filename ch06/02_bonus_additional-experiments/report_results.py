"""Draw results.jsonl as results.png, and write its tables into README.md.

Run it:  python report_results.py
"""

import sys
from pathlib import Path
from statistics import mean

from previous_chapters import COLORS, OneLineParser, use_course_style
from run_all import COSTS_AS_BASELINE, LOG, ROWS, TIMED_UPDATES, read_log

FOLDER = Path(__file__).resolve().parent
PARTS = ["validation", "test", "test_without_repeats"]


def accuracies(runs: list[dict], row: str, part: str) -> list[float]:
    """Return the share of right answers of a row's runs, one a seed."""
    found = [run[part]["right"] / run[part]["texts"] for run in runs if run["kind"] == "result" and run["row"] == row]
    if not found:
        raise ValueError(f"the log has no run of the row {row!r}; run_all.py makes it")
    return found


def gains(runs: list[dict], row: str) -> list[int]:
    """Return, seed by seed, how many more test messages a row gets right than the baseline on the same split."""
    right = {(run["row"], run["seed"]): run["test"]["right"] for run in runs if run["kind"] == "result"}
    return [right[row, seed] - right["baseline", seed] for name, seed in right if name == row]


def spread(values: list[float]) -> float:
    """Return the distance from the worst to the best seed."""
    return max(values) - min(values)


def verdict(values: list[float], baseline: list[float]) -> str:
    """Say how a row compares with the baseline: equal when the means differ by no more than the seeds of either row do."""
    difference = mean(values) - mean(baseline)
    if abs(difference) <= max(spread(values), spread(baseline)):
        return "equal"
    return "better" if difference > 0 else "worse"


def result_table(runs: list[dict]) -> str:
    """Return the result table as Markdown, in percent; time and memory are those of the few timed updates."""
    timed = {run["row"]: run for run in runs if run["kind"] == "timing"}
    baseline = accuracies(runs, "baseline", "test")
    lines = [
        "| Row | Validation | Test | Worst to best seed | Test without repeats | Against the baseline | Messages gained, by seed "
        "| ms per update | Peak GB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in ROWS:
        validation, test, alone = (accuracies(runs, row, part) for part in PARTS)
        judged = " | " if row == "baseline" else f"{verdict(test, baseline)} | {', '.join(f'{gain:+d}' for gain in gains(runs, row))}"
        costs = timed["baseline" if row in COSTS_AS_BASELINE else row]
        cost = f"{1000 * costs['cpu_seconds'] / TIMED_UPDATES:.0f} | {costs['peak_memory_gb']:.1f}"
        shares = f"{mean(validation):.1%} | {mean(test):.1%} | {min(test):.1%} to {max(test):.1%} | {mean(alone):.1%}"
        lines.append(f"| {row} | {shares} | {judged} | {cost} |".replace("%", " %"))
    return "\n".join(lines)


def learning_rate_table(runs: list[dict]) -> str:
    """Return the search for the learning rates as Markdown."""
    lines = ["| What is trained | Learning rate | Validation loss | Validation accuracy |", "|---|---|---|---|"]
    for run in runs:
        if run["kind"] == "learning_rate":
            accuracy = run["validation"]["right"] / run["validation"]["texts"]
            lines.append(f"| {run['row']} | {run['learning_rate']:g} | {run['validation_loss']:.3f} | {100 * accuracy:.1f} % |")
    return "\n".join(lines)


def fill(page: str, name: str, text: str) -> str:
    """Return the page with `text` between <!-- NAME:start --> and <!-- NAME:end -->; ValueError without these marks."""
    start, end = f"<!-- {name}:start -->", f"<!-- {name}:end -->"
    if start not in page or end not in page:
        raise ValueError(f"README.md lacks the marks {start} and {end}")
    return page[: page.index(start) + len(start)] + f"\n{text}\n" + page[page.index(end) :]


def draw(runs: list[dict], path: Path) -> None:
    """Save a plot of every row's test accuracy: each seed as a dot, the mean as a bar."""
    import matplotlib.pyplot as plt

    use_course_style()
    fig, ax = plt.subplots(figsize=(7, 5))
    baseline = accuracies(runs, "baseline", "test")
    colors = {"equal": COLORS["black"], "worse": COLORS["red"], "better": COLORS["green"]}
    for height, row in enumerate(reversed(ROWS)):
        values = [100 * value for value in accuracies(runs, row, "test")]
        color = COLORS["blue"] if row == "baseline" else colors[verdict(accuracies(runs, row, "test"), baseline)]
        ax.plot(values, [height] * len(values), "o", color=color, markersize=5, alpha=0.6)
        ax.plot([mean(values)] * 2, [height - 0.35, height + 0.35], color=color, linewidth=2)
    ax.axvspan(100 * min(baseline), 100 * max(baseline), color=COLORS["sky"], alpha=0.25, linewidth=0)
    ax.set_yticks(range(len(ROWS)), list(reversed(ROWS)))
    ax.set(xlabel="test accuracy (%)\ndot: one seed; bar: mean; blue band: the seeds of the baseline")
    apart = [row for row in ROWS if verdict(accuracies(runs, row, "test"), baseline) != "equal"]
    fig.suptitle(f"{len(apart)} of {len(ROWS) - 1} changes differ from the baseline by more than the seeds do", fontsize=11)
    fig.savefig(path, dpi=110)
    plt.close(fig)


def main(argv: list[str] | None = None) -> int:
    """Command line; returns 0, or exits with code 2 and one line on bad input."""
    parser = OneLineParser("Draw the log of run_all.py and write its tables into README.md.")
    parser.add_argument("--log", type=Path, default=LOG, help="file of finished runs")
    parser.add_argument("--output", type=Path, default=FOLDER / "results.png", help="picture to write")
    parser.add_argument("--readme", type=Path, default=FOLDER / "README.md", help="page whose tables are written anew")
    args = parser.parse_args(argv)
    try:
        _, runs = read_log(args.log)
        page = args.readme.read_text(encoding="utf-8")
        page = fill(page, "results", result_table(runs))
        page = fill(page, "learning rates", learning_rate_table(runs))
        draw(runs, args.output)
        args.readme.write_text(page, encoding="utf-8")
    except (OSError, ValueError, KeyError) as error:
        parser.error(" ".join(str(error).split()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
