"""A long run is what it claims: the same after breaks, on several processes, however often it is measured; exported unchanged."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import fast_gpt
import measuring
import numpy as np
import pretraining_simple
import pytest
import torch
from export_gpt2 import export_gpt2
from fast_gpt import SIZES, FastGPT, count_parameters, learning_rate_at
from previous_chapters import GPTModel
from safetensors.torch import load_file
from shards import create_shard_dataloaders
from transformers import GPT2LMHeadModel

PLAIN = ["--precision", "fp32", "--device", "cpu"]
FOLDER = Path(pretraining_simple.__file__).resolve().parent
TINY = {"vocab_size": 90, "context_length": 8, "emb_dim": 16, "n_heads": 2, "n_layers": 2, "drop_rate": 0.1, "qkv_bias": True, "tied": True}


def make_shards(folder, tokens=1500, seed=0):
    """A folder of shards as prepare_dataset.py writes it, of random ids below 90: two for training, one for validation."""
    folder.mkdir(parents=True)
    numbers, entries = np.random.default_rng(seed), []
    for name, split, source, count in (("t0", "train", "all", tokens), ("t1", "train", "all", tokens // 2), ("v", "val", "tales", 200)):
        numbers.integers(0, 90, count).astype("<u2").tofile(folder / f"{name}.bin")
        entries.append({"file": f"{name}.bin", "split": split, "source": source, "tokens": count, "sha256": f"{name} {seed}"})
    (folder / "index.json").write_text(json.dumps({"shards": entries, "sources": []}), encoding="utf-8")
    return folder


@pytest.fixture
def train(monkeypatch, tmp_path):
    """Train the tiny model on tiny shards: train("folder", options...) -> state dict of the final weights."""
    monkeypatch.setitem(fast_gpt.SIZES, "mini", TINY)
    data = make_shards(tmp_path / "data")

    def call(folder, *options):
        common = ["--data_dir", str(data), "--size", "mini", "--n_epochs", "2", "--batch_size", "7", *PLAIN]
        rhythm = ["--print_sample_iter", "0", "--eval_freq", "6", "--lr", "3e-3"]
        assert pretraining_simple.main([*common, *rhythm, "--output_dir", folder, *options]) == 0
        return torch.load(Path(folder) / "model_pg_final.pth", weights_only=True)

    return call


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("piece", [7, 250, 3200, 50_000])  # 1, 5, 64 and all of the 63 rows
def test_the_loss_in_pieces_and_its_gradients_are_cross_entropys(piece, monkeypatch):
    monkeypatch.setattr(fast_gpt.HeadLoss, "PIECE", piece)
    torch.manual_seed(piece)
    x, weight = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((3, 21, 12), (50, 12)))
    targets = torch.randint(0, 50, (3, 21))
    expected = torch.nn.functional.cross_entropy((5 * x @ weight.T).flatten(0, 1), targets.flatten())
    expected_grads = torch.autograd.grad(7 * expected, (x, weight))
    found = fast_gpt.head_loss(5 * x, weight, targets)
    assert torch.allclose(found, expected, rtol=1e-12)
    for ours, theirs in zip(torch.autograd.grad(7 * found, (x, weight)), expected_grads, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-12)
    with torch.no_grad():
        assert torch.equal(fast_gpt.head_loss(5 * x, weight, targets), found)
    huge = fast_gpt.head_loss(1e4 * x.float(), weight.float(), targets)
    assert torch.isfinite(huge) and huge > 1e3


def test_a_tied_head_gets_both_gradients_from_the_loss_in_pieces():
    torch.manual_seed(3)
    model, ids = FastGPT({**TINY, "drop_rate": 0.0}).double(), torch.randint(0, 90, (4, 9))
    inputs, targets = ids[:, :-1], ids[:, 1:]
    model(inputs, targets).backward()
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    torch.nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()).backward()
    assert all(torch.allclose(found[name], parameter.grad, rtol=1e-9, atol=1e-12) for name, parameter in model.named_parameters())


def gradients(model, inputs, targets):
    model.zero_grad()
    loss = model(inputs, targets)
    loss.backward()
    return loss, {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("unseen", [[89], [0], [3, 40, 41, 88], range(1, 80)])
def test_one_column_for_all_unseen_tokens_changes_neither_loss_nor_gradients(unseen):
    torch.manual_seed(3)
    seen = torch.ones(90, dtype=torch.bool)
    seen[list(unseen)] = False
    ids = seen.nonzero()[:, 0][torch.randint(0, int(seen.sum()), (4, 9))]
    model = FastGPT({**TINY, "drop_rate": 0.0}).double()
    model.share_unseen(seen)
    loss, found = gradients(model, ids[:, :-1], ids[:, 1:])
    model.seen = None
    expected_loss, expected = gradients(model, ids[:, :-1], ids[:, 1:])
    assert torch.allclose(loss, expected_loss, rtol=1e-12)
    assert all(torch.allclose(found[name], expected[name], rtol=1e-9, atol=1e-14) for name in expected)
    assert found["tok_emb.weight"][~seen].abs().min() > 0


def test_measuring_counts_unseen_tokens_one_by_one():
    torch.manual_seed(3)
    model = FastGPT(TINY).eval()
    model.share_unseen(torch.arange(90) < 50)
    ids = torch.randint(0, 90, (4, 9))
    with torch.no_grad():
        loss, logits = model(ids[:, :-1], ids[:, 1:]), model(ids[:, :-1])
    assert torch.allclose(loss, torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()))


def test_tokens_that_the_shards_lack_keep_one_embedding_through_training(train, tmp_path):
    data = make_shards(tmp_path / "few")
    for name in ("t0", "t1"):
        few = np.fromfile(data / f"{name}.bin", dtype="<u2") // 2 * 2  # even ids only
        few.tofile(data / f"{name}.bin")
    options = ["--data_dir", str(data), "--max_steps", "12", "--share_unseen"]
    embedding = train("shared", *options)["tok_emb.weight"]
    assert torch.allclose(embedding[1::2], embedding[1].expand(45, -1), atol=1e-6)
    assert torch.cdist(embedding[::2], embedding[::2]).fill_diagonal_(1).min() > 1e-3
    with pytest.raises(SystemExit):
        train("full", "--data_dir", str(tmp_path / "data"), "--share_unseen")


def test_sharing_needs_a_tied_head_and_something_to_share():
    with pytest.raises(ValueError, match="output head"):
        FastGPT({**TINY, "tied": False}).share_unseen(torch.arange(90) < 50)
    with pytest.raises(ValueError, match="none is left"):
        FastGPT(TINY).share_unseen(torch.arange(90) < 90)


def test_under_autocast_the_loss_is_the_usual_one():
    torch.manual_seed(3)
    model, ids = FastGPT(TINY).eval(), torch.randint(0, 90, (4, 9))
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        loss, logits = model(ids[:, :-1], ids[:, 1:]), model(ids[:, :-1])
    assert torch.equal(loss, torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten()))


def test_mini_keeps_to_its_size(tmp_path):
    torch.manual_seed(1)
    model = FastGPT(SIZES["mini"])
    assert count_parameters(model) == 12_368_064
    path = export_gpt2(model.state_dict(), SIZES["mini"], tmp_path / "gpt2-mini")
    assert 24_700_000 < path.stat().st_size < 24_800_000 and load_file(path)["wte.weight"].dtype == torch.float16
    config = json.loads((tmp_path / "gpt2-mini" / "config.json").read_text(encoding="utf-8"))
    assert (config["n_positions"], config["vocab_size"], config["tie_word_embeddings"]) == (256, 50257, True)
    assert (config["attn_pdrop"], config["resid_pdrop"]) == (0.0, 0.1)


@pytest.mark.parametrize("changes", [{}, {"tied": False, "qkv_bias": False}])
@torch.no_grad()
def test_the_fast_model_computes_what_chapter_4s_does(changes):
    cfg = {**TINY, **changes}
    model = FastGPT(cfg).eval()
    plain = GPTModel(cfg).eval()
    plain.load_state_dict(model.state_dict())
    ids = torch.randint(0, 90, (3, 8))
    assert torch.allclose(model(ids), plain(ids), atol=1e-5)
    with pytest.raises(ValueError, match="vocabulary"):
        model(torch.tensor([[90]]))


@pytest.mark.parametrize("changes", [{}, {"tied": False}, {"qkv_bias": False}])
@torch.no_grad()
def test_the_export_loads_in_transformers_with_equal_logits(tmp_path, changes):
    cfg = {**TINY, **changes}
    model = FastGPT(cfg).eval()
    for parameter in model.parameters():
        parameter.copy_((parameter + 0.05 * torch.randn_like(parameter)).half())
    export_gpt2(model.state_dict(), cfg, tmp_path / "hf")
    theirs, report = GPT2LMHeadModel.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    ids = torch.randint(0, 90, (3, 8))
    assert torch.allclose(theirs.float().eval()(ids).logits, model(ids), atol=1e-5)


def test_a_number_too_large_for_float16_is_not_exported(tmp_path):
    model = FastGPT(TINY)
    model.final_norm.scale.data[0] = 1e6
    with pytest.raises(ValueError, match="ln_f.weight"):
        export_gpt2(model.state_dict(), TINY, tmp_path / "hf")
    assert not list((tmp_path / "hf").glob("*.safetensors*"))


def test_the_learning_rate_rises_then_follows_half_a_cosine():
    rates = [learning_rate_at(step, 100, 1.0, 10, 0.1) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert rates[10] == max(rates) == 1.0 and rates[99] == pytest.approx(0.1)
    assert all(a >= b for a, b in zip(rates[10:], rates[11:], strict=False))
    assert rates[54] == pytest.approx(0.55, abs=0.02)


@pytest.mark.slow
def test_20_steps_equal_10_and_10_more(train, tmp_path, capsys):
    whole = train("whole", "--max_steps", "20")
    train("parts", "--max_steps", "10")
    assert (tmp_path / "parts" / "model_pg_9_interrupted.pth").exists()
    assert same(whole, train("parts", "--max_steps", "20", "--resume"))
    logs = [[json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()] for name in ("whole", "parts")]
    measured = [[{key: value for key, value in entry.items() if "loss" in key or key in ("step", "lr")} for entry in log] for log in logs]
    assert measured[0] == measured[1] and [entry["step"] for entry in measured[0]] == [0, 6, 12, 18]
    assert all(entry["tokens_per_second"] > 0 for entry in logs[1])
    out = capsys.readouterr().out
    assert out.strip().splitlines()[-1] == "Maximum GPU memory allocated: 0.00 GB"


@pytest.mark.slow
def test_a_break_between_epochs_changes_nothing(train):
    whole = train("whole", "--max_steps", "46")  # an epoch has 40 steps
    train("parts", "--max_steps", "40")
    assert same(whole, train("parts", "--max_steps", "46", "--resume"))


@pytest.mark.slow
def test_ctrl_c_saves_and_nothing_is_lost(train, tmp_path, monkeypatch):
    whole, calls = train("whole", "--max_steps", "20"), []
    original = pretraining_simple.batch_loss

    def pressed(*arguments):
        calls.append(1)
        if len(calls) == 8:
            signal.raise_signal(signal.SIGINT)
        return original(*arguments)

    monkeypatch.setattr(pretraining_simple, "batch_loss", pressed)
    before = signal.getsignal(signal.SIGINT)
    train("stopped", "--max_steps", "20")
    assert len(calls) == 8 and signal.getsignal(signal.SIGINT) is before
    assert (tmp_path / "stopped" / "model_pg_7_interrupted.pth").exists()
    assert same(whole, train("stopped", "--max_steps", "20", "--resume"))


DYING = """
import os, sys
import pretraining_simple
save, saved = pretraining_simple.save_run, []
def save_and_die(*args, **kwargs):
    save(*args, **kwargs)
    saved.append(1)
    if len(saved) == 2:
        os._exit(9)  # as abrupt as kill -9: nothing is cleaned up
