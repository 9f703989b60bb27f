"""The layer debuggers agree with right code, name the first layer of wrong code, and refuse bad options in one line."""

import subprocess
import sys
from pathlib import Path

import gemma3_layer_debugger as debugger
import pytest
import torch
from gemma3_layer_debugger_detailed import detailed_modules

TESTS = Path(debugger.__file__).parent
NOTEBOOKS = ["standalone-gemma3.ipynb", "standalone-gemma3-plus-kvcache.ipynb"]


@pytest.fixture(scope="module", params=NOTEBOOKS)
def pair(request):
    """(definitions, our model, Hugging Face's) from each notebook."""
    definitions = debugger.load_notebook_defs(request.param)
    return definitions, *debugger.build_gemma3_pair(definitions, debugger.tiny_debug_config())


def compare(pair, modules=debugger.layer_modules):
    torch.manual_seed(1)
    return debugger.layerwise_differences(*pair[1:], torch.randint(257, (2, 30)), modules=modules)


def test_every_layer_agrees(pair):
    report = debugger.format_report(compare(pair))
    assert report.endswith("all agree") and report.count("ok") == 6 and "layer 3 (full)" in report
    detailed = compare(pair, detailed_modules)
    assert len(detailed) == 4 * 14 + 2 and all(row["equal"] for row in detailed)


@pytest.mark.parametrize("part, first, inside", [
    (lambda block: block.att.W_key.weight, "layer 2 (sliding)", "layer 2 W_key"),
    (lambda block: block.att.q_norm.scale, "layer 2 (sliding)", "layer 2 q_norm"),
    (lambda block: block.post_feedforward_layernorm.scale, "layer 2 (sliding)", "layer 2 post_feedforward_layernorm"),
])
def test_a_wrong_part_is_found_where_it_is(pair, part, first, inside):
    parameter = part(pair[1].blocks[2])
    before = parameter.detach().clone()
    with torch.no_grad():
        parameter += 0.1
    try:
        assert debugger.format_report(compare(pair)).endswith(f"first difference: {first}")
        assert debugger.format_report(compare(pair, detailed_modules)).endswith(f"first difference: {inside}")
    finally:
        with torch.no_grad():
            parameter.copy_(before)


def test_a_checkpoint_in_hugging_faces_format_replaces_the_sizes(pair, tmp_path):
    config = {**debugger.tiny_debug_config(), "n_layers": 2, "layer_types": ["full_attention", "sliding_attention"]}
    other = debugger.build_gemma3_pair(pair[0], config)[1]
    other.save_pretrained(tmp_path / "gemma")
    ours, theirs = debugger.build_gemma3_pair(pair[0], debugger.tiny_debug_config(), tmp_path / "gemma")
    assert len(ours.blocks) == 2 and ours.cfg["sliding_window"] == 8
    assert all(row["equal"] for row in debugger.layerwise_differences(ours, theirs, torch.arange(30)[None]))


def test_folder_imports_leave_no_trace():
    before = list(sys.meta_path)
    with debugger.folder_imports():
        assert len(sys.meta_path) == len(before) + 1
    assert sys.meta_path == before


def run(*options):
    command = [sys.executable, TESTS / options[0], *options[1:]]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=120)


@pytest.mark.slow
def test_the_detailed_script_runs_from_any_folder_and_counts_differences():
    done = run("gemma3_layer_debugger_detailed.py", "--rtol", "0", "--atol", "0", "--notebook", NOTEBOOKS[1])
    assert done.stdout.splitlines()[-1].startswith("first difference: layer") and done.returncode == 1, done.stderr


def test_details_are_an_option_too(capsys):
    assert debugger.main(["--details"]) == 0
    out = capsys.readouterr().out
    assert "layer 3 q_norm" in out and out.rstrip().endswith("all agree")


@pytest.mark.parametrize("options, message", [
    (["--notebook", "nothing.ipynb"], "no such notebook"), (["--checkpoint", "nowhere"], "no such file"), (["--atol", "-1"], "0 or more"),
])
def test_bad_options_end_in_one_line(options, message, capsys):
    with pytest.raises(SystemExit) as stop:
        debugger.parse(options)
    assert stop.value.code == 2 and message in capsys.readouterr().err.splitlines()[-1]
