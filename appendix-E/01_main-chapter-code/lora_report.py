"""Draw comparison-log.jsonl and write its tables into README.md. The notebook uses the same functions.

Run it:  python lora_report.py
"""

import sys
from pathlib import Path
from statistics import mean

import matplotlib.pyplot as plt
from classifier import fill
from compare_lora import LOG_FILE, MAIN, RATES, SIZES, read_log
from matplotlib.figure import Figure
from previous_chapters import COLORS, OneLineParser, use_course_style

FOLDER = Path(__file__).resolve().parent
NAMES = {"mini": "gpt2-mini", "124M": "GPT-2 124M"}


def of(lines: list[dict], job: str, **what) -> list[dict]:
    """Return the lines of one job in which every named value is as given; ValueError if there is none."""
    found = [line for line in lines if line["job"] == job and what.items() <= line.items()]
    if not found:
        raise ValueError(f"the log has no {job} of {what}: compare_lora.py makes it")
    return found


def split_accuracies(lines: list[dict], way: str, part: str = "test") -> list[float]:
    """Return the share of right answers of one way, one for each split."""
    return [line[part]["right"] / line[part]["texts"] for line in of(lines, "result", way=way)]


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def costs(lines: list[dict], size: str, way: str) -> dict:
    """Return share, time (1 for all layers), training MB, and peak GB of one way at one size."""
    (memory,), (time,) = of(lines, "memory", size=size, way=way), of(lines, "time", size=size)
    (everything,) = of(lines, "memory", size=size, way="all layers")
    return {
        "trained": memory["trained"],
        "share": memory["trained"] / everything["trained"],
        "time": time["seconds"][way] / time["seconds"]["all layers"],
        "training_mb": memory["gradients_mb"] + memory["means_mb"],
        "peak_gb": memory["peak_gb"],
    }


def accuracy_table(lines: list[dict], ways: list[str]) -> str:
    """Return a Markdown table of the accuracies of some ways on the three splits."""
    rows = ["| What is trained | Numbers | Learning rate | Validation | Test | Worst to best split |", "|---|---|---|---|---|---|"]
    for way in ways:
        first, test = of(lines, "result", way=way)[0], split_accuracies(lines, way)
        means = f"{percent(mean(split_accuracies(lines, way, 'validation')))} | {percent(mean(test))}"
        spread = f"{percent(min(test))} to {percent(max(test))}"
        rows.append(f"| {way} | {first['trained']:,} | {first['learning_rate']:g} | {means} | {spread} |")
    return "\n".join(rows)


def cost_table(lines: list[dict]) -> str:
    """Return a Markdown table of what each of the three main ways costs, at both sizes."""
    rows = ["| Model | What is trained | Numbers | Share | Time of an update | Gradients and AdamW | Peak memory |", "|" + 7 * "---|"]
    for size in SIZES:
        for way in MAIN:
            cost = costs(lines, size, way)
            numbers = f"{cost['trained']:,} | {percent(cost['share'])} | {cost['time']:.2f}"
            rows.append(f"| {NAMES[size]} | {way} | {numbers} | {cost['training_mb']:,.0f} MB | {cost['peak_gb']:.1f} GB |")
    return "\n".join(rows)


def search_table(lines: list[dict]) -> str:
    """Return a Markdown table of the search for the learning rates."""
    rows = ["| What is trained | Learning rate | Validation loss |", "|---|---|---|"]
    for line in sorted(of(lines, "search"), key=lambda line: (list(RATES).index(line["way"]), line["learning_rate"])):
        rows.append(f"| {line['way']} | {line['learning_rate']:g} | {line['validation_loss']:.3f} |")
    return "\n".join(rows)


def draw_comparison(lines: list[dict]) -> Figure:
    """Draw the three main ways side by side: test accuracy by split, time of an update, and peak memory."""
    fig, axes = plt.subplots(1, 3, figsize=(9, 2.8), sharey=True)
    for height, way in enumerate(MAIN):
        values = [100 * value for value in split_accuracies(lines, way)]
        axes[0].plot(values, [height] * len(values), "o", color=COLORS["blue"], alpha=0.6)
        axes[0].plot([mean(values)] * 2, [height - 0.3, height + 0.3], color=COLORS["blue"], linewidth=2)
        for size, color, shift in (("mini", "orange", 0.2), ("124M", "green", -0.2)):
            cost, label = costs(lines, size, way), NAMES[size] if height == 0 else None
            axes[1].barh(height + shift, cost["time"], 0.36, color=COLORS[color], label=label)
            axes[2].barh(height + shift, cost["peak_gb"], 0.36, color=COLORS[color])
    axes[0].set_yticks(range(len(MAIN)), MAIN)
    axes[0].set(xlabel="test accuracy (%)\ndot: a split; bar: mean", title="accuracy")
    axes[1].set(xlabel="all layers of that model = 1", title="time of an update")
    axes[2].set(xlabel="GB, PyTorch itself included", title="peak memory")
    axes[1].legend(loc="lower right")
    share = costs(lines, "mini", "LoRA")["share"]
    fig.suptitle(f"LoRA trains {percent(share)} of the numbers of gpt2-mini", fontsize=11)
    return fig


def main(argv: list[str] | None = None) -> int:
    """Command line; returns 0, or exits with code 2 and one line on bad input."""
    parser = OneLineParser("Draw the log of compare_lora.py and write its tables into README.md.")
    parser.add_argument("--log", default=str(LOG_FILE), help="log to read")
    parser.add_argument("--picture", default=str(FOLDER / "comparison.png"), help="picture to write")
    parser.add_argument("--readme", default=str(FOLDER / "README.md"), help="page whose tables are written anew")
    args = parser.parse_args(argv)
    try:
        _, lines = read_log(args.log)
        page = Path(args.readme).read_text(encoding="utf-8")
        page = fill(page, "accuracies", accuracy_table(lines, MAIN))
        page = fill(page, "costs", cost_table(lines))
        page = fill(page, "search", search_table(lines))
        use_course_style()
        fig = draw_comparison(lines)
        fig.savefig(args.picture, dpi=110)
        plt.close(fig)
        Path(args.readme).write_text(page, encoding="utf-8")
    except (OSError, ValueError, KeyError) as error:
        parser.error(" ".join(str(error).split()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
