"""Formula, plot, log and command lines: figures of real models, what the README says, one line for bad input."""

import importlib
import json
import math
import re
from collections import Counter, defaultdict
from pathlib import Path

import compare_gqa
import gpt_with_kv_gqa
import gpt_with_kv_mha
import memory_estimator_gqa
import plot_memory_estimates_gqa
import pytest
import story_comparison
import torch
from memory_estimator_gqa import calc_kv_bytes_total, convert_bytes

FOLDER = Path(compare_gqa.__file__).parent
PAGE = (FOLDER / "README.md").read_text(encoding="utf-8")
TINY = ["--emb_dim", "8", "--n_heads", "2", "--n_layers", "1", "--max_new_tokens", "3"]


def test_the_formula_gives_the_known_sizes():
    found = {heads: calc_kv_bytes_total(1, 8192, 4096, 32, heads, 32, 2) for heads in (32, 8, 4, 1)}
    assert {heads: convert_bytes(n) for heads, n in found.items()} == {32: "4.295 GB", 8: "1.074 GB", 4: "536.871 MB", 1: "134.218 MB"}
    assert calc_kv_bytes_total(3, 8192, 4096, 32, 8, 32, 4) == 6 * found[8]
    assert [convert_bytes(n) for n in (999, 1500, 10**6)] == ["999 B", "1.500 kB", "1.000 MB"]


def test_plot_and_estimator_give_the_same_bytes(tmp_path):
    fig = plot_memory_estimates_gqa.plot_abs_kv_vs_context_multi_groups(96, 6, 5, 2, "fp32", tmp_path / "plot.svg")
    (ax,) = fig.axes
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log") and "5 layers, 6 heads of 16, fp32, batch 2" in ax.get_title("left")
    drawn = {int(re.search(r": (\d+)", line.get_label())[1]): line for line in ax.lines}
    assert list(drawn) == [6, 3, 1]
    for heads, line in drawn.items():
        assert list(line.get_ydata()) == [calc_kv_bytes_total(2, int(n), 96, 6, heads, 5, 4) for n in line.get_xdata()]
    assert (tmp_path / "plot.svg").stat().st_size > 1000


def test_every_command_of_the_readme_runs_and_prints_what_stands_there(capsys, tmp_path, monkeypatch):
    commands = re.findall(r"^python (\w+)\.py *(.*)$", PAGE, re.MULTILINE)
    assert {name for name, _ in commands} >= {"gpt_with_kv_gqa", "memory_estimator_gqa", "plot_memory_estimates_gqa", "compare_gqa"}
    monkeypatch.setattr(story_comparison, "EVALUATIONS", 2)
    for name, options in commands:
        smaller = TINY if name.startswith("gpt_") and "--seed" not in options else []
        if name == "compare_gqa" and "draw_only" not in options:
            smaller = ["--steps", "10", "--seeds", "1"]
        if "draw_only" in options:
            smaller = ["--log", str(FOLDER / "story-comparison.json")]
            monkeypatch.setattr(story_comparison, "EVALUATIONS", 10)
        assert importlib.import_module(name).main([*options.split(), *smaller]) == 0
        lines = [line for line in capsys.readouterr().out.splitlines() if not re.match(r"time:|wrote", line)]
        if name == "memory_estimator_gqa" or "--seed" in options or "draw_only" in options:
            assert "\n".join(lines) in PAGE


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (gpt_with_kv_gqa, ["--n_heads", "12", "--n_kv_groups", "5"], "num_heads 12 is not divisible by num_kv_groups 5"),
        (gpt_with_kv_gqa, ["--n_kv_groups", "0"], "0 is too small"),
        (gpt_with_kv_mha, ["--emb_dim", "10", "--n_heads", "4"], "--emb_dim 10 is not divisible by --n_heads 4"),
        (memory_estimator_gqa, ["--emb_dim", "10", "--n_heads", "4", "--n_layers", "1"], "10 is not divisible"),
        (memory_estimator_gqa, ["--emb_dim", "8", "--n_heads", "4", "--n_layers", "1", "--n_kv_groups", "3"], "4 is not divisible by 3"),
        (memory_estimator_gqa, ["--n_heads", "4", "--n_layers", "1"], "--emb_dim"),
        (plot_memory_estimates_gqa, ["--emb_dim", "10", "--n_heads", "4"], "10 is not divisible"),
        (plot_memory_estimates_gqa, ["--output", "nowhere/plot.pdf"], "no such folder"),
        (plot_memory_estimates_gqa, ["--output", "plot.xyz"], "xyz"),
        (compare_gqa, ["--log", "nowhere/x.json"], "no such folder"),
        (compare_gqa, ["--draw_only", "--log", "missing.json"], "missing.json"),
        (compare_gqa, ["--steps", "3"], "3 is too small"),
    ],
)
def test_bad_input_ends_in_one_line(module, options, message, capsys):
    with pytest.raises(SystemExit) as stop:
        module.main(options)
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("device:")]
    assert stop.value.code == 2 and len(lines) == 1 and message in lines[0]


