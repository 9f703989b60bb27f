"""The scripts print what they promise and answer bad input with one line; the benchmark compares equals and counts right."""

import json
import re
from pathlib import Path

import benchmark_kv_cache
import benchmark_tools
import cached_script
import gpt_with_kv_cache
import gpt_with_kv_cache_optimized
import pytest
import torch

FOLDER = Path(benchmark_kv_cache.__file__).parent
SCRIPTS = {"gpt_with_kv_cache.py": gpt_with_kv_cache, "gpt_with_kv_cache_optimized.py": gpt_with_kv_cache_optimized}
TINY = ["--emb_dim", "8", "--n_heads", "2", "--n_layers", "1"]
CFG = {"vocab_size": 61, "context_length": 24, "emb_dim": 16, "n_heads": 4, "n_layers": 3, "drop_rate": 0.0, "qkv_bias": False}
each = pytest.mark.parametrize("module", SCRIPTS.values(), ids=SCRIPTS)


@each
def test_a_run_prints_the_same_text_with_and_without_a_cache(module, capsys):
    texts = []
    for options in ([], ["--no_kv_cache"], ["--dtype", "bf16", "--seed", "5"]):
        assert module.main([*TINY, "--max_new_tokens", "12", "--prompt", "The tide", *options]) == 0
        text, ids, cost = capsys.readouterr().out.splitlines()
        assert text.startswith("text: 'The tide") and re.fullmatch(r"new ids: \[(\d+, ){9}\d+\] \.\.\.", ids)
        assert re.fullmatch(r"time: [\d.]+ s, [\d.]+ new tokens/s, peak memory: \d+ MiB", cost)
        texts.append(text)
    assert texts[0] == texts[1] != texts[2]


def test_every_command_of_the_readme_runs(capsys):
    commands = re.findall(r"^python (gpt_\S+)(.*)$", (FOLDER / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(commands) >= 2
    for name, options in commands:
        assert SCRIPTS[name].main([*options.split(), *TINY, "--max_new_tokens", "3"]) == 0
    assert gpt_with_kv_cache_optimized.main([*TINY, "--max_new_tokens", "5", "--kv_window_size", "64"]) == 0
    assert capsys.readouterr().out.count("new tokens/s") == len(commands) + 1


@each
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--emb_dim", "10", "--n_heads", "4"], "--emb_dim 10 is not divisible by --n_heads 4"),
        (["--n_layers", "0"], "0 is too small"),
        (["--max_new_tokens", "0"], "0 is too small"),
        (["--emb_dim", "wide"], "'wide' is not a whole number"),
        (["--prompt", ""], "the prompt is empty"),
        (["--dtype", "int8"], "int8"),
        (["--device", "abacus"], "available: cpu"),
        (["--unknown"], "--unknown"),
    ],
)
def test_bad_input_ends_in_one_line(module, options, message, capsys):
    with pytest.raises(SystemExit) as stop:
        module.main([*options])
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("device:")]
    assert stop.value.code == 2 and len(lines) == 1 and message in lines[0]


def test_the_output_in_the_readme_is_what_the_command_prints(capsys):
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    gpt_with_kv_cache_optimized.main("--n_layers 2 --max_new_tokens 20 --seed 124".split())
    text, ids, _ = capsys.readouterr().out.splitlines()
    assert f"{text}\n{ids}\n" in page


def test_a_window_below_one_is_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        gpt_with_kv_cache_optimized.main([*TINY, "--kv_window_size", "0"])
    assert stop.value.code == 2 and "0 is too small" in capsys.readouterr().err


@pytest.mark.slow
def test_the_peak_of_memory_counts_what_was_held():
    before = cached_script.most_memory_mib(torch.device("cpu"))
    block = torch.ones(int(2**18 * (before + 64)))  # 64 MiB more than all that this process ever held
    assert cached_script.most_memory_mib(torch.device("cpu")) >= before + 60 and block[-1] == 1