pretraining_simple.save_run = save_and_die
pretraining_simple.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_killed_process_is_resumed_bit_for_bit(tmp_path):
    (tmp_path / "books").mkdir()
    words = np.random.default_rng(1).choice("the sea was calm and a boat came in late with fish".split(), 3000)
    (tmp_path / "books" / "a.txt").write_text(" ".join(words), encoding="utf-8")
    options = ["--data_dir", str(tmp_path / "books"), "--debug", "--max_steps", "24", *PLAIN]
    cut = [*options, "--output_dir", str(tmp_path / "cut"), "--save_ckpt_freq", "3"]
    assert subprocess.run([sys.executable, "-c", DYING, *cut], cwd=FOLDER, capture_output=True).returncode == 9
    assert {path.name for path in (tmp_path / "cut").glob("*.pth")} == {"model_pg_3.pth", "model_pg_6.pth"}
    assert pretraining_simple.main([*cut, "--resume"]) == 0
    assert pretraining_simple.main([*options, "--output_dir", str(tmp_path / "whole")]) == 0
    finals = [torch.load(tmp_path / name / "model_pg_final.pth", weights_only=True) for name in ("cut", "whole")]
    assert same(*finals)


@pytest.mark.slow
def test_checkpoints_are_saved_exactly_at_the_multiples(train, tmp_path):
    train("run", "--n_epochs", "1", "--save_ckpt_freq", "10")
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log] == [0, 6, 12, 18, 24, 30, 36, 39] and log[-1]["tokens_seen"] == 40 * 7 * 8
    names = {path.name for path in (tmp_path / "run").glob("model_pg_*")}
    assert names == {"model_pg_10.pth", "model_pg_20.pth", "model_pg_30.pth", "model_pg_final.pth"}  # 40 steps: 0 to 39


