"""The benchmark compares equal runs: same seed, same losses, one process each; a bad call is refused.

    python -m pytest ch05/01_main-chapter-code/tests/test_ch05_benchmark_precision.py
"""

import benchmark_precision
import pytest


@pytest.mark.slow
def test_both_precisions_learn_the_same_and_make_a_table(capsys):
    assert benchmark_precision.main(["--steps", "3"], emb_dim=32, n_heads=2, n_layers=2) == 0
    machine, _, plain, other, last = capsys.readouterr().out.splitlines()
    assert "torch" in machine and plain.startswith("fp32    fp32 on ") and other.startswith("auto    ")
    assert float(plain.split()[4]) > 10, "tokens a second"
    assert "times as fast" in last and float(last.split()[-3]) < 0.1, "the same seed, so the losses differ by rounding"


def test_report_names_the_largest_difference():
    result = {"asked": "fp32", "chosen": "fp32 on cpu", "speed": 100.0, "losses": [3.0, 2.0], "memory": 1.0}
    other = {**result, "asked": "auto", "chosen": "bf16 on cpu", "speed": 250.0, "losses": [3.0, 2.25]}
    last = benchmark_precision.report([result, other]).splitlines()[-1]
    assert last == "auto is 2.50 times as fast; losses differ by 0.2500 at most"


@pytest.mark.parametrize("call", [["--steps", "0"], ["--steps", "x"], ["--precision", "fp8"]])
def test_bad_calls_are_refused(call, capsys):
    with pytest.raises(SystemExit) as caught:
        benchmark_precision.main(call)
    assert caught.value.code == 2 and call[0] in capsys.readouterr().err
