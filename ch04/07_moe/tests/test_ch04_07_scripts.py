"""Formula, plot, log and command lines: figures of real models, parameters of real layers, what the README says, one line for bad input."""

import importlib
import json
import re
from pathlib import Path

import compare_moe
import gpt_with_kv_ffn
import gpt_with_kv_moe
import memory_estimator_moe
import plot_memory_estimates_moe
import previous_chapters
import pytest
import torch
from gpt_with_kv_moe import MoEFeedForward
from memory_estimator_moe import calc_ffn_params, calc_moe_active_and_total, calc_router_params, estimate_params_and_hidden
from previous_chapters import FeedForward, comparison_rows, count_parameters

FOLDER = Path(compare_moe.__file__).parent
PAGE = (FOLDER / "README.md").read_text(encoding="utf-8")
TINY = ["--emb_dim", "8", "--n_heads", "2", "--n_layers", "1", "--max_new_tokens", "3", "--hidden_dim", "6"]


@pytest.fixture
def small_comparison(monkeypatch):
    """Training sizes for a test: two layers, short texts, small batches."""
    monkeypatch.setattr(previous_chapters, "STORY_CFG", {**previous_chapters.STORY_CFG, "context_length": 32, "n_layers": 2})
    monkeypatch.setattr(previous_chapters, "BATCH", 4)


def test_the_formula_gives_the_known_sizes():
    assert calc_moe_active_and_total(4096, 14336, "swiglu", 8, 2, match_dense=False) == (352_354_304, 1_409_318_912)
    active, total = calc_moe_active_and_total(7168, 2048, "swiglu", 256, 8, match_dense=False, num_shared_experts=1)
    assert (active, total) == (398_196_736, 11_320_164_352)
    small = calc_moe_active_and_total(768, 1536, "swiglu", 8, 2, match_dense=False)
    assert f"{12 * small[1] * 4 / 1e9:.2f} GB" in PAGE
    for number in (58 * total / 1e9, 58 * active / 1e9, 32 * 1_409_318_912 / 1e9):  # DeepSeek-V3 twice, Mixtral 8x7B
        assert f"{number:.1f} billion" in PAGE
    matched = estimate_params_and_hidden(4096, 14336, "swiglu", 8, match_dense=True)
    assert matched["hidden"] == 1792 and matched["total"] - matched["dense"] == calc_router_params(4096, 8) == 32_768
    assert estimate_params_and_hidden(8, 6, "gelu", 0)["total"] == 96 and calc_moe_active_and_total(8, 6, "gelu", 0, 2) == (96, 96)


def test_router_outweighs_the_chosen_experts_when_there_are_many_as_the_readme_says():
    found = estimate_params_and_hidden(4096, 14336, "swiglu", 512, match_dense=True)
    assert found["router"] > 2 * found["expert"] and f"{found['router']:,}" in PAGE and f"{2 * found['expert']:,}" in PAGE
    active = {number: calc_moe_active_and_total(4096, 14336, "swiglu", number, 2)[0] for number in (2, 4, 8, 16, 32, 64, 128, 256, 512)}
    assert min(active, key=active.get) == 256


@pytest.mark.parametrize("shared", [0, 2])
def test_estimates_are_the_parameters_of_real_layers(shared):
    cfg = {"emb_dim": 8, "hidden_dim": 6, "num_experts": 5, "num_experts_per_tok": 3, "num_shared_experts": shared}
    moe = MoEFeedForward(cfg)
    active, total = calc_moe_active_and_total(8, 6, "swiglu", 5, 3, match_dense=False, num_shared_experts=shared)
    assert count_parameters(moe) == total and compare_moe.active_parameters(moe) == active
    moe(torch.randn(1, 1, 8)).square().sum().backward()  # one token: what gets a gradient is what it used
    assert sum(weight.numel() for weight in moe.parameters() if weight.grad is not None) == active
    assert calc_ffn_params(8, 6, "swiglu") == count_parameters(gpt_with_kv_ffn.FeedForward(cfg))
    biases = 4 * 8 + 8
    assert calc_ffn_params(8, 32, "gelu") == count_parameters(FeedForward({"emb_dim": 8})) - biases


