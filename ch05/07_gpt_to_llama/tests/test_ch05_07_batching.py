"""batching.py: rows that equal themselves alone, figures that follow from the passes, the committed log, bad settings.

Run it:  pytest ch05/07_gpt_to_llama/tests/test_ch05_07_batching.py
"""

import json
from pathlib import Path

import batching
import matplotlib.pyplot as plt
import pytest
import torch
from llama import Llama3ModelFast, generate_batch, pack_for_decoding

LOG = json.loads(Path(batching.__file__).with_name("batching.json").read_text(encoding="utf-8"))
CFG = {"vocab_size": 97, "context_length": 160, "emb_dim": 32, "n_heads": 4, "n_layers": 2, "hidden_dim": 64, "n_kv_groups": 2,
       "rope_base": 10_000.0, "rope_freq": None, "dtype": torch.float32, "tied": True}


class Letters:
    def encode_chat(self, messages):
        return [ord(c) % 97 for message in messages for c in message["content"]]


def tiny():
    torch.manual_seed(5)
    return pack_for_decoding(Llama3ModelFast(CFG).eval())


@pytest.fixture
def tiny_model(monkeypatch):
    monkeypatch.setattr(batching, "load_smollm2", lambda dtype: (tiny(), Letters()))


def test_the_figures_follow_from_the_passes(monkeypatch):
    model, prompts = tiny(), [[1, 2, 3, 4], [5, 6]]
    alone = [generate_batch(model, [prompt], 5)[0] for prompt in prompts]
    rounds = iter([[2.0, 0.5, 0.25, 0.5, 9.0], [1.0, 0.1, 0.1, 0.1, 0.1], [3.0, 0.4, 0.4, 0.4, 0.4]])
    monkeypatch.setattr(batching, "timed_passes", lambda model, run: (run(), next(rounds)))
    figures = batching.measure(model, prompts, [alone[0], [0] * 5], 5, 3)
    expected = {"rows": 2, "padding_share": 0.25, "prompt_tokens_per_s": 3.0, "step_ms": 400.0, "tokens_per_s": 5.0, "rows_as_alone": 1}
    assert figures == expected


def test_the_program_writes_log_and_plot(tiny_model, tmp_path, capsys):
    log, plot = tmp_path / "log.json", tmp_path / "plot.png"
    options = ["--rows", "1", "3", "--new_tokens", "4", "--rounds", "1", "--device", "cpu"]
    assert batching.main([*options, "--json", str(log), "--plot", str(plot)]) == 0
    figures = json.loads(log.read_text(encoding="utf-8"))
    assert [one["rows"] for one in figures["results"]] == [one["rows_as_alone"] for one in figures["results"]] == [1, 3]
    assert len(capsys.readouterr().out.splitlines()) == 2 and plot.stat().st_size > 1000 and set(figures) == set(LOG)


def test_the_log_is_of_the_whole_range_and_more_rows_write_more():
    rows = [one["rows"] for one in LOG["results"]]
    speeds = [one["tokens_per_s"] for one in LOG["results"]]
    assert rows == [1, 2, 4, 8, 16, 32, 64] and speeds[-1] > 3 * speeds[0] and LOG["processor"] and LOG["threads"]
    assert all(one["rows_as_alone"] >= 0.9 * one["rows"] for one in LOG["results"])


def test_the_plot_is_drawn_from_the_figures():
    fig = batching.draw_batching(LOG)
    curves = {line.get_label(): line.get_ydata() for line in fig.axes[0].lines}
    plt.close(fig)
    assert list(curves["all rows together"]) == [one["tokens_per_s"] for one in LOG["results"]]
    assert curves["each row"][-1] == pytest.approx(LOG["results"][-1]["tokens_per_s"] / 64)


@pytest.mark.parametrize("arguments, message", [
    (["--rows", "0"], "allowed: 1 and up"), (["--new_tokens", "2"], "allowed: 3 and up"), (["--rounds", "0"], "allowed: 1 and up"),
    (["--device", "tpu"], "available"),
])
def test_bad_settings_end_in_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        batching.main(arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and len(error.splitlines()) == 1
