"""benchmark.py counts the bytes it claims to read, and refuses settings that measure nothing."""

import benchmark
import pytest
import torch


def test_the_limit_reads_every_matrix_of_the_model_once():
    norms = 61 * 576
    weight_bytes, seconds = benchmark.measure_limit(torch.float32, repeats=1)
    assert weight_bytes == 4 * (134_515_008 - norms) and seconds > 0


def test_the_number_type_is_the_one_that_is_read_sooner(monkeypatch):
    for slow, fast in (("fp32", "bf16"), ("bf16", "fp32")):
        seconds = {benchmark.DTYPES[slow]: 2.0, benchmark.DTYPES[fast]: 1.0}
        monkeypatch.setattr(benchmark, "measure_limit", lambda dtype, layers, seconds=seconds: (1, seconds[dtype]))
        assert benchmark.faster_dtype() == fast


@pytest.mark.parametrize("arguments", [["--new_tokens", "3"], ["--rows", "0"]])
def test_bad_settings_end_in_one_line(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        benchmark.main(arguments)
    assert stop.value.code == 2 and len(capsys.readouterr().err.splitlines()) == 1
