"""Formulas, experiments and command lines: known sizes, what the README says, one line for bad input."""

import importlib
import json
import re
from pathlib import Path

import compare_deltanet
import gated_deltanet
import plot_memory_estimates_gated_deltanet as memory
import previous_chapters
import pytest
import store_and_overwrite
import time_against_tokens
import torch
from previous_chapters import calc_kv_bytes_total, comparison_rows

FOLDER = Path(gated_deltanet.__file__).parent
PAGE = (FOLDER / "README.md").read_text(encoding="utf-8")


def test_the_formulas_give_the_known_sizes():
    sizes = {"emb_dim": 2048, "n_layers": 48, "bytes_per_elem": 2, "n_heads": 16}
    states = memory.calc_kv_bytes_total_deltanet_no_conv(1, **sizes)
    assert (states, memory.calc_kv_bytes_total_mha(1, 1, **sizes)) == (25_165_824, 393_216)
    assert states == memory.calc_kv_bytes_total_mha(1, 64, **sizes)  # equal at head_dim / 2 tokens
    assert memory.convert_to_gb(memory.calc_kv_bytes_total_mha(1, 131072, **sizes)) == pytest.approx(51.54, abs=0.005)
    assert memory.convert_to_gb(memory.calc_bytes_total_mix(1, 131072, **sizes)) == pytest.approx(12.90, abs=0.005)
    assert memory.calc_kv_bytes_total_mha(3, 10, **sizes) == calc_kv_bytes_total(3, 10, 2048, 16, 16, 48, 2)
    for n_layers in (1, 4, 13, 18):  # layers that 4 does not divide are all counted
        mixed = memory.calc_bytes_total_mix(2, 100, 64, n_layers, 4, 4)
        full = n_layers // 4
        assert mixed == 2 * 4 * 64 * ((n_layers - full) * 16 + full * 2 * 100)


def test_the_plot_has_the_bytes_of_the_formulas(tmp_path, monkeypatch):
    drawn = []
    real = memory.plot_bytes
    monkeypatch.setattr(memory, "plot_bytes", lambda *inputs: drawn.append(real(*inputs)) or drawn[-1])
    options = "--batch 2 --emb_dim 96 --n_heads 6 --n_layers 13 --dtype fp32 --min_ctx 100 --max_ctx 900"
    assert memory.main([*options.split(), "--output", str(tmp_path / "a.svg")]) == 0
    (ax,) = drawn[0].axes
    full, mix, states = ax.lines
    assert [int(n) for n in full.get_xdata()] == [100, 200, 400, 800, 900]
    sizes = {"emb_dim": 96, "n_layers": 13, "bytes_per_elem": 4, "n_heads": 6}
    assert list(full.get_ydata()) == [memory.calc_kv_bytes_total_mha(2, int(n), **sizes) for n in full.get_xdata()]
    assert list(mix.get_ydata()) == [memory.calc_bytes_total_mix(2, int(n), **sizes) for n in full.get_xdata()]
    assert set(states.get_ydata()) == {memory.calc_kv_bytes_total_deltanet_no_conv(2, **sizes)}
    assert mix.get_label() == "3:1 mix, 10 + 3 layers" and "13 layers, 6 heads of 16, fp32, batch 2" in ax.get_title("left")


def test_the_delta_rule_replaces_what_linear_attention_adds():
    at_right_angles, close = store_and_overwrite.KEYS.values()
    wanted = [3.0, 6.0, 8.0]
    assert store_and_overwrite.read_prices(at_right_angles, 1.0, True) == pytest.approx(wanted)
    assert store_and_overwrite.read_prices(at_right_angles, 1.0, False) == pytest.approx([3.0, 11.0, 8.0])
    torch.testing.assert_close(close @ close.T, 0.5 + 0.5 * torch.eye(3))
    by_hand = [3 + 0.5 * (5 + 8 + 6), 5 + 6 + 0.5 * (3 + 8), 8 + 0.5 * (3 + 5 + 6)]
    assert store_and_overwrite.read_prices(close, 1.0, False) == pytest.approx(by_hand)
    found = store_and_overwrite.read_prices(close, 1.0, True)
    assert found[1] == pytest.approx(6.0) and found[0] != pytest.approx(3.0, abs=1)