def test_the_held_out_loss_counts_each_character_once():
    model = gpt_with_kv_mha.GPTModel({**story_comparison.STORY_CFG, "vocab_size": 61, "context_length": 8, "n_layers": 1})
    ids = torch.randint(61, (30,))
    found = story_comparison.held_out_loss(model, ids, 8)
    pieces = [(ids[start : start + 8], ids[start + 1 : start + 9]) for start in (0, 8, 16)]
    with torch.no_grad():
        losses = [-model(x[None])[0].log_softmax(-1)[torch.arange(8), y] for x, y in pieces]
    assert found == pytest.approx(torch.cat(losses).mean().item(), abs=1e-5) and model.training


def test_variants_see_the_same_batches_and_a_seed_repeats_its_run():
    train, held_out, letters = story_comparison.story_characters()
    assert len(held_out) == len(torch.cat([train, held_out])) - len(train) and 1900 < len(held_out) < 2200 and letters == 62
    builders = {name: compare_gqa.BUILDERS["GQA, 2 key-value heads"] for name in ("one", "two")}
    log = story_comparison.compare_on_story(builders, [5], 12)
    assert log["runs"]["one"] == log["runs"]["two"] and len(log["runs"]["one"]["held_out"][0]) == 10
    assert log["runs"]["one"]["held_out"][0][-1] < 4.0  # log(62) = 4.13 is knowing nothing


def counting_table_loss(length):
    """Held-out loss per character of counts of what follows `length` characters, backing off to shorter ones (Witten and Bell)."""
    train, held_out, letters = story_comparison.story_characters()
    text = train.tolist() + held_out.tolist()
    counts = defaultdict(Counter)
    for place in range(len(train)):
        for n in range(min(length, place) + 1):
            counts[tuple(text[place - n : place])][text[place]] += 1
    losses = []
    for place in range(len(train), len(text)):
        chance = 1 / letters
        for n in range(length + 1):
            seen = counts.get(tuple(text[place - n : place]))
            if seen:
                chance = (seen[text[place]] + len(seen) * chance) / (seen.total() + len(seen))
        losses.append(-math.log(chance))
    return sum(losses) / len(losses)


def test_the_page_compares_with_tables_of_counts():
    found = [f"{counting_table_loss(length):.2f}" for length in (1, 2, 3)]
    said = re.search(r"reaches (\S+) on the same held-out text, one that looks at two characters (\S+), at three (\S+)\.", PAGE)
    assert list(said.groups()) == found


def test_the_readme_quotes_the_committed_log():
    log = json.loads((FOLDER / "story-comparison.json").read_text(encoding="utf-8"))
    assert list(log["runs"]) == list(compare_gqa.BUILDERS) and len(log["seeds"]) == 3 and log["processor"] in PAGE
    assert "\n".join(story_comparison.comparison_rows(log)) in PAGE