@pytest.mark.slow
def test_measuring_changes_no_weight(train):
    often = train("often", "--max_steps", "15", "--eval_freq", "1", "--eval_iter", "3")
    assert same(often, train("seldom", "--max_steps", "15", "--eval_freq", "14"))


def test_losses_of_unequal_batches_are_weighted_by_tokens(tmp_path):
    data, model = make_shards(tmp_path / "data"), FastGPT(TINY).eval()
    losses = []
    for batch_size in (7, 24):
        _, val = create_shard_dataloaders([data / "t0.bin"], batch_size, 8, val_paths={"a": [data / "v.bin"], "b": [data / "t1.bin"]})
        losses.append(measuring.validation_losses(model, val, torch.device("cpu")))
    assert losses[0] == pytest.approx(losses[1]) and losses[0].keys() == {"val_loss", "val_a_loss", "val_b_loss"}
    assert losses[0]["val_loss"] == pytest.approx((24 * losses[0]["val_a_loss"] + 93 * losses[0]["val_b_loss"]) / 117)


@pytest.mark.slow
def test_gradients_of_two_processes_equal_those_of_one_on_the_joined_batch(tmp_path):
    cfg, shard = {**TINY, "drop_rate": 0.0}, make_shards(tmp_path / "data") / "t0.bin"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local_addr=127.0.0.1", "--nproc_per_node=2"]
    script = [FOLDER / "tests" / "gradients_of_a_rank.py", shard, tmp_path / "gradients.pt", json.dumps(cfg)]
    subprocess.run([*torchrun, *script], env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(FOLDER)}, check=True, timeout=120)
    torch.manual_seed(0)
    model = FastGPT(cfg).double()
    loader, _ = create_shard_dataloaders([shard], 6, 8, seed=9)
    inputs, targets = next(iter(loader))
    measuring.batch_loss(model, inputs, targets, torch.device("cpu")).backward()
    found = torch.load(tmp_path / "gradients.pt", weights_only=True)
    assert found.keys() == {name for name, _ in model.named_parameters()}
    assert all(torch.allclose(parameter.grad, found[name], rtol=1e-5, atol=1e-7) for name, parameter in model.named_parameters())