def test_a_state_gets_worse_with_each_pair_and_linear_attention_by_a_known_amount():
    """A read of linear attention mixes in the count - 1 other values, each with a squared cosine of 1 / head_dim."""
    counts = [1, 5, 9, 17]
    errors = store_and_overwrite.read_errors(counts, 8, 1)
    assert errors["linear attention"] == pytest.approx([(count - 1) / 8 for count in counts], rel=0.15, abs=1e-6)
    assert errors["delta rule"] == sorted(errors["delta rule"]) and errors["delta rule, last pair"] == pytest.approx([0] * 4, abs=1e-9)
    assert all(mine < theirs for mine, theirs in zip(errors["delta rule"][1:], errors["linear attention"][1:]))


def test_every_command_of_the_readme_runs_and_prints_what_stands_there(capsys, monkeypatch):
    monkeypatch.setattr(previous_chapters, "BATCH", 2)
    monkeypatch.setattr(previous_chapters, "STORY_CFG", {**previous_chapters.STORY_CFG, "context_length": 16, "n_layers": 4})
    commands = re.findall(r"^python (\w+)\.py *(.*)$", PAGE, re.MULTILINE)
    scripts = {path.stem for path in FOLDER.glob("*.py") if "__main__" in path.read_text(encoding="utf-8")}
    assert {name for name, _ in commands} == scripts
    log = ["--log", str(FOLDER / "story-comparison.json")]
    smaller = {"time_against_tokens": ["--tokens", "8", "16", "--emb_dim", "64", "--rounds", "1"], "compare_deltanet": log}
    for name, options in commands:
        if name == "compare_deltanet" and "draw_only" not in options:
            options += " --steps 10 --seeds 1"
        assert importlib.import_module(name).main([*options.split(), *(smaller.get(name, []) if "--steps" not in options else [])]) == 0
        lines = [line for line in capsys.readouterr().out.splitlines() if not re.match(r"time:|wrote", line)]
        assert name == "time_against_tokens" or "--steps" in options or "\n".join(lines) in PAGE


def test_the_readme_quotes_the_module_and_the_committed_logs():
    source = (FOLDER / "gated_deltanet.py").read_text(encoding="utf-8")
    listings = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)
    assert len(listings) >= 3 and all(line.strip() in source for block in listings for line in block.splitlines())
    log = json.loads((FOLDER / "story-comparison.json").read_text(encoding="utf-8"))
    assert list(log["runs"]) == list(compare_deltanet.BUILDERS) and len(log["seeds"]) == 3 and log["processor"] in PAGE
    assert "\n".join(comparison_rows(log)) in PAGE
    timed = json.loads((FOLDER / "time-against-tokens.json").read_text(encoding="utf-8"))
    assert "\n".join(time_against_tokens.rows_of(timed)) in PAGE and timed["processor"] in PAGE


def test_the_committed_losses_show_what_the_readme_says_of_them():
    runs = json.loads((FOLDER / "story-comparison.json").read_text(encoding="utf-8"))["runs"]
    full, *fading = ([min(losses) for losses in run["held_out"]] for run in runs.values())
    means = [sum(losses) / 3 for losses in fading]
    spread = max(max(losses) - min(losses) for losses in fading)
    assert min(full) - max(map(max, fading)) > 0.3
    assert f"the means differ by {max(means) - min(means):.3f} and the seeds of one variant by up to {spread:.3f}" in PAGE
    early = [sum(losses[3] for losses in run["held_out"]) / 3 for run in runs.values()][1:]
    assert f"{early[1]:.2f} and {early[2]:.2f} against {early[0]:.2f} after 200 steps" in PAGE


def test_the_committed_times_show_what_the_readme_says_of_them():
    timed = json.loads((FOLDER / "time-against-tokens.json").read_text(encoding="utf-8"))
    growth = {part: {name: times[-1] / times[-3] for name, times in timed[part].items()} for part in ("read", "next")}  # 4 times the text
    assert timed["tokens"][-1] == 4 * timed["tokens"][-3]
    assert growth["read"][time_against_tokens.FULL] > 10
    assert 3 < growth["read"][time_against_tokens.CHUNKS] < 6 and 3 < growth["read"][time_against_tokens.STEPS] < 6
    grown = [f"{growth['read'][name]:.0f}" for name in (time_against_tokens.FULL, time_against_tokens.CHUNKS)]
    assert f"grows by a factor of {grown[0]}, that of DeltaNet by {grown[1]}" in PAGE
    assert growth["next"][time_against_tokens.FULL] > 2 and 0.8 < growth["next"][time_against_tokens.CHUNKS] < 1.25


