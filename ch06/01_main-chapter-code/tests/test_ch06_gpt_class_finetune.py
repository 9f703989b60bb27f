"""The classifier: padding and neighbors never change an answer, measuring changes nothing, training trains the right weights."""

import contextlib
import io
import math
import subprocess
import sys
from pathlib import Path

import gpt_class_finetune as finetune
import pytest
import torch
import torch.nn as nn
from gpt_class_finetune import add_classification_head, last_token_logits
from previous_chapters import GPT_CONFIG_124M, GPTModel, export_gpt2, gpt2_tokenizer, tie_weights
from torch.utils.data import DataLoader

CPU = torch.device("cpu")
TINY = {"vocab_size": 50257, "context_length": 130, "emb_dim": 16, "n_layers": 2, "n_heads": 2, "drop_rate": 0.0, "qkv_bias": True}
SCRIPT = Path(finetune.__file__)


def tiny_classifier(seed: int = 123, **changes) -> GPTModel:
    torch.manual_seed(seed)
    model = GPTModel({**TINY, **changes})
    add_classification_head(model)
    return model


def pad(ids: list, length: int) -> list:
    return ids + [50256] * (length - len(ids))


# ---- the answer belongs to the text alone ----


@pytest.mark.parametrize("text", ["Are we still on for lunch at one?", "x", "", "Win <|endoftext|> now", "\U0001f600 \n\n"])
def test_a_text_padded_to_20_60_120_has_equal_logits(text):
    model, ids = tiny_classifier().eval(), finetune.encode_message(text, gpt2_tokenizer())
    answers = [last_token_logits(model, torch.tensor([pad(ids, length)])) for length in (max(1, len(ids)), 20, 60, 120)]
    for answer in answers:
        assert answer.shape == (1, 2) and torch.allclose(answer, answers[0], atol=1e-5)


def test_a_text_has_the_same_logits_alone_and_in_any_batch():
    model = tiny_classifier().eval()
    rows = [torch.randint(50256, (length,)).tolist() for length in (1, 7, 30, 12)] + [[]]
    batch = torch.tensor([pad(row, 40) for row in rows])
    together = last_token_logits(model, batch)  # (b, num_classes)
    for row, answer in zip(rows, together):
        assert torch.allclose(last_token_logits(model, torch.tensor([row or [50256]]))[0], answer, atol=1e-5)


def test_the_position_read_is_that_of_the_last_token_that_is_no_padding():
    class Positions(nn.Module):  # answers each position with its number
        def forward(self, ids):
            return torch.arange(ids.shape[1]).float()[None, :, None].expand(*ids.shape, 2)

    batch = torch.tensor([[5, 6, 50256], [50256, 6, 50256], [50256, 50256, 50256], [1, 2, 3], [1, 50256, 50256]])
    assert last_token_logits(Positions(), batch)[:, 0].tolist() == [1, 1, 0, 2, 0]
    assert last_token_logits(Positions(), batch, pad_token_id=-1)[:, 0].tolist() == [2] * 5
    assert last_token_logits(Positions(), batch, pad_token_id=3)[:, 0].tolist() == [2, 2, 2, 1, 2]


def test_every_token_of_the_text_counts_and_none_of_the_padding():
    model, ids = tiny_classifier().eval(), torch.randint(50256, (1, 9))
    model.requires_grad_(True)
    embedded = model.tok_emb(torch.cat([ids, torch.full((1, 5), 50256)], dim=1)).detach().requires_grad_()  # (1, 14, emb_dim)
    model.tok_emb.forward = lambda _: embedded
    last_token_logits(model, torch.cat([ids, torch.full((1, 5), 50256)], dim=1)).sum().backward()
    touched = embedded.grad.abs().sum(dim=-1)[0] > 0  # (14)
    assert touched.tolist() == [True] * 9 + [False] * 5


