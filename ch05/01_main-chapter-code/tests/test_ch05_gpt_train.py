"""Loss, evaluation and training: what they compute, that measuring changes nothing, and that bad input loses nothing."""

import contextlib
import hashlib
import io
import math
from pathlib import Path

import gpt_train
import nbformat
import pytest
import torch
from previous_chapters import GPT_CONFIG_124M, GPTModel, create_dataloader_v1, gpt2_tokenizer

CPU = torch.device("cpu")
TINY = {**GPT_CONFIG_124M, "context_length": 12, "emb_dim": 32, "n_heads": 2, "n_layers": 1}
SMALL = {**TINY, "emb_dim": 8, "vocab_size": 50257}
TEXT = gpt_train.STORY_FILE.read_text(encoding="utf-8")[:1500]
SETTINGS = {"learning_rate": 1e-2, "num_epochs": 2, "batch_size": 4, "weight_decay": 0.1}
NOTEBOOK = Path(gpt_train.__file__).with_name("ch05.ipynb")


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def train_small(function=gpt_train.train_model_simple, eval_freq=5, eval_iter=1, num_epochs=2):
    torch.manual_seed(123)
    model = GPTModel(SMALL)
    loaders = gpt_train.create_split_loaders(TEXT, SMALL, batch_size=4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    with contextlib.redirect_stdout(io.StringIO()):
        results = function(model, *loaders, optimizer, CPU, num_epochs, eval_freq, eval_iter, "Nell", gpt2_tokenizer())
    return model.state_dict(), results


def equal(a: dict, b: dict) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.values(), b.values(), strict=True))


# ---- text and loss ----

@pytest.mark.parametrize("text", ["  Nell\n\n--19!", "<|endoftext|>", "a<|endoftext|>b", "", "caf\u00e9 \u6f6e"])
def test_text_functions_lose_nothing(text):
    ids = gpt_train.text_to_token_ids(text, gpt2_tokenizer())
    assert ids.dim() == 2 and ids.shape[0] == 1 and ids.dtype == torch.int64
    assert gpt_train.token_ids_to_text(ids, gpt2_tokenizer()) == text


def test_fresh_model_starts_near_ln_v():
    loader, _ = gpt_train.create_split_loaders(TEXT, TINY, batch_size=2)
    model = GPTModel(TINY).eval()
    with torch.no_grad():
        assert abs(gpt_train.calc_loss_loader(loader, model, CPU) - math.log(50257)) < 0.4


def test_batch_loss_is_the_mean_of_minus_log_p():
    model = GPTModel(SMALL).eval()
    inputs, targets = torch.randint(50257, (3, 5)), torch.randint(50257, (3, 5))  # (3, 5), (3, 5)
    probas = torch.softmax(model(inputs).detach().double(), dim=-1)  # (3, 5, vocab_size)
    by_hand = -sum(math.log(probas[b, t, targets[b, t]]) for b in range(3) for t in range(5)) / 15
    assert abs(gpt_train.calc_loss_batch(inputs, targets, model, CPU).item() - by_hand) < 1e-4


def batches_of(*rows):
    return [(torch.randint(50257, (n, 6)), torch.randint(50257, (n, 6))) for n in rows]


def test_loader_loss_weights_by_tokens():
    model, batches = GPTModel(SMALL).eval(), batches_of(5, 2, 1)
    whole = [torch.cat(part) for part in zip(*batches)]
    expected = gpt_train.calc_loss_batch(*whole, model, CPU).item()
    assert abs(gpt_train.calc_loss_loader(batches, model, CPU) - expected) < 1e-5


@pytest.mark.parametrize(("num_batches", "used"), [(None, 3), (1, 1), (2, 2), (3, 3), (99, 3)])
def test_loader_loss_uses_the_first_batches_only(num_batches, used):
    model, batches = GPTModel(SMALL).eval(), batches_of(2, 2, 2)
    expected = sum(gpt_train.calc_loss_batch(*batch, model, CPU).item() for batch in batches[:used]) / used
    assert abs(gpt_train.calc_loss_loader(batches, model, CPU, num_batches) - expected) < 1e-5


