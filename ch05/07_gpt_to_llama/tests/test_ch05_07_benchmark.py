"""The benchmark times every pass, counts the bytes it claims to read, and refuses settings that measure nothing."""

import json
import sys
from pathlib import Path

import benchmark
import decoding_benchmark
import pytest
import torch
from llama import Llama3ModelFast, load_weights_into_llama, pack_for_decoding
from llama_oracles import hugging_face

FOLDER = Path(benchmark.__file__).parent
TINY = {"vocab_size": 97, "context_length": 64, "emb_dim": 48, "n_heads": 6, "n_layers": 2, "hidden_dim": 80, "n_kv_groups": 2,
        "rope_base": 10_000.0, "rope_freq": None, "dtype": torch.float32}


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(5)
    twin, ours = hugging_face(TINY), Llama3ModelFast(TINY).eval()
    load_weights_into_llama(ours, TINY, twin.state_dict())
    return pack_for_decoding(ours), twin


@pytest.mark.slow
def test_every_pass_is_timed_and_the_programs_write_the_same(models):
    ours, twin = models
    idx = torch.randint(0, 97, (2, 9))
    for model, program in ((ours, decoding_benchmark.our_program(ours, 6)), (twin, decoding_benchmark.hugging_face_program(twin, 6))):
        passes = []
        hook = model.register_forward_hook(lambda *_, passes=passes: passes.append(1))
        ids, (prompt, writing) = program(idx)
        hook.remove()
        assert ids.shape == (2, 15) and len(passes) == 6 and prompt > 0 and writing > 0
        assert not model._forward_hooks
    figures = decoding_benchmark.compare_programs(
        {"ours": decoding_benchmark.our_program(ours, 6), "Hugging Face": decoding_benchmark.hugging_face_program(twin, 6)},
        {"ours": 1, "Hugging Face": 1}, idx, rounds=2,
    )  # fmt: skip
    assert figures["same_ids"] is True and figures["rows"] == 2 and figures["prompt_tokens"] == 9


def test_other_ids_are_noticed(models, monkeypatch):
    ours, _ = models
    program, wrong = decoding_benchmark.our_program(ours, 5), decoding_benchmark.our_program(ours, 5)
    programs = {"Hugging Face": program, "wrong": lambda idx: (wrong(idx)[0] + 1, (1.0, 1.0))}
    monkeypatch.setattr(decoding_benchmark, "read_bandwidth", lambda: 1e9)
    figures = decoding_benchmark.compare_programs(programs, dict.fromkeys(programs, 5e8), torch.zeros(1, 4, dtype=torch.long), rounds=1)
    assert figures["same_ids"] is False
    assert figures["programs"]["wrong"]["share_of_bandwidth"] == 0.5  # 5e8 bytes a token, one token a second, of 1e9 bytes


def test_speeds_follow_from_the_passes():
    idx = torch.zeros(4, 10, dtype=torch.long)
    assert decoding_benchmark.speeds_of_passes([2.0, 0.5, 0.25, 0.5], idx) == (20.0, 8.0)


def test_a_tied_head_is_counted_once(models):
    ours, _ = models
    expected = 4 * sum(p.numel() for name, p in ours.named_parameters() if "norm" not in name and "tok_emb" not in name)
    assert decoding_benchmark.weight_bytes(ours) == expected


def test_llama_cpp_is_left_out_where_it_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    assert decoding_benchmark.llama_cpp_program("anything.gguf", 4, 64) is None


def test_the_table_goes_between_the_marks_and_nowhere_else(tmp_path):
    figures = json.loads((FOLDER / "benchmark.json").read_text(encoding="utf-8"))
    page = tmp_path / "README.md"
    page.write_text("before\n<!-- results:start -->\nold\n<!-- results:end -->\nafter\n", encoding="utf-8")
    decoding_benchmark.write_between_marks(page, decoding_benchmark.results_table(figures))
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text and "Hugging Face" in text
    page.write_text("no marks", encoding="utf-8")
    with pytest.raises(ValueError, match="results:start"):
        decoding_benchmark.write_between_marks(page, decoding_benchmark.results_table(figures))


def test_the_readme_quotes_the_committed_benchmark():
    figures = json.loads((FOLDER / "benchmark.json").read_text(encoding="utf-8"))
    assert decoding_benchmark.results_table(figures) in (FOLDER / "README.md").read_text(encoding="utf-8")
    compared = {(one["dtype"], one["rows"]) for one in figures["results"]}
    assert compared == {(dtype, rows) for dtype in ("fp32", "bf16") for rows in (1, 64)}
    assert all(one["same_ids"] for one in figures["results"] if one["dtype"] == "fp32")


@pytest.mark.parametrize("arguments", [["--new_tokens", "3"], ["--rows", "0"], ["--rounds", "0"], ["--prompt_tokens", "1"]])
def test_bad_settings_end_in_one_line(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        benchmark.main(arguments)
    assert stop.value.code == 2 and len(capsys.readouterr().err.splitlines()) == 1
