"""The benchmark's log, a JSON list with one line for each variant and setting, and what is drawn from it: tables and plots.

Use it:  from mha_results import plot_execution_times
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path

from mha_implementations import VARIANTS
from previous_chapters import COLORS, use_course_style

LOG = Path(__file__).resolve().with_name("mha-times.json")
MODES = {
    "forward": "forward",
    "forward_backward": "forward + backward",
    "forward_compiled": "forward, compiled",
    "forward_backward_compiled": "forward + backward, compiled",
}
SETTING = ("device", "threads", "torch", "dtype", "batch_size", "context_length", "d_out", "num_heads")
MIB = 2**20
MARK_START, MARK_END = "<!-- times:start -->", "<!-- times:end -->"


def read_log(path: Path) -> list[dict]:
    """The records of the log; empty if there is no file. ValueError for a file that is no log."""
    if not path.exists():
        return []
    try:
        log = json.loads(path.read_text(encoding="utf-8"))
        if all(VARIANTS[record["variant"]] and setting_of(record) for record in log):
            return log
    except (ValueError, KeyError, TypeError):
        pass
    raise ValueError(f"{path} is not a log of benchmark_mha.py")


def setting_of(record: dict) -> tuple:
    """Machine and sizes of one record: only records that agree in all of it may stand in one table."""
    return tuple(record[key] for key in SETTING)


def put(log: list[dict], record: dict) -> None:
    """Add the record, in place of an earlier one of the same variant and setting."""
    log[:] = [old for old in log if (old["variant"], setting_of(old)) != (record["variant"], setting_of(record))] + [record]


def write_text(path: Path, text: str) -> None:
    """Replace the file in one step: an interrupted run leaves the old file or the new one."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8", newline="\n")
    part.replace(path)


def write_log(path: Path, log: list[dict]) -> None:
    order = {name: place for place, name in enumerate(VARIANTS)}
    rows = sorted(log, key=lambda record: (record["dtype"] != "float32", setting_of(record), order[record["variant"]]))
    write_text(path, "[\n" + ",\n".join(json.dumps(record) for record in rows) + "\n]\n")


def runs_of(log: list[dict]) -> dict[tuple, dict[str, dict]]:
    """Setting -> variant -> record."""
    runs = {}
    for record in log:
        runs.setdefault(setting_of(record), {})[record["variant"]] = record
    return runs


def describe(record: dict) -> str:
    return (
        f"{record['device']}, {record['threads']} threads, PyTorch {record['torch']}, {record['dtype']}, "
        f"batch {record['batch_size']} of {record['context_length']:,} tokens, width {record['d_out']}, {record['num_heads']} heads"
    )