@pytest.mark.slow
def test_a_folder_of_texts_is_tokenized_once_and_its_faults_are_named(tmp_path, capsys):
    folder = tmp_path / "books"
    folder.mkdir()
    (folder / "a.txt.utf8").write_text("A long day at sea. " * 200, encoding="utf-8")
    (folder / "b.txt").write_bytes(b"")
    (folder / "c.txt").write_bytes(b"\x00\x01")
    options = ["--data_dir", str(folder), "--debug", "true", "--max_steps", "2", "--output_dir", "out", *PLAIN]
    assert pretraining_simple.main(options) == 0
    printed = capsys.readouterr()
    assert "3 text files" in printed.out and "b.txt: empty" in printed.err and "c.txt: binary" in printed.err
    written = (tmp_path / "out" / "tokens" / "index.json").stat().st_mtime_ns
    assert pretraining_simple.main([*options, "--overwrite"]) == 0
    assert (tmp_path / "out" / "tokens" / "index.json").stat().st_mtime_ns == written
    (folder / "a.txt.utf8").write_text("Another long day at sea. " * 200, encoding="utf-8")
    assert pretraining_simple.main([*options, "--overwrite"]) == 0
    assert (tmp_path / "out" / "tokens" / "index.json").stat().st_mtime_ns > written
    assert {"loss-curve.png", "log.jsonl", "final.json", "gpt2-debug"} <= {path.name for path in (tmp_path / "out").iterdir()}


