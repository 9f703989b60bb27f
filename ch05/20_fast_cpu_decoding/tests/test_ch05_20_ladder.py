"""The ladder counts the bytes it claims to read, lets only equal texts compete, and its log is the one that the README shows.

Run it:  pytest ch05/20_fast_cpu_decoding/tests/test_ch05_20_ladder.py
"""

import json
import os
from pathlib import Path

import pytest
import torch

if os.environ.get("CI") != "true":
    pytest.importorskip("numba", reason="needs numba: python -m pip install numba")

import figures_fast
import ladder
from ladder_programs import FORMS, Rung, fast_rungs, gpt_rungs, stream_program
from llama import Llama3Model
from previous_chapters import GPTModel, KVCache

FOLDER = Path(ladder.__file__).parent
SIZES = {"vocab_size": 96, "context_length": 64, "emb_dim": 64, "n_heads": 4, "n_layers": 2}
LLAMA = {**SIZES, "hidden_dim": 96, "n_kv_groups": 2, "rope_base": 10_000.0, "rope_freq": None, "dtype": torch.float32}
GPT = {**SIZES, "drop_rate": 0.0, "qkv_bias": False}


def test_a_program_writes_the_same_each_time_and_its_bytes_are_counted():
    model, idx = Llama3Model(LLAMA).eval(), torch.arange(9)[None]
    rungs = fast_rungs(model, FORMS, 5, 1)
    matrices = sum(layer.weight.numel() for layer in model.modules() if isinstance(layer, torch.nn.Linear))
    rows = sum(layer.weight.shape[0] for layer in model.modules() if isinstance(layer, torch.nn.Linear))
    one = rungs["one step, int8"]
    assert matrices + 4 * rows <= one.weight_bytes <= matrices + 4 * rows + 64  # int8, a scale a row, and placeholders
    assert rungs["one step, float32"].cache_bytes == 2 * 2 * 2 * 16 * 4  # keys and values, layers, groups, head_dim, bytes
    texts = [rungs["one step, float32"].run(idx)[0] for _ in range(2)]
    assert texts[0] == texts[1] == stream_program(model, KVCache(2), 5)(idx)[0]


@pytest.mark.slow
def test_a_gpt_and_its_twin_write_the_same():
    torch.manual_seed(1)
    rungs = gpt_rungs(GPTModel({**GPT, "qkv_bias": True}).eval(), {**GPT, "qkv_bias": True}, 6, 1)
    figures = ladder.compare_rungs(rungs, torch.arange(7)[None], rounds=1)
    assert figures["same_text"] is True and set(figures["rungs"]) == {*FORMS, "Hugging Face"}


def test_another_text_is_noticed_and_shares_follow_from_the_bytes(monkeypatch):
    monkeypatch.setattr(ladder, "read_bandwidth", lambda: 1e9)
    rungs = {"a": Rung(lambda idx: ([1, 2], 2.0), 200_000_000, 10_000_000), "b": Rung(lambda idx: ([1, 3], 1.0), 1, 1),
             "c": Rung(lambda idx: (None, 4.0), 1, 1, exact=False)}  # fmt: skip
    figures = ladder.compare_rungs(rungs, torch.zeros(1, 5, dtype=torch.long), rounds=3)
    assert figures["same_text"] is False and figures["rungs"]["a"]["share_of_limit"] == 0.5  # 250 MB twice a second of 1 GB/s
    del rungs["b"]
    assert ladder.compare_rungs(rungs, torch.zeros(1, 5, dtype=torch.long), rounds=1)["same_text"] is True


def test_the_readme_shows_the_committed_log(tmp_path):
    figures = json.loads((FOLDER / "ladder.json").read_text(encoding="utf-8"))
    assert ladder.results_tables(figures) in (FOLDER / "README.md").read_text(encoding="utf-8")
    assert all(one["same_text"] for one in figures["results"])
    page = tmp_path / "README.md"
    page.write_text("before\n<!-- results:start -->\nold\n<!-- results:end -->\nafter\n", encoding="utf-8")
    ladder.write_between_marks(page, ladder.results_tables(figures))
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text and "llama.cpp" in text
    page.write_text("no marks", encoding="utf-8")
    with pytest.raises(ValueError, match="results:start"):
        ladder.write_between_marks(page, ladder.results_tables(figures))


def test_what_readme_and_notebook_say_of_the_log_is_so():
    results = json.loads((FOLDER / "ladder.json").read_text(encoding="utf-8"))["results"]
    short, long = (next(one for one in ones if one["model"] == "SmolLM2-135M" and one["threads"] == 1) for ones in (results, results[1:]))
    assert short["context"] < long["context"]
    speeds = {name: found["tokens_per_s"] for name, found in short["rungs"].items()}
    steps = {name: speed for name, speed in speeds.items() if name.startswith("one step")}
    assert speeds["plain loop of calls"] < min(speeds["packed weights"], speeds["compiled products"])
    assert max(speeds["packed weights"], speeds["compiled products"]) < steps["one step, float32"] == min(steps.values())
    assert short["rungs"]["one step, float32"]["share_of_limit"] > 0.5 and speeds["one step, int8"] > 3 * speeds["Hugging Face"]
    rounded = "one step, 4 bits, rounded vector"
    if rounded in speeds:  # the bytes of the file with fewer instructions
        assert speeds[rounded] > max(speeds["one step, the file's 4 bits"], speeds["llama.cpp, the file's 4 bits"])


@pytest.mark.parametrize("wrong", [["--rounds", "0"], ["--threads", "0"], ["--models", "gpt9"], ["--new_tokens", "2"],
                                   ["--models", "gpt2-mini", "--new_tokens", "255"]])  # fmt: skip
def test_bad_settings_end_in_one_line(wrong, capsys):
    with pytest.raises(SystemExit) as stop:
        ladder.main(wrong)
    assert stop.value.code == 2 and len(capsys.readouterr().err.splitlines()) == 1


def test_figures_are_drawn():
    for figure in (figures_fast.ladder({"a": 1.0, "Hugging Face": 2.0}, {"a": 3.0}, "t"), figures_fast.side_by_side(),
                   figures_fast.seconds_by_part({"a": 1.0, "b": 2.0, "c": 3.0})):  # fmt: skip
        assert figure.axes