@pytest.mark.parametrize(("batches", "num_batches"), [([], None), ([], 3), (batches_of(2), 0)])
def test_loss_of_nothing_is_nan(batches, num_batches):
    assert math.isnan(gpt_train.calc_loss_loader(batches, GPTModel(SMALL), CPU, num_batches))


def test_splits_touch_and_have_the_right_settings():
    train_loader, val_loader = gpt_train.create_split_loaders(TEXT, TINY, batch_size=4)
    split = int(0.9 * len(TEXT))
    assert {tuple(x.shape) for x, _ in train_loader} == {(4, 12)}
    plain = create_dataloader_v1(TEXT[split:], batch_size=4, max_length=12, stride=12, shuffle=False, drop_last=False)
    assert [x.tolist() for x, _ in val_loader] == [x.tolist() for x, _ in plain]
    first, second = ([x.tolist() for x, _ in train_loader] for _ in range(2))
    assert first != second  # shuffled anew


def test_gradients_reach_every_parameter_and_stale_ones_do_not_count():
    results = []
    for stale in (False, True):
        torch.manual_seed(123)
        model = GPTModel(SMALL)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        if stale:
            for parameter in model.parameters():
                parameter.grad = torch.ones_like(parameter)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        loaders = gpt_train.create_split_loaders(TEXT, SMALL, batch_size=4)
        torch.manual_seed(5)
        with contextlib.redirect_stdout(io.StringIO()):
            gpt_train.train_model_simple(model, *loaders, optimizer, CPU, 1, 99, 1, "Nell", gpt2_tokenizer())
        assert all(not torch.equal(value, before[name]) for name, value in model.state_dict().items())
        results.append(model.state_dict())
    assert equal(*results)


# ---- training ----

@pytest.mark.parametrize(("eval_freq", "eval_iter"), [(1, 1), (2, 9), (3, 2), (1000, 1)])
def test_measuring_changes_nothing(eval_freq, eval_iter):
    assert SMALL["drop_rate"] > 0
    assert equal(train_small()[0], train_small(eval_freq=eval_freq, eval_iter=eval_iter)[0])