@pytest.mark.parametrize("match_dense", [True, False])
def test_plot_and_estimator_give_the_same_parameters(match_dense, tmp_path):
    draw = plot_memory_estimates_moe.plot_active_params_vs_experts
    fig = draw(8, 48, "gelu", 3, 20, y_log=match_dense, match_dense=match_dense, output=tmp_path / "a.svg")
    (ax,) = fig.axes
    dense, total, active = ax.lines
    assert list(total.get_xdata()) == [3, 6, 12] and (ax.get_yscale() == "log") == match_dense
    assert set(dense.get_ydata()) == {calc_ffn_params(8, 48, "gelu")}
    for number, mine, all_of_them in zip((3, 6, 12), active.get_ydata(), total.get_ydata(), strict=True):
        assert (mine, all_of_them) == calc_moe_active_and_total(8, 48, "gelu", number, 3, match_dense)


def test_compared_models_have_equal_compute_or_equal_size():
    cfg = {"vocab_size": 61, "context_length": 8, "emb_dim": 64, "n_heads": 4, "n_layers": 2, "drop_rate": 0.0, "qkv_bias": False}
    dense, plain, balanced, wide = (build(cfg) for build in compare_moe.BUILDERS.values())
    router = 2 * calc_router_params(64, 8)
    assert compare_moe.active_parameters(plain) - router == count_parameters(dense) == compare_moe.active_parameters(dense)
    assert count_parameters(plain) - router == count_parameters(wide)
    balanced(torch.randint(61, (1, 8)))
    assert compare_moe.balance(dense) == compare_moe.balance(plain) == 0.0
    assert compare_moe.balance(balanced).item() == pytest.approx(0.01 * gpt_with_kv_moe.load_balancing_loss(balanced).item())


def test_a_short_comparison_repeats_and_logs_the_use_of_experts(small_comparison, monkeypatch):
    monkeypatch.setattr(compare_moe, "BUILDERS", {"MoE": compare_moe.BUILDERS["MoE, balanced"]})
    one, two = (compare_moe.train_all([5], 10) for again in range(2))
    assert one == two and one["runs"]["MoE"]["held_out"][0][-1] < 4.0  # log(62) = 4.13 is knowing nothing
    for layer in one["runs"]["MoE"]["shares"][0]:
        assert len(layer) == 8 and layer == sorted(layer, reverse=True) and sum(layer) == pytest.approx(1, abs=1e-3)


def test_the_readme_quotes_the_committed_log():
    log = json.loads((FOLDER / "story-comparison.json").read_text(encoding="utf-8"))
    assert list(log["runs"]) == list(compare_moe.BUILDERS) and len(log["seeds"]) == 3 and log["processor"] in PAGE
    assert "\n".join(comparison_rows(log)) in PAGE and "\n".join(compare_moe.use_rows(log)) in PAGE


def test_the_sentences_about_the_log_are_true():
    runs = json.loads((FOLDER / "story-comparison.json").read_text(encoding="utf-8"))["runs"]
    dense, plain, balanced, wide = ([min(losses) for losses in run["held_out"]] for run in runs.values())
    gains = [(sum(dense) - sum(other)) / 3 for other in (plain, balanced, wide)]
    assert "{:.3f} and {:.3f} below".format(*gains) in PAGE and f"is {gains[2]:.3f} below" in PAGE and max(wide) < min(plain + balanced)
    assert f"by up to {max(balanced) - min(balanced):.3f}" in PAGE and max(plain) - min(plain) < max(balanced) - min(balanced)
    assert abs(sum(dense[:2]) - sum(balanced[:2])) / 2 < 0.003 and abs(sum(dense[:2]) - sum(plain[:2])) / 2 < 0.003  # "without seed 3"
    assert f"{runs['dense, hidden 512']['active'] / runs['MoE, balanced']['active']:.1f} times the work" in PAGE
    last, level = ([seed[-1] for seed in runs[name]["shares"]] for name in ("MoE, 2 of 8 experts of 64", "MoE, balanced"))
    busiest = [layer[0] for layer in last]
    assert f"{min(busiest):.0%} to {max(busiest):.0%}".replace("% to", " to").replace("%", " %") in PAGE
    assert f"at most {max(layer[-1] for layer in last):.1%}".replace("%", " %") in PAGE
    ends = (min(layer[-1] for layer in level), max(layer[0] for layer in level))
    assert "between {:.0%} and {:.0%}".format(*ends).replace("% and", " and").replace("%", " %") in PAGE


