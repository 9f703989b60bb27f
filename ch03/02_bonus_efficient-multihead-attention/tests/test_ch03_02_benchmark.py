"""Clock, memory, log, tables and plots, and the command line: what is measured is what is said."""

import json
import re
import time
from pathlib import Path

import benchmark_mha
import mha_results
import mha_timing
import pytest
import torch
from mha_implementations import VARIANTS, build_variants
from mha_timing import forward_backward, peak_bytes, time_pytorch_function, time_pytorch_function_forward_backward

FOLDER = Path(benchmark_mha.__file__).parent
PAGE = (FOLDER / "README.md").read_text(encoding="utf-8")
TINY = ["--batch_size", "1", "--context_length", "16", "--d_out", "8", "--num_heads", "2", "--repeats", "2", "--no_compile"]
CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


def test_times_are_milliseconds_without_warm_up_and_without_autograd():
    calls = []

    def slow_at_first(x):
        calls.append(torch.is_inference_mode_enabled())
        time.sleep(0.2 if len(calls) <= mha_timing.WARM_UP else 0.01)

    mean, std = time_pytorch_function(slow_at_first, torch.ones(1), num_repeats=4)
    assert 10 <= mean < 100 and 0 <= std < 100 and calls == [True] * (4 + mha_timing.WARM_UP)


def test_backward_is_timed_with_all_gradients():
    layer, x = torch.nn.Linear(3, 2), torch.ones(4, 3, requires_grad=True)
    mean, std = time_pytorch_function_forward_backward(layer, x, num_repeats=2)
    assert mean > 0 and std >= 0 and layer.weight.grad is not None
    forward_backward(layer, x)
    torch.testing.assert_close(x.grad, layer.weight.sum(dim=0).expand(4, 3))  # of one call: not added up


def test_peak_memory_counts_what_lives_at_one_moment():
    def two_then_one(x):
        first = x + 1
        second = first + 1
        del first
        return second + 1  # two of them at a time, never three

    x = torch.zeros(1000, 250)  # a million bytes
    assert peak_bytes(two_then_one, x) == pytest.approx(2e6, rel=0.01)
    variants, x = build_variants(32, 32, 256, 4), torch.randn(2, 256, 32)
    table = 2 * 4 * 256 * 256 * 4
    with torch.inference_mode():
        held = {name: peak_bytes(variants[name], x) / table for name in ("chapter3", "combined", "sdpa")}
    assert held["chapter3"] > 2.9 and held["combined"] > 2.9 and held["sdpa"] < 0.6


def test_a_wrong_variant_is_not_timed():
    variants, x = build_variants(8, 8, 6, 2), torch.randn(1, 6, 8)
    for name, variant in variants.items():
        benchmark_mha.check_equal(name, variant, variants["sdpa"], x)
    variants["chapter3"].mask.fill_(False)
    with pytest.raises(RuntimeError, match="chapter3 differs from the fused call"):
        benchmark_mha.check_equal("chapter3", variants["chapter3"], variants["sdpa"], x)


def test_a_run_fills_the_log_and_a_second_one_updates_it(tmp_path, capsys):
    path = tmp_path / "log.json"
    assert benchmark_mha.main([*TINY, "--only", "chapter3", "sdpa", "flex", "--output", str(path)]) == 0
    out = capsys.readouterr().out
    assert "compiled modes skipped: --no_compile" in out and "no backward pass on a CPU" in out and "| 5 SDPA, is_causal |" in out
    first = json.loads(path.read_text(encoding="utf-8"))
    assert [record["variant"] for record in first] == ["chapter3", "sdpa"]
    for record in first:
        assert record["dtype"] == "float32" and record["context_length"] == 16 and record["threads"] == torch.get_num_threads()
        assert len(record["forward"]) == len(record["forward_backward"]) == 2 and "forward_compiled" not in record
        assert record["forward_backward_bytes"] > record["forward_bytes"] > 0
    benchmark_mha.main([*TINY, "--resume", "--only", "sdpa", "einsum", "--output", str(path)])
    second = json.loads(path.read_text(encoding="utf-8"))
    assert [record["variant"] for record in second] == ["chapter3", "einsum", "sdpa"] and second[2] == first[1]
    benchmark_mha.main([*TINY, "--only", "sdpa", "--dtype", "bfloat16", "--output", str(path)])
    assert len(mha_results.runs_of(mha_results.read_log(path))) == 2  # another number type: another table
    assert len(list(tmp_path.glob("log-*float32-1x16.png"))) == len(list(tmp_path.glob("log-*bfloat16-1x16.png"))) == 1
    benchmark_mha.main([*TINY[:2], "--context_length", "16", "32", *TINY[4:], "--only", "sdpa", "--output", str(path)])
    assert len(list(tmp_path.glob("log-*float32-1xlengths.png"))) == 1


def record_of(name: str, forward: float, **changes) -> dict:
    sizes = {"device": "A (cpu)", "threads": 2, "torch": "2", "dtype": "float32", "batch_size": 1, "context_length": 8, "d_out": 4}
    return {"variant": name, **sizes, "num_heads": 2, "forward": [forward, 1.0], "forward_bytes": 3 * 2**20, **changes}