def test_evaluation_is_without_dropout_and_returns_to_train_mode():
    loaders = gpt_train.create_split_loaders(TEXT, SMALL, batch_size=100 // 4)
    model = GPTModel({**SMALL, "drop_rate": 0.9})
    state = torch.get_rng_state()
    losses = gpt_train.evaluate_model(model, *loaders, CPU, 2)
    assert torch.equal(state, torch.get_rng_state()) and model.training
    model.eval()
    with torch.no_grad():
        assert losses[1] == gpt_train.calc_loss_loader(loaders[1], model, CPU, 2)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("eval_freq", [1, 2, 5])
def test_measured_at_step_zero_and_at_multiples(eval_freq):
    _, (train_losses, val_losses, tokens_seen) = train_small(eval_freq=eval_freq)
    steps = 2 * len(gpt_train.create_split_loaders(TEXT, SMALL, batch_size=4)[0])
    assert tokens_seen == [(step + 1) * 48 for step in range(0, steps, eval_freq)]
    assert len(train_losses) == len(val_losses) == len(tokens_seen)
    assert train_losses[-1] < train_losses[0]


def test_plain_loop_of_the_notebook_equals_the_final_one():
    cells = [cell.source for cell in nbformat.read(NOTEBOOK, 4).cells if cell.cell_type == "code"]
    plain = next(source for source in cells if "def train_model_simple(" in source)
    assert "TrainingState" not in plain
    names = dict(vars(gpt_train))
    exec(plain.split("train_model_plain")[0], names)
    a, b = train_small(names["train_model_simple"], eval_freq=3), train_small(eval_freq=3)
    assert equal(a[0], b[0]) and a[1] == b[1]


def test_sample_is_one_line_of_fifty_tokens(capsys):
    model = GPTModel(SMALL)
    gpt_train.generate_and_print_sample(model, gpt2_tokenizer(), CPU, "Nell")
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and out.startswith("Nell") and model.training


def test_epoch_axis_is_true_and_the_file_is_written(tmp_path):
    fig = gpt_train.plot_losses([0.1, 1.0, 2.0], [48, 480, 960], [3, 2, 1], [3, 2, 2], tmp_path / "loss-plot.pdf")
    assert (tmp_path / "loss-plot.pdf").stat().st_size > 1000
    assert list(fig.axes[0].lines[0].get_xdata()) == [0.1, 1.0, 2.0]


# ---- main and the command line ----

def test_main_returns_losses_tokens_and_model_and_writes_nothing(tmp_path, text_file, capsys):
    train_losses, val_losses, tokens_seen, model = gpt_train.main(TINY, {**SETTINGS, "data": text_file})
    assert len(train_losses) == len(val_losses) == len(tokens_seen) and train_losses[-1] < train_losses[0]
    assert model(torch.zeros(1, 12, dtype=torch.long)).shape == (1, 12, 50257)
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


def options(text_file, output, *more):
    tiny = ["--context_length", "12", "--emb_dim", "8", "--n_heads", "2", "--n_layers", "1", "--drop_rate", "0.1"]
    plain = ["--precision", "fp32", "--device", "cpu", "--lr", "5e-4"]
    return ["--data", str(text_file), *tiny, *plain, "--batch_size", "4", "--epochs", "2", "--output_dir", str(output), "--no_plot", *more]


def test_command_line_trains_saves_and_goes_on_where_it_stopped(tmp_path, text_file, capsys):
    assert gpt_train.command_line(options(text_file, tmp_path / "whole")) == 0
    assert gpt_train.command_line(options(text_file, tmp_path / "parts", "--max_steps", "3")) == 0
    steps = len(gpt_train.create_split_loaders(TEXT, SMALL, 4)[0]) * 2
    limits = (["--max_steps", "3"], 3), (["--max_steps", "2"], 3), (["--max_steps", "5"], 5), (["--max_minutes", "1e-9"], 6)
    for limit, done in (*limits, ([], steps), ([], steps)):
        assert gpt_train.command_line(options(text_file, tmp_path / "parts", "--resume", *limit)) == 0
        checkpoint = torch.load(tmp_path / "parts" / "checkpoint.pth", weights_only=True)
        assert checkpoint["state"]["step"] + 1 == done
    weights = [torch.load(tmp_path / name / "model.pth", weights_only=True) for name in ("whole", "parts")]
    assert equal(*weights)
    names = {path.name for path in (tmp_path / "whole").iterdir()}
    assert names == {"checkpoint.pth", "config.json", "log.txt", "model.pth", "model_best.pth"}
    measured = [[line for line in (tmp_path / name / "log.txt").read_text(encoding="utf-8").splitlines() if line.startswith("epoch")]
                for name in ("whole", "parts")]  # fmt: skip
    assert measured[0] == measured[1] and len(measured[0]) == -(-steps // 5)


def test_a_model_size_brings_its_settings_and_every_option_overrides_one(monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(gpt_train, "main", lambda config, settings: seen.append((config, settings)) or ([1.0], [1.0], [1], None))
    for arguments in ([], ["--model_size", "124M"], ["--model_size", "124M", "--emb_dim", "24", "--epochs", "3"]):
        gpt_train.command_line(arguments)
    keys = ("learning_rate", "num_epochs", "batch_size")
    assert seen[0][0] == gpt_train.STORY_CONFIG and [seen[0][1][key] for key in keys] == [2e-3, 12, 4]
    assert seen[1][0] == {**GPT_CONFIG_124M, "context_length": 256} and [seen[1][1][key] for key in keys] == [5e-4, 10, 2]
    assert seen[2][0] == {**seen[1][0], "emb_dim": 24} and seen[2][1]["num_epochs"] == 3


def test_the_notebook_trains_the_story_model_of_the_program():
    dial = next(cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells if "STORY_CONFIG =" in cell.source)
    scope = {"GPT_CONFIG_124M": GPT_CONFIG_124M, "pick_device": None, "torch": torch}
    exec(dial, scope)
    for lane, size in (("laptop", "story"), ("full", "124M")):
        exec(dial.replace('SIZE = "laptop"', f'SIZE = "{lane}"').replace("pick_device(", "str("), scope)
        config, run = gpt_train.RUNS[size]
        assert scope["DIAL"]["model"] == config
        assert [scope["DIAL"][key] for key in ("lr", "batch_size", "num_epochs")] == [run[key] for key in ("lr", "batch_size", "epochs")]


def test_the_committed_log_is_that_of_the_large_model_from_first_to_last_update():
    lines = NOTEBOOK.with_name("story-124m-log.txt").read_text(encoding="utf-8").splitlines()
    config, run = gpt_train.RUNS["124M"]
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in GPTModel(config).parameters())
    updates = run["epochs"] * len(gpt_train.create_split_loaders(gpt_train.STORY_FILE.read_text("utf-8"), config, run["batch_size"])[0])
    assert lines[0].startswith(f"{parameters:,} parameters, fp32")
    assert lines[-1].startswith(f"{updates * run['batch_size'] * config['context_length']:,} tokens seen")
    steps = [int(line.split("step")[1].split(":")[0]) for line in lines if line.startswith("epoch")]
    assert steps == list(range(0, updates, 5))


def digest(folder: Path) -> dict:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def bad_calls(tmp_path):
    """name -> (extra options, what the one line must contain)."""
    empty, binary, short = tmp_path / "empty.txt", tmp_path / "binary.txt", tmp_path / "short.txt"
    empty.write_text("  \n", encoding="utf-8")
    binary.write_bytes(b"\xff\xfe\x00tide")
    short.write_text("The bell rang twice.", encoding="utf-8")
    return {
        "missing file": (["--data", "no-such.txt"], "cannot read"),
        "empty file": (["--data", str(empty)], "empty"),
        "not utf-8": (["--data", str(binary)], "UTF-8"),
        "folder as file": (["--data", str(tmp_path)], "cannot read"),
        "shorter than a context": (["--data", str(short)], "too short"),
        "validation split too short": (["--context_length", "200"], "split is too short"),
        "fewer windows than a batch": (["--batch_size", "5000"], "fewer than batch_size"),
        "batch size 0": (["--batch_size", "0"], "batch_size"),
        "epochs 0": (["--epochs", "0"], "epochs"),
        "context 0": (["--context_length", "0"], "context_length"),
        "heads do not divide": (["--emb_dim", "9"], "divisible"),
        "unknown device": (["--device", "abacus", "--output_dir", str(tmp_path / "nowhere")], "abacus"),
        "lr nan": (["--lr", "nan"], "lr"),
        "lr inf": (["--lr", "inf"], "lr"),
        "lr 0": (["--lr", "0"], "lr"),
        "lr text": (["--lr", "fast"], "lr"),
        "weight decay nan": (["--weight_decay", "nan"], "weight_decay"),
        "weight decay negative": (["--weight_decay", "-1"], "weight_decay"),
        "drop rate nan": (["--drop_rate", "nan"], "drop_rate"),
        "drop rate 1": (["--drop_rate", "1"], "drop_rate"),
        "folder in use": ([], "--resume"),
        "another configuration": (["--resume", "--n_layers", "2"], "n_layers"),
        "another text": (["--resume", "--data", str(gpt_train.STORY_FILE)], "text_sha256"),
        "another batch size": (["--resume", "--batch_size", "2"], "batch_size"),
        "abbreviated option": (["--batch", "2"], "--batch"),
        "nothing to resume": (["--resume", "--output_dir", str(tmp_path / "nowhere")], "nothing to resume"),
        "output is a file": (["--output_dir", str(short)], "short.txt"),
    }


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        gpt_train.command_line(options(folder / "text.txt", folder / "run", "--max_steps", "2"))
    return folder


BAD_CALLS = [
    "missing file", "empty file", "not utf-8", "folder as file", "shorter than a context", "validation split too short",
    "fewer windows than a batch", "batch size 0", "epochs 0", "context 0", "heads do not divide", "unknown device", "lr nan",
    "lr inf", "lr 0", "lr text", "weight decay nan", "weight decay negative", "drop rate nan", "drop rate 1", "folder in use",
    "another configuration", "another text", "another batch size", "abbreviated option", "nothing to resume", "output is a file",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_input_is_one_line_and_loses_nothing(name, finished_run, tmp_path, capsys, recwarn):
    more, needed = bad_calls(tmp_path)[name]
    before = digest(finished_run / "run")
    with pytest.raises(SystemExit) as caught:
        gpt_train.command_line(options(finished_run / "text.txt", finished_run / "run", *more))
    captured = capsys.readouterr()
    assert caught.value.code == 2
    assert captured.err.count("\n") == 1 and needed in captured.err, captured.err
    assert digest(finished_run / "run") == before
    assert not (tmp_path / "nowhere").exists() and not [w for w in recwarn if "no batch" in str(w.message)]


@pytest.mark.parametrize("keep", [0, 10, 0.5, -1])
def test_damaged_checkpoint_is_one_line(keep, finished_run, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    good = (finished_run / "run" / "checkpoint.pth").read_bytes()
    (run / "checkpoint.pth").write_bytes(good[: int(len(good) * keep) if isinstance(keep, float) else keep])
    before = digest(run)
    with pytest.raises(SystemExit) as caught:
        gpt_train.command_line(options(finished_run / "text.txt", run, "--resume"))
    err = capsys.readouterr().err
    assert caught.value.code == 2 and err.count("\n") == 1 and "damaged" in err and digest(run) == before


FULL_DISK = [  # what torch.save raises: the last one comes from a file system that is really full
    OSError(28, "No space left on device"),
    RuntimeError("PytorchStreamWriter failed writing file"),
    RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
]


@pytest.mark.parametrize("error", FULL_DISK)
def test_full_disk_is_one_line_and_the_old_checkpoint_stays(error, finished_run, monkeypatch, capsys):
    before = digest(finished_run / "run")

    def full(contents, path):
        Path(path).write_bytes(b"half a che")
        raise error

    monkeypatch.setattr("checkpoints.torch.save", full)
    with pytest.raises(SystemExit) as caught:
        gpt_train.command_line(options(finished_run / "text.txt", finished_run / "run", "--resume", "--max_steps", "4", "--save_freq", "1"))
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert caught.value.code == 2 and "error: " in last and ("No space left" in last or "cannot write" in last)
    for leftover in (finished_run / "run").glob("*.tmp"):
        leftover.unlink()
    after = digest(finished_run / "run")
    assert after.pop("log.txt") != before.pop("log.txt") and after == before  # what was printed is kept, no result is lost


def test_overwrite_leaves_no_weights_of_the_old_run(finished_run, tmp_path, capsys):
    text = finished_run / "text.txt"
    gpt_train.command_line(options(text, tmp_path / "run", "--max_steps", "1"))
    old = torch.load(tmp_path / "run" / "model.pth", weights_only=True)
    gpt_train.command_line(options(text, tmp_path / "run", "--max_steps", "1", "--emb_dim", "4", "--overwrite"))
    assert torch.load(tmp_path / "run" / "model.pth", weights_only=True)["tok_emb.weight"].shape != old["tok_emb.weight"].shape


def test_learning_rate_on_resume_is_the_one_asked_for(finished_run, tmp_path, capsys):
    text = finished_run / "text.txt"
    gpt_train.command_line(options(text, tmp_path / "run", "--max_steps", "2"))
    before = torch.load(tmp_path / "run" / "model.pth", weights_only=True)
    gpt_train.command_line(options(text, tmp_path / "run", "--max_steps", "3", "--resume", "--lr", "1e-9", "--weight_decay", "0"))
    after = torch.load(tmp_path / "run" / "model.pth", weights_only=True)
    assert "learning rate 1e-09" in capsys.readouterr().out
    assert all(torch.allclose(before[name], after[name], atol=1e-7) for name in before)


def test_training_bf16_by_choice_keeps_weights_in_float32(text_file, capsys):
    micro = {**SMALL, "emb_dim": 4}
    _, _, _, model = gpt_train.main(micro, {**SETTINGS, "data": text_file, "precision": "bf16", "max_steps": 1, "batch_size": 1})
    assert "parameters, bf16" in capsys.readouterr().out
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
