"""The benchmark compares equal runs: same seeds, same losses, one process each; bad calls are one line."""

import json

import bench
import pytest


@pytest.mark.slow
def test_equal_precisions_give_equal_losses_and_the_file_holds_them(tmp_path, capsys):
    path = tmp_path / "bench.json"
    assert bench.main(["--size", "tiny", "--steps", "3", "--precisions", "fp32", "fp32", "--threads", "1", "--json", str(path)]) == 0
    out = capsys.readouterr().out
    numbers = json.loads(path.read_text(encoding="utf-8"))
    first, second = numbers["results"]
    assert first["losses"] == second["losses"] and len(first["losses"]) == 3
    assert first["tokens_per_second"] > 0 and first["peak_memory_gb"] > 0.05
    assert "fp32 and fp32: 0.0000" in out and "tokens/s" in out and numbers["machine"]["threads"] == 1


def test_report_names_the_largest_difference():
    result = {"precision": "fp32", "chosen": "fp32", "tokens_per_second": 100.0, "losses": [3.0, 2.0]}
    result |= {"peak_memory_gb": 1.0, "parameters": 7}
    other = {**result, "precision": "auto", "chosen": "bf16", "tokens_per_second": 250.0, "losses": [3.0, 2.25]}
    machine = {"cpu": "a chip", "flags": ["amx_bf16"], "cores": 2, "threads": 2, "torch": "2", "python": "3"}
    text = bench.report([result, other], machine, "tiny", 2)
    assert "2.50x" in text and "fp32 and auto: 0.2500" in text and "amx_bf16" in text


BAD = [["--steps", "0"], ["--steps", "x"], ["--precisions", "fp8"], ["--json", "no-folder/x.json"], ["--size", "1T"]]


@pytest.mark.parametrize("call", BAD)
def test_bad_call_is_one_line(call, capsys):
    with pytest.raises(SystemExit) as caught:
        bench.main(call)
    err = capsys.readouterr().err
    assert caught.value.code == 2 and err.count("\n") == 1 and call[0] in err