def test_tables_hold_one_machine_and_multiples_of_the_fused_call():
    log = [record_of("chapter3", 300.0), record_of("sdpa", 100.0), record_of("sdpa", 7.0, device="B (cuda)")]
    tables = [mha_results.markdown_table(run) for run in mha_results.runs_of(log).values()]
    assert len(tables) == 2 and "A (cpu), 2 threads" in tables[0] and "B (cuda)" not in tables[0]
    assert "| 2 chapter 3 | 300 ± 1 (3.0) | - | - | - | 3 | - |" in tables[0] and "| 5 SDPA, is_causal | 7.00 ± 1.00 (1.0) |" in tables[1]
    mha_results.put(log, record_of("sdpa", 90.0))
    assert [record["forward"][0] for record in log] == [300.0, 7.0, 90.0]


def test_plots_show_the_numbers():
    fig = mha_results.plot_execution_times(
        ["one", "two"], {"forward": [3.0, 12.5], "backward": [None, 4.0]}, {"forward": [1, 2], "backward": [None, 1]}
    )
    first, second = fig.axes
    assert {text.get_text() for text in first.texts} == {"3.00", "12.5"} and {text.get_text() for text in second.texts} == {"4.00"}
    assert [bar.get_width() for bar in first.patches] == [3.0, 12.5] and [bar.get_y() + bar.get_height() / 2 for bar in second.patches] == [
        1
    ]
    assert first.get_xlabel() == "ms"
    log = [record_of("sdpa", 10.0 * length, context_length=length) for length in (64, 256, 128)]
    axes = mha_results.plot_scaling(log).axes
    assert list(axes[0].lines[0].get_xdata()) == [64, 128, 256] and axes[0].lines[0].get_ydata()[2] == 2560
    assert all((ax.get_xscale(), ax.get_yscale()) == ("log", "log") for ax in axes)


def test_the_readme_shows_the_committed_log(tmp_path):
    (tmp_path / "README.md").write_text(PAGE, encoding="utf-8")
    (tmp_path / "mha-times.json").write_text((FOLDER / "mha-times.json").read_text(encoding="utf-8"), encoding="utf-8")
    tables = mha_results.draw(tmp_path / "mha-times.json", into_readme=True)
    assert tables and tables in PAGE, "run python benchmark_mha.py --draw_only"
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == PAGE
    drawn = {path.name for path in tmp_path.glob("*.png")}
    assert drawn == {path.name for path in FOLDER.glob("mha-times-*.png")} and all(f"({name})" in PAGE for name in drawn)


def test_every_command_of_the_readme_runs(tmp_path, capsys):
    commands = re.findall(r"^python benchmark_mha\.py *(.*)$", PAGE, re.MULTILINE)
    assert len(commands) >= 3
    for options in commands:
        where = ["--output", str(tmp_path / "log.json")]
        shorter = [] if "draw_only" in options else [*TINY[:2], *TINY[4:]] + ([] if "lengths" in options else TINY[2:4])
        assert benchmark_mha.main([*options.split(), *shorter, *where]) == 0
    assert "plots are beside" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--only", "turbo"], "turbo"),
        (["--repeats", "0"], "0 is too small"),
        (["--dtype", "int8"], "int8"),
        (["--d_out", "10", "--num_heads", "4"], "--d_out 10 is not divisible by --num_heads 4"),
        (["--output", "nowhere/log.json"], "no such folder"),
        (["--draw_only", "--output", "missing.json"], "no such file"),
        (["--output", "broken.json"], "is not a log"),
        (["--device", "abacus"], "abacus"),
    ],
)
def test_bad_input_ends_in_one_line(options, message, capsys):
    Path("broken.json").write_text('[{"variant": "turbo"}]', encoding="utf-8")
    with pytest.raises(SystemExit) as stop:
        benchmark_mha.main(options)
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("device:")]
    assert stop.value.code == 2 and len(lines) == 1 and message in lines[0]


def test_a_number_type_that_a_device_lacks_is_refused():
    benchmark_mha.check_dtype(CPU, torch.bfloat16)
    with pytest.raises(ValueError, match="--dtype bool does not work on cpu"):
        benchmark_mha.check_dtype(CPU, torch.bool)


@pytest.mark.skipif(bool(mha_timing.why_not_compiled(CPU)), reason="torch.compile needs a C++ compiler")
def test_why_not_compiled_says_what_is_missing(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert "C++ compiler" in mha_timing.why_not_compiled(CPU)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_is_timed_by_its_events_and_its_own_memory():
    variants, x = build_variants(64, 64, 128, 4), torch.randn(2, 128, 64, device="cuda")
    found = benchmark_mha.measure("sdpa", variants["sdpa"].to("cuda"), x, 3, compiled=False)
    assert found["forward"][0] > 0 and found["forward_bytes"] >= x.nbytes


def test_titles_and_names_agree():
    assert [title.split()[0] for title in VARIANTS.values()] == [str(number) for number in range(1, 10)]