def markdown_table(run: dict[str, dict]) -> str:
    """One run as a table: milliseconds, in parentheses the multiple of variant 5, and memory in MiB."""
    heads = [*MODES.values(), "MiB forward", "MiB forward + backward"]
    lines = [f"{describe(next(iter(run.values())))}:", "", f"| variant | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    for name in (name for name in VARIANTS if name in run):
        cells = [time_cell(run[name].get(mode), run.get("sdpa", {}).get(mode)) for mode in MODES]
        cells += [f"{run[name][key] / MIB:,.0f}" if run[name].get(key) else "-" for key in ("forward_bytes", "forward_backward_bytes")]
        lines.append(f"| {VARIANTS[name]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def time_cell(found: list | None, fused: list | None) -> str:
    """[mean, deviation] as text, with the multiple of the fused call's mean."""
    if not found:
        return "-"
    mean, std = found
    return f"{number(mean)} ± {number(std, like=mean)}" + (f" ({mean / fused[0]:.1f})" if fused else "")


def number(value: float, like: float | None = None) -> str:
    """Three digits where they mean something: 1,234, 56.7, 8.90; with the decimals of another number, if one is given."""
    size = value if like is None else like
    return f"{value:,.{0 if size >= 100 else 1 if size >= 10 else 2}f}"


def means_and_stds(run: dict[str, dict]) -> tuple[list[str], dict, dict]:
    """Titles of the variants of one run, and for each measured mode their means and deviations (None: not measured)."""
    names, means, stds = [name for name in VARIANTS if name in run], {}, {}
    for mode in (mode for mode in MODES if any(run[name].get(mode) for name in names)):
        means[mode], stds[mode] = zip(*(run[name].get(mode) or (None, None) for name in names))
    return [VARIANTS[name] for name in names], means, stds


def plot_execution_times(functions: Iterable[str], execution_means: dict, execution_stds: dict, filename: Path | str | None = None):
    """Horizontal bars, one panel for each mode: mode -> one mean (and one deviation) in ms for each function, None for none.

    Returns the figure; writes it if a filename is given. Section 11.
    """
    import matplotlib.pyplot as plt

    use_course_style()
    names = list(functions)
    fig, axes = plt.subplots(
        1, len(execution_means), figsize=(3.2 * len(execution_means) + 1.5, 0.32 * len(names) + 1.2), sharey=True, squeeze=False
    )
    for ax, (mode, means), color in zip(axes[0], execution_means.items(), ("blue", "orange", "green", "purple")):
        there = [place for place, mean in enumerate(means) if mean is not None]
        deviations = [execution_stds[mode][place] for place in there]
        bars = ax.barh(there, [means[place] for place in there], xerr=deviations, color=COLORS[color], ecolor="black", capsize=2)
        ax.bar_label(bars, labels=[number(means[place]) for place in there], padding=4, fontsize=9)
        ax.set(xlabel="ms", title=MODES.get(mode, mode), yticks=range(len(names)), yticklabels=names)
        ax.margins(x=0.25)
    axes[0][0].invert_yaxis()
    return save(fig, filename)


def plot_scaling(log: list[dict], filename: Path | str | None = None):
    """Forward time and memory against the number of tokens, both axes logarithmic, a line for each variant.

    Returns the figure; writes it if a filename is given. Section 11.
    """
    import matplotlib.pyplot as plt

    use_course_style()
    fig, axes = plt.subplots(1, 2, figsize=(9, 3.6))
    for name, color in zip(VARIANTS, ("orange", "red", "purple", "yellow", "blue", "sky", "green", "black", "black")):
        records = sorted((record for record in log if record["variant"] == name), key=lambda record: record["context_length"])
        times = [(record["context_length"], record["forward"][0]) for record in records if record.get("forward")]
        memory = [(record["context_length"], record["forward_bytes"] / MIB) for record in records if record.get("forward_bytes")]
        for ax, known in zip(axes, (times, memory)):
            if known:
                label = f"{VARIANTS[name]}: {number(known[-1][1])}"
                ax.loglog(*zip(*known), marker="o", markersize=4, color=COLORS[color], label=label)
    lengths = sorted({record["context_length"] for record in log})
    for ax, title, unit in zip(axes, ("Time", "Memory at its peak"), ("ms", "MiB")):
        ax.set(xlabel="tokens", ylabel=f"{unit}, forward", title=title, xticks=lengths, xticklabels=[f"{length:,}" for length in lengths])
        ax.minorticks_off()
        ax.legend(fontsize=9, title=f"{unit} at {lengths[-1]:,} tokens", title_fontsize=9)
    return save(fig, filename)


def save(fig, filename: Path | str | None):
    """Write the figure if there is a filename; return it in either case."""
    import matplotlib.pyplot as plt

    if filename:
        fig.savefig(filename, dpi=130)
        plt.close(fig)
    return fig


def picture_name(path: Path, record: dict, what: str) -> Path:
    """A file beside the log, named for machine, number type and sizes."""
    device = re.sub(r"\W+", "-", record["device"].lower()).strip("-")
    return path.with_name(f"{path.stem}-{device}-{record['dtype']}-{record['batch_size']}x{what}.png")


def draw(path: Path, into_readme: bool = False) -> str:
    """Draw a plot for each run and for each series of lengths, beside the log; return the tables of the runs.

    into_readme: also put the tables between the marks of the README.md beside the log.
    """
    log, tables, series = read_log(path), [], {}
    for record in log:  # a series: everything agrees but the length
        series.setdefault(tuple(record[key] for key in SETTING if key != "context_length"), []).append(record)
    for records in series.values():
        if len(runs_of(records)) > 1:
            plot_scaling(records, picture_name(path, records[0], "lengths"))
            continue
        run = {record["variant"]: record for record in records}
        plot_execution_times(*means_and_stds(run), picture_name(path, records[0], records[0]["context_length"]))
        tables.append(markdown_table(run))
    page, joined = path.with_name("README.md"), "\n\n".join(tables)
    if into_readme and page.exists():
        before, start, rest = page.read_text(encoding="utf-8").partition(MARK_START)
        _, end, after = rest.partition(MARK_END)
        if end:
            write_text(page, f"{before}{start}\n{joined}\n{end}{after}")
    return joined