def test_probability_and_word_agree_with_the_batch():
    model, tokenizer = tiny_classifier(), gpt2_tokenizer()
    for text in ("You won! Call now", "see you at one", "", "NA"):
        ids = finetune.encode_message(text, tokenizer) or [50256]
        expected = torch.softmax(last_token_logits(model.eval(), torch.tensor([pad(ids, 60)])), dim=-1)[0, 1].item()
        model.train()
        assert abs(finetune.spam_probability(text, model, tokenizer, CPU) - expected) < 1e-5 and model.training
        assert finetune.classify_review(text, model, tokenizer, CPU) == ("spam" if expected > 0.5 else "not spam")


def test_a_long_text_is_cut_and_a_length_outside_the_context_is_refused():
    model, tokenizer = tiny_classifier(), gpt2_tokenizer()
    long = "win " * 1000
    assert finetune.spam_probability(long, model, tokenizer, CPU) == finetune.spam_probability(long, model, tokenizer, CPU, 130)
    assert finetune.spam_probability(long, model, tokenizer, CPU, 9) == finetune.spam_probability("win " * 8 + "win", model, tokenizer, CPU)
    for length in (0, -3, 131):
        with pytest.raises(ValueError, match=f"max_length {length} is outside .* 1 to 130"):
            finetune.classify_review("hi", model, tokenizer, CPU, length)


# ---- the model ----


def test_head_last_block_and_norm_train_and_nothing_else_changes():
    model = tiny_classifier()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = finetune.adamw(model, 1e-2, 0.1, CPU)
    finetune.calc_loss_batch(torch.randint(50256, (4, 9)), torch.tensor([0, 1, 1, 0]), model, CPU).backward()
    optimizer.step()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    wanted = {name for name in before if name.startswith(("trf_blocks.1.", "final_norm.", "out_head."))}
    # a bias of the keys moves all scores of a row alike, so softmax gives it no gradient but rounding
    assert wanted - changed <= {"trf_blocks.1.att.W_key.bias"} and changed <= wanted
    assert model.out_head.weight.shape == (2, 16) and model.out_head.bias is not None


def test_more_classes_are_possible():
    model = GPTModel(TINY)
    add_classification_head(model, num_classes=5)
    assert last_token_logits(model, torch.randint(50256, (3, 4))).shape == (3, 5)


# ---- loss and accuracy ----


def batches_of(*sizes):
    torch.manual_seed(1)
    return [(torch.randint(50256, (n, 6)), torch.randint(2, (n,))) for n in sizes]


def test_batch_loss_is_the_mean_of_minus_log_p():
    model = tiny_classifier().eval()
    (ids, labels), *_ = batches_of(5)
    p = torch.softmax(last_token_logits(model, ids).detach().double(), dim=-1)  # (b, num_classes)
    by_hand = -sum(math.log(p[i, label]) for i, label in enumerate(labels.tolist())) / 5
    assert abs(finetune.calc_loss_batch(ids, labels, model, CPU).item() - by_hand) < 1e-5


def test_loader_values_weigh_every_text_alike():
    model, batches = tiny_classifier(), batches_of(5, 2, 1)
    ids, labels = (torch.cat(part) for part in zip(*batches))
    assert abs(finetune.calc_loss_loader(batches, model, CPU) - finetune.calc_loss_batch(ids, labels, model, CPU).item()) < 1e-5
    right = (last_token_logits(model, ids).argmax(-1) == labels).float().mean().item()
    assert finetune.calc_accuracy_loader(batches, model, CPU) == pytest.approx(right)


@pytest.mark.parametrize(("num_batches", "used"), [(None, 3), (1, 1), (2, 2), (9, 3)])
def test_the_first_batches_only(num_batches, used):
    model, batches = tiny_classifier(), batches_of(4, 3, 2)
    for function in (finetune.calc_loss_loader, finetune.calc_accuracy_loader):
        assert function(batches, model, CPU, num_batches) == function(batches[:used], model, CPU)


def test_no_batch_gives_nan_and_no_training():
    model = tiny_classifier()
    assert math.isnan(finetune.calc_loss_loader([], model, CPU)) and math.isnan(finetune.calc_accuracy_loader([], model, CPU))
    with pytest.raises(ValueError, match="no batch"):
        finetune.train_classifier_simple(model, [], batches_of(2), None, CPU, 1, 1, 1)


