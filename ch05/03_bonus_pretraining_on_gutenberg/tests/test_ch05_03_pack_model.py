"""A packed model: the same weights, held-out text that gives back the same tokens, losses that can be computed again."""

import json

import fast_gpt
import numpy as np
import pack_model
import prepare_dataset
import pretraining_simple
import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.slow  # they share a training run of seconds


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A tiny model trained for three steps on the tales and on forty short generated texts, then packed: (folder, data, run)."""
    home = tmp_path_factory.mktemp("pack")
    texts = [f"Dear Ben, number {i} wrote: the soup was {'very ' * (i % 5)}good. \"Is it?\" asked Uma…" for i in range(40)]
    lines = [{"number": i, "text": text} for i, text in enumerate(texts)]
    (home / "generated.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    data, run = home / "data", home / "run"
    sources = ["--tales", "--generated", str(home / "generated.jsonl")]
    assert prepare_dataset.main([*sources, "--output_dir", str(data), "--val_share", "0.1"]) == 0
    options = ["--size", "mini", "--max_steps", "3", "--eval_freq", "1", "--batch_size", "64", "--precision", "fp32", "--device", "cpu"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(fast_gpt.SIZES, "mini", {**fast_gpt.SIZES["debug"], "qkv_bias": True, "tied": True})
        assert pretraining_simple.main(["--data_dir", str(data), "--output_dir", str(run), *options]) == 0
    assert pack_model.main(["--run", str(run), "--data", str(data), "--output", str(home / "gpt2-tiny")]) == 0
    return home / "gpt2-tiny", data, run


def test_weights_and_log_are_those_of_the_run(packed):
    folder, _, run = packed
    for name in ("model.safetensors", "config.json"):
        assert (folder / name).read_bytes() == (run / "gpt2-mini" / name).read_bytes()
    assert (folder / "log.jsonl").read_bytes() == (run / "log.jsonl").read_bytes() and load_file(folder / "model.safetensors")


def test_held_out_text_tokenized_again_is_the_validation_shard(packed, tmp_path):
    folder, data, _ = packed
    text = (folder / "held-out-generated.txt").read_text(encoding="utf-8")
    again = np.fromfile(pack_model.write_shard(text, tmp_path / "again.bin"), dtype="<u2")
    assert text.count("Dear Ben") > 1 and "…" in text
    assert np.array_equal(again, np.fromfile(data / "val_generated_00000.bin", dtype="<u2"))


def test_losses_are_those_of_the_run_up_to_float16(packed):
    folder, _, run = packed
    measured = json.loads((folder / "results.json").read_text(encoding="utf-8"))["losses"]
    at_the_end = json.loads((run / "final.json").read_text(encoding="utf-8"))
    assert set(measured) == {"val_loss", "val_tales_loss", "val_generated_loss"}
    assert all(measured[name] == pytest.approx(at_the_end[name], abs=2e-3) for name in measured)


def test_results_name_every_source_with_its_license(packed):
    results = json.loads((packed[0] / "results.json").read_text(encoding="utf-8"))
    assert {source["license"] for source in results["sources"]} == {"public domain", "CC0"}
    assert results["tokens_seen_at_last_evaluation"] == 3 * 64 * 10 and results["training_tokens"] > 100_000


def test_ten_samples_begin_with_their_prompts_and_repeat(packed, tmp_path):
    folder, _, _ = packed
    samples = (folder / "samples.md").read_text(encoding="utf-8")
    assert all(f"{i}. {prompt}" in samples for i, prompt in enumerate(pack_model.PROMPTS, start=1))
    torch.manual_seed(99)
    pack_model.write_samples(pack_model.load_folder(folder), 10, tmp_path / "again.md")
    assert (tmp_path / "again.md").read_text(encoding="utf-8") == samples


def test_an_unfinished_run_or_unfit_data_ends_in_one_line(packed, tmp_path, capsys):
    _, data, run = packed
    assert prepare_dataset.main(["--tales", "--output_dir", str(tmp_path / "tales-only")]) == 0
    capsys.readouterr()
    unfit = [str(tmp_path), str(tmp_path / "tales-only")]
    for options in (["--run", str(tmp_path), "--data", str(data)], *(["--run", str(run), "--data", folder] for folder in unfit)):
        with pytest.raises(SystemExit) as stopped:
            pack_model.main([*options, "--output", str(tmp_path / "out")])
        assert stopped.value.code == 2 and capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists()