def test_every_command_of_the_readme_runs_and_prints_what_stands_there(small_comparison, capsys, tmp_path, monkeypatch):
    commands = re.findall(r"^python (\w+)\.py *(.*)$", PAGE, re.MULTILINE)
    wanted = {"gpt_with_kv_moe", "gpt_with_kv_ffn", "memory_estimator_moe", "plot_memory_estimates_moe", "compare_moe"}
    assert {name for name, _ in commands} == wanted
    monkeypatch.chdir(tmp_path)
    for name, options in commands:
        smaller = TINY if name.startswith("gpt_") and "--seed" not in options else []
        if name == "compare_moe":
            smaller = ["--log", str(FOLDER / "story-comparison.json")] if "draw_only" in options else ["--steps", "10", "--seeds", "1"]
        assert importlib.import_module(name).main([*options.split(), *smaller]) == 0
        lines = [line for line in capsys.readouterr().out.splitlines() if not re.match(r"time:|wrote", line)]
        if name == "memory_estimator_moe" or "--seed" in options or "draw_only" in options:
            assert "\n".join(lines).split("\n\n")[0] in PAGE


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (gpt_with_kv_moe, [*TINY, "--num_experts_per_tok", "9"], "num_experts_per_tok 9 is not between 1 and num_experts 8"),
        (gpt_with_kv_moe, ["--num_experts", "-1"], "-1 is too small"),
        (gpt_with_kv_moe, ["--emb_dim", "10", "--n_heads", "4"], "not divisible"),
        (gpt_with_kv_ffn, ["--hidden_dim", "0"], "0 is too small"),
        (memory_estimator_moe, ["--emb_dim", "8"], "--hidden_dim"),
        (memory_estimator_moe, ["--emb_dim", "8", "--hidden_dim", "6", "--top_k", "9"], "top_k 9 is not between 1 and"),
        (memory_estimator_moe, ["--emb_dim", "8", "--hidden_dim", "6", "--match_dense"], "6 is not divisible by 8 experts"),
        (memory_estimator_moe, ["--emb_dim", "8", "--hidden_dim", "6", "--ffn_type", "relu"], "relu"),
        (plot_memory_estimates_moe, ["--top_k", "5", "--max_experts", "4"], "top_k 5 is more than max_experts 4"),
        (plot_memory_estimates_moe, ["--hidden_dim", "100"], "100 is not divisible by 8 experts"),
        (plot_memory_estimates_moe, ["--output", "nowhere/plot.pdf"], "no such folder"),
        (compare_moe, ["--router_figure", "nowhere/x.png"], "no such folder"),
        (compare_moe, ["--draw_only", "--log", "missing.json"], "missing.json"),
        (compare_moe, ["--steps", "3"], "3 is too small"),
    ],
)
def test_bad_input_ends_in_one_line(module, options, message, capsys):
    with pytest.raises(SystemExit) as stop:
        module.main(options)
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("device:")]
    assert stop.value.code == 2 and len(lines) == 1 and message in lines[0]


def test_unknown_kinds_and_counts_are_refused():
    with pytest.raises(ValueError, match="'relu' is not one of gelu, swiglu"):
        calc_ffn_params(8, 6, "relu")
    with pytest.raises(ValueError, match="0 experts or more, got -1"):
        estimate_params_and_hidden(8, 6, "gelu", -1)