def test_compared_variants_have_nearly_the_same_number_of_weights():
    cfg = {"vocab_size": 62, "context_length": 16, "emb_dim": 64, "n_heads": 4, "n_layers": 4, "drop_rate": 0.0, "qkv_bias": False}
    counts = [sum(weight.numel() for weight in build(cfg).parameters()) for build in compare_deltanet.BUILDERS.values()]
    assert max(counts) < 1.011 * min(counts) and counts == sorted(counts)


def test_fading_attention_fades_as_deltanet_starts_and_without_a_pace_is_gated_attention():
    fading, gated = compare_deltanet.FadingAttention(8, 8, 20, 0.0, 4), gated_deltanet.GatedMultiHeadAttention(8, 8, 20, 0.0, 4)
    alpha = gated_deltanet.GatedDeltaNet(8, 8, 0.0, 4).log_alpha(torch.zeros(1, 1, 8))[0, 0].exp()
    torch.testing.assert_close(torch.exp(-fading.pace), alpha)
    gated.load_state_dict(fading.state_dict(), strict=True)
    x = torch.randn(2, 20, 8)
    fading.W_query.weight.data.zero_()  # equal scores: only the distance is left
    seen = []
    fading.out_proj.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0] / torch.sigmoid(fading.W_gate(x))))
    fading(x)
    weights = alpha ** torch.arange(19, -1, -1)[:, None]  # (20, 4)
    by_hand = ((weights / weights.sum(0))[None, :, :, None] * fading.W_value(x).view(2, 20, 4, 2)).sum(1).view(2, 8)
    torch.testing.assert_close(seen[0][:, -1], by_hand)
    fading.pace.zero_(), fading.load_state_dict(gated.state_dict())
    torch.testing.assert_close(fading(x), gated(x))


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (gated_deltanet, ["--emb_dim", "10", "--n_heads", "4"], "not divisible"),
        (gated_deltanet, ["--deltanet_stride", "x"], "--deltanet_stride"),
        (memory, ["--emb_dim", "10", "--n_heads", "4"], "10 is not divisible"),
        (memory, ["--min_ctx", "9", "--max_ctx", "8"], "--min_ctx 9 is more than --max_ctx 8"),
        (memory, ["--output", "nowhere/x.pdf"], "no such folder"),
        (store_and_overwrite, ["--output", "nowhere/x.pdf"], "no such folder"),
        (store_and_overwrite, ["--head_dim", "2", "--output", "x.xyz"], "xyz"),
        (time_against_tokens, ["--log", "nowhere/x.json"], "no such folder"),
        (time_against_tokens, ["--emb_dim", "100"], "100 is not divisible by 64"),
        (compare_deltanet, ["--draw_only", "--log", "missing.json"], "missing.json"),
    ],
)
def test_bad_input_ends_in_one_line(module, options, message, capsys):
    with pytest.raises(SystemExit) as stop:
        module.main(options)
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("device:")]
    assert stop.value.code == 2 and len(lines) == 1 and message in lines[0]


def test_the_shades_of_the_picture_are_the_rule_applied_to_an_example():
    picture = (FOLDER / "delta-rule.svg").read_text(encoding="utf-8")
    found = re.findall(r'<rect x="(\d+)" y="(\d+)"[^>]*fill="(#\w+)" fill-opacity="([\d.]+)"', picture)
    shade = {(int(x), int(y), color): float(number) for x, y, color, number in found}
    blue, orange = "#0072B2", "#E69F00"
    square = lambda left, color: torch.tensor([[shade[left + 18 * j, 70 + 18 * i, color] for j in range(4)] for i in range(4)])  # noqa: E731
    row = lambda y, color: torch.tensor([shade[300 + 18 * j, y, color] for j in range(4)])  # noqa: E731
    key = torch.tensor([shade[425, 70 + 18 * i, "#CC79A7"] for i in range(4)])
    faded, asked, value, delta = square(144, blue), row(66, blue), row(102, "#009E73"), row(138, orange)
    near = {"atol": 0.02, "rtol": 0}
    torch.testing.assert_close(key.norm(), torch.tensor(1.0), **near)
    torch.testing.assert_close(faded, 0.45 * square(18, blue), **near)
    torch.testing.assert_close(asked, key @ faded, **near)
    torch.testing.assert_close(delta, 0.8 * (value - asked), **near)
    torch.testing.assert_close(square(452, blue), faded, **near)
    torch.testing.assert_close(square(452, orange), torch.outer(key, delta), **near)