@pytest.mark.parametrize("seed", [1, 2])
def test_hugging_face_gets_exactly_our_weights(seed):
    torch.manual_seed(seed)
    ours = gpt_with_kv_cache_optimized.GPTModel(CFG).eval()
    for parameter in ours.parameters():  # norms and biases that do something
        torch.nn.init.normal_(parameter, std=0.3)
    twin, ids = benchmark_kv_cache.hugging_face_twin(ours), torch.randint(61, (2, 20))
    with torch.no_grad():
        torch.testing.assert_close(twin(ids).logits, ours(ids), atol=1e-4, rtol=1e-4)


def test_a_step_reads_every_linear_weight_and_the_whole_cache():
    model = gpt_with_kv_cache_optimized.GPTModel(CFG)
    block = 3 * 16 * 16 + (16 * 16 + 16) + (16 * 64 + 64) + (64 * 16 + 16)
    expected = 4 * (3 * block + 16 * 61) + 2 * 5 * 7 * 3 * 16 * 4  # 5 rows, 7 tokens
    assert benchmark_kv_cache.step_bytes(model, cached_tokens=7, rows=5) == expected


def test_runs_that_choose_other_tokens_are_no_result():
    same = torch.tensor([[1, 2]])
    benchmark_tools.assert_equal_ids({"a": [same, same.clone()], "b": [same.clone()]})
    with pytest.raises(RuntimeError, match="b chose other tokens than a"):
        benchmark_tools.assert_equal_ids({"a": [same], "b": [same, same + 1]})


def test_compared_runs_take_turns():
    order = []
    runs = {name: (lambda name=name: (order.append(name), len(order))) for name in ("a", "b", "c")}
    _, seconds = benchmark_tools.interleaved(runs, 2)
    assert order == list("abcabc") and seconds == {"a": [1, 4], "b": [2, 5], "c": [3, 6]}


def test_a_small_benchmark_has_the_form_of_the_committed_one(tmp_path, capsys):
    sizes = ["--vocab_size", "61", "--max_new_tokens", "6", "--prompt_length", "9", "--steps", "3", "--rounds", "1", "--rows", "1", "2"]
    assert benchmark_kv_cache.main([*TINY, *sizes, "--json", str(tmp_path / "result.json")]) == 0
    found = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert found == json.loads(capsys.readouterr().out)
    committed = json.loads((FOLDER / "benchmark_kv_cache.json").read_text(encoding="utf-8"))
    assert found.keys() <= committed.keys() and found["with_and_without"].keys() == committed["with_and_without"].keys()
    assert [one.keys() for one in found["beside_hugging_face"]] == [one.keys() for one in committed["beside_hugging_face"]]
    for one in (*found["beside_hugging_face"], *committed["beside_hugging_face"]):
        speed_up = one["ms_per_step_hugging_face"] / one["ms_per_step_ours"]
        assert one["times_faster_than_hugging_face"] == pytest.approx(speed_up, rel=0.02, abs=0.006)  # rounded to two digits


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--rows", "0"], "too small"), (["--emb_dim", "9"], "not divisible"), (["--json", "nowhere/x.json"], "no such folder")],
)
def test_a_benchmark_that_cannot_run_ends_in_one_line(options, message, capsys):
    with pytest.raises(SystemExit) as stop:
        benchmark_kv_cache.main(options)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and len(error.splitlines()) == 1


def test_the_readme_quotes_the_committed_benchmark():
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    committed = json.loads((FOLDER / "benchmark_kv_cache.json").read_text(encoding="utf-8"))
    cached = committed["with_and_without"]
    assert committed["cfg"]["n_layers"] == 12 and cached["new_tokens"] == 200 and committed["processor"] in page
    numbers = [f"{cached['seconds'][name]:.1f}" for name in cached["seconds"]]
    numbers += [f"{cached['times_faster_than_without'][name]:.1f}" for name in cached["seconds"]]
    for one in committed["beside_hugging_face"]:
        numbers += [f"{one['ms_per_step_ours']:.0f} ms", f"{one['ms_per_step_hugging_face']:.0f} ms"]
        numbers += [f"{one['times_faster_than_hugging_face']:.2f}", f"{one['share_of_bandwidth_ours']:.0%}"]
    assert [number for number in numbers if number not in page] == []