@pytest.mark.parametrize("value, expected", [([], True), (["true"], True), (["false"], False)])
def test_debug_means_what_it_says(monkeypatch, value, expected):
    seen = []
    monkeypatch.setattr(pretraining_simple, "run", lambda args, ranks, device: seen.append(args.debug))
    assert pretraining_simple.main(["--debug", *value]) == 0 and seen == [expected]


@pytest.mark.parametrize(
    "options, words",
    [
        (["--data_dir", "nowhere"], ["no folder nowhere"]),
        (["--data_dir", "empty"], ["no text files in empty", ".txt"]),
        (["--data_dir", "books"], ["none of the 1 text files"]),
        (["--resume"], ["nothing to resume"]),
        (["--output_dir", "old"], ["old holds a run", "--resume"]),
        (["--output_dir", "old", "--resume", "--lr", "1e-4"], ["another configuration", "lr is 0.003 there, 0.0001 here"]),
        (["--output_dir", "old", "--resume", "--data_dir", "other"], ["data_sha256"]),
        (["--warmup_steps", "99999"], ["warm-up"]),
        (["--batch_size", "5000"], ["fewer than one batch"]),
        (["--batch_size", "0"], ["batch_size"]),
        (["--train_ratio", "1.5"], ["train_ratio"]),
        (["--size", "7B"], ["size"]),
        (["--debug", "maybe"], ["debug"]),
        (["--device", "tpu"], ["tpu"]),
    ],
)
@pytest.mark.slow
def test_bad_input_ends_in_one_line(train, tmp_path, capsys, options, words):
    (tmp_path / "empty").mkdir()
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "a.txt").write_bytes(b"")
    if "old" in options:
        train("old", "--max_steps", "3")
        make_shards(tmp_path / "other", seed=1)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        train("new", *options)
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == 2 and "error:" in last and all(word in last for word in words), last


@pytest.mark.parametrize("clock, now", [("time", 2e9), ("monotonic", 5000.0)])
def test_times_are_whole_hours_minutes_seconds(clock, now, monkeypatch, capsys):
    assert pretraining_simple.convert_time(3725.9) == (1, 2, 5)
    monkeypatch.setattr(f"time.{clock}", lambda: now)
    pretraining_simple.print_eta(now - 60, now - 20, 3, 12)
    err = capsys.readouterr().err
    assert "file 3 of 12" in err and "0h 00m 20s" in err and "0h 01m 00s" in err and "0h 03m 00s left" in err


def test_loaders_of_one_text_need_a_batch_in_each_part():
    train_loader, val_loader = pretraining_simple.create_dataloaders("the boat came in late " * 60, 0.8, 2, 16, 16)
    assert train_loader.batch_size == 2 and len(val_loader) > 0
    with pytest.raises(ValueError, match="validation part is too short"):
        pretraining_simple.create_dataloaders("the boat came in late " * 60, 0.99, 2, 16, 16)