@pytest.mark.parametrize("training", [True, False])
def test_measuring_leaves_mode_gradients_and_draws_as_they_were(training):
    model = tiny_classifier(drop_rate=0.5).train(training)
    loader = DataLoader([(torch.randint(50256, (6,)), torch.tensor(i % 2)) for i in range(8)], 2, shuffle=True)
    state = torch.get_rng_state()
    first = finetune.evaluate_model(model, loader, batches_of(4), CPU, 5)
    torch.set_rng_state(state)
    assert first[1] == finetune.evaluate_model(model, loader, batches_of(4), CPU, 5)[1]  # no dropout
    torch.set_rng_state(state)
    finetune.evaluate_model(model, loader, [(torch.ones(1, 2).long(), torch.tensor([0]))], CPU, 5)
    finetune.calc_accuracy_loader([(torch.ones(1, 2).long(), torch.tensor([0]))], model, CPU)
    assert torch.equal(state, torch.get_rng_state())
    assert model.training == training and all(p.grad is None for p in model.parameters())


def test_an_error_while_measuring_leaves_the_mode_too():
    model = tiny_classifier().train()
    with pytest.raises(ValueError):
        finetune.calc_loss_loader([(torch.tensor([[60000]]), torch.tensor([0]))], model, CPU)
    assert model.training


# ---- training ----


def easy_loaders():
    torch.manual_seed(5)
    ids, labels = torch.randint(1000, (32, 6)), torch.tensor([0, 1] * 16)
    ids[:, 2] = labels + 40000  # one token gives the class away
    items = list(zip(ids, labels))
    return DataLoader(items[:24], 4, shuffle=True), DataLoader(items[24:], 4)


def train_easy(eval_freq=5, eval_iter=2, num_epochs=20):
    model = tiny_classifier()
    loaders = easy_loaders()
    torch.manual_seed(9)
    with contextlib.redirect_stdout(io.StringIO()):
        results = finetune.train_classifier_simple(
            model, *loaders, finetune.adamw(model, 1e-2, 0.1, CPU), CPU, num_epochs, eval_freq, eval_iter
        )
    return model, results, loaders


def test_training_learns_and_counts():
    model, (train_losses, val_losses, train_accs, val_accs, examples_seen), loaders = train_easy()
    assert examples_seen == 20 * 24 and len(train_accs) == len(val_accs) == 20
    assert len(train_losses) == len(val_losses) == 24  # 120 updates, measured after update 0, 5, ..., 115
    assert train_losses[-1] < 0.2 * train_losses[0] and finetune.calc_accuracy_loader(loaders[0], model, CPU) == 1.0


def test_how_often_one_measures_changes_nothing():
    (a, *_), (b, *_) = train_easy(eval_freq=5, eval_iter=2, num_epochs=3), train_easy(eval_freq=1, eval_iter=1, num_epochs=3)
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))


def test_plots_are_saved_under_their_label(tmp_path):
    fig = finetune.plot_values([1, 2], [10, 20], [0.5, 0.2], [0.6, 0.4], "accuracy", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["accuracy-plot.pdf"] and fig.axes[0].get_ylabel() == "accuracy"
    assert fig.axes[0].lines[1].get_ydata().tolist() == [0.6, 0.4]


# ---- files and command line ----


def script(*args, cwd=None):
    return subprocess.run([sys.executable, str(SCRIPT), *map(str, args)], capture_output=True, text=True, encoding="utf-8", cwd=cwd)


@pytest.mark.slow
def test_test_mode_trains_saves_and_comes_back(tmp_path):
    out = tmp_path / "run"
    done = script("--test_mode", "--output_dir", out)
    assert done.returncode == 0, done.stderr
    wanted = {"train.csv", "validation.csv", "test.csv", "log.txt", "loss-plot.pdf", "accuracy-plot.pdf", "review_classifier.pth"}
    assert {path.name for path in out.iterdir()} == wanted
    losses = [
        float(line.split("train loss ")[1].split(",")[0]) for line in (out / "log.txt").read_text().splitlines() if "train loss" in line
    ]
    assert losses[-1] < losses[0] - 0.05
    model, max_length = finetune.load_classifier(out / "review_classifier.pth")
    assert not model.training and 1 <= max_length <= 120 and 0 < finetune.spam_probability("hi", model, gpt2_tokenizer(), CPU) < 1
    again = script("--test_mode", "--output_dir", out)
    assert again.returncode == 2 and "--overwrite" in again.stderr.splitlines()[-1] and "Traceback" not in again.stderr


@pytest.mark.slow
def test_own_messages_in_a_csv_with_everything_awkward(tmp_path):
    rows = ["Label,Text"] + [f'ham,"see ""you"" at\t{i}"' for i in range(30)] + [f"spam,win {i}" for i in range(28)] + ["spam,NA", "spam,"]
    (tmp_path / "mine.csv").write_text("\n".join(rows), encoding="utf-8-sig")
    done = script("--test_mode", "--data", tmp_path / "mine.csv", "--output_dir", tmp_path / "run", "--num_epochs", 1)
    assert done.returncode == 0, done.stderr
    written = [finetune.read_messages(tmp_path / "run" / f"{name}.csv") for name in ("train", "validation", "test")]
    texts = [text for frame in written for text in frame["Text"]]
    assert len(texts) == 60 and {"", "NA", 'see "you" at\t3'} <= set(texts)


@pytest.mark.slow
def test_the_full_size_runs_with_weights_of_gpt2_s_shape(tmp_path):
    config = {**GPT_CONFIG_124M, "qkv_bias": True, "drop_rate": 0.0, "tied": True}
    torch.manual_seed(1)
    random_gpt2 = tie_weights(GPTModel(config))
    (tmp_path / "124M").mkdir()
    export_gpt2(random_gpt2.state_dict(), config, tmp_path / "124M")
    (tmp_path / "few.csv").write_text("Label,Text\n" + "ham,see you\nspam,win now\n" * 10, encoding="utf-8")
    done = script("--size", "full", "--data", tmp_path / "few.csv", "--models_dir", tmp_path, "--num_epochs", 1, "--batch_size", 5,
                  "--eval_iter", 1, "--device", "cpu", "--output_dir", tmp_path / "run")  # fmt: skip
    assert done.returncode == 0, done.stderr
    model, max_length = finetune.load_classifier(tmp_path / "run" / "review_classifier.pth")
    assert sum(p.numel() for p in model.parameters()) == 124_439_808 + 768 * 2 + 2 and max_length == 2
    published = random_gpt2.trf_blocks[0].att.W_query.weight.half().float()
    assert torch.equal(model.trf_blocks[0].att.W_query.weight, published)  # frozen, so still what was in the file


@pytest.mark.parametrize(
    ("args", "fault"),
    [
        (["--size", "huge"], "invalid choice: 'huge'"),
        (["--num_epochs", "0"], "0 is too small"),
        (["--batch_size", "2.5"], "not a whole number"),
        (["--learning_rate", "-1"], "outside the allowed range"),
        (["--data", "absent.csv"], "cannot read absent.csv"),
        (["--data", "labels.csv"], "cannot balance 0 ham with 0 spam"),
        (["--data", "x.csv", "--full_data"], "not allowed with"),
        (["--batch_size", "900", "--test_mode"], "balanced messages are too few"),
        (["--device", "abacus"], "device 'abacus' is not available"),
        (["--epochs", "3"], "unrecognized arguments"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(tmp_path, monkeypatch, capsys, args, fault):
    (tmp_path / "labels.csv").write_text("Label,Text\n0,hi\n1,win\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        finetune.command_line([*args, "--output_dir", str(tmp_path / "run")])
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("device: ")]
    assert stop.value.code == 2 and len(lines) == 1 and fault in lines[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", [None, b"", b"junk", "tensor", "other"])
def test_a_file_that_is_no_classifier_is_one_line(tmp_path, content):
    path = tmp_path / "review_classifier.pth"
    if content == "tensor":
        torch.save(torch.ones(2), path)
    elif content == "other":
        torch.save({"model_state_dict": {}, "gpt_config": TINY, "max_length": 9}, path)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match="gpt_class_finetune.py|not a classifier") as error:
        finetune.load_classifier(path)
    assert "\n" not in str(error.value)
