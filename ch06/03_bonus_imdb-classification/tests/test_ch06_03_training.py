"""Texts are read where they end, whatever padding follows; the loop trains what was chosen, as long as it was told to."""

import math

import pytest
import torch
import train_gpt
from previous_chapters import GPTModel, gpt2_tokenizer
from text_training import (
    add_training_options,
    calc_accuracy_loader,
    calc_loss_batch,
    calc_loss_loader,
    evaluate_model,
    text_logits,
    train_classifier_simple,
)
from torch.utils.data import DataLoader
from train_gpt import IMDbDataset, choose_trainable, instantiate_model

CFG = {"vocab_size": 50257, "context_length": 120, "emb_dim": 16, "n_heads": 2, "n_layers": 2, "drop_rate": 0.0, "qkv_bias": True}
CPU = torch.device("cpu")
TEXTS = ["a fine film", "not a good one at all , I am afraid", "dull", "", "see it twice"]


@pytest.fixture
def model():
    torch.manual_seed(123)
    model = GPTModel(CFG)
    model.out_head = torch.nn.Linear(16, 2)
    return model.eval()


@pytest.fixture
def csv_file(tmp_path):
    path = tmp_path / "reviews-train.csv"
    rows = [f'"{text}",{int("fine" in text or "twice" in text)}' for text in TEXTS * 4]
    path.write_text("\n".join(["text,label", *rows]) + "\n", encoding="utf-8")
    return path


def padded_to(csv_file, length):
    return torch.stack([ids for ids, _ in (IMDbDataset(csv_file, gpt2_tokenizer(), length)[i] for i in range(len(TEXTS)))])


READINGS = {"default": {}, "mean": {"average_embeddings": True}, "first": {"trainable_token_pos": 0}}


@pytest.mark.parametrize("reading", READINGS.values(), ids=READINGS)
def test_a_text_padded_to_20_60_and_120_gives_equal_logits(model, csv_file, reading):
    logits = [text_logits(model, padded_to(csv_file, length), **reading) for length in (20, 60, 120)]
    assert torch.allclose(logits[0], logits[1], atol=1e-5) and torch.allclose(logits[0], logits[2], atol=1e-5)
    alone = [text_logits(model, padded_to(csv_file, 20)[i : i + 1], **reading)[0] for i in range(len(TEXTS))]
    assert torch.allclose(torch.stack(alone), logits[0], atol=1e-5), "whatever else is in the batch"


def test_the_last_column_shows_the_fault(model, csv_file):
    logits = [text_logits(model, padded_to(csv_file, length), trainable_token_pos=-1) for length in (20, 60)]
    assert (logits[0] - logits[1]).abs().max() > 1e-2
    assert torch.equal(logits[0], model(padded_to(csv_file, 20))[:, -1])


def test_the_mean_leaves_padding_out_and_overrides_the_position(model, csv_file):
    ids = padded_to(csv_file, 60)
    every = model(ids)
    for row, text in enumerate(TEXTS):
        length = max(1, len(gpt2_tokenizer().encode(text)))
        for position in ("flexible", -1):
            mean = text_logits(model, ids, position, average_embeddings=True)
            assert torch.allclose(mean[row], every[row, :length].mean(dim=0), atol=1e-5)


def test_a_marker_in_a_text_is_text_and_an_empty_text_is_one_padding_token(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,label\n<|endoftext|>,1\n,0\n", encoding="utf-8")
    marker, empty = IMDbDataset(path, gpt2_tokenizer())[0][0], IMDbDataset(path, gpt2_tokenizer())[1][0]
    assert 50256 not in marker and (empty == 50256).all() and len(marker) == len(empty) == 7
    assert IMDbDataset(path, gpt2_tokenizer(), 3)[0][0].tolist() == marker.tolist()[:3]
    with pytest.raises(ValueError, match="max_length"):
        IMDbDataset(path, gpt2_tokenizer(), 0)


@pytest.mark.parametrize("part", ["all", "last_block", "last_layer"])
def test_exactly_the_chosen_parameters_get_a_gradient_and_change(model, csv_file, part):
    choose_trainable(model, part)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    calc_loss_batch(padded_to(csv_file, 20), torch.tensor([1, 0, 0, 0, 1]), model, CPU).backward()
    optimizer.step()
    moved = {name for name, value in model.named_parameters() if not torch.equal(before[name], value)}
    with_gradient = {name for name, value in model.named_parameters() if value.grad is not None}
    head = {"out_head.weight", "out_head.bias"}
    last = {name for name, _ in model.named_parameters() if name.startswith(("trf_blocks.1.", "final_norm."))}
    expected = {"all": set(dict(model.named_parameters())), "last_block": head | last, "last_layer": head}[part]
    assert with_gradient == expected and head <= moved <= expected


def loaders(csv_file, batch_size=4):
    dataset = IMDbDataset(csv_file, gpt2_tokenizer(), 20)
    return [DataLoader(dataset, batch_size, shuffle=shuffle, drop_last=shuffle) for shuffle in (True, False)]


def train(model, csv_file, epochs=1, **options):
    torch.manual_seed(5)
    steps = []
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    measured = {"eval_freq": 2, "eval_iter": 1, **options}
    values = train_classifier_simple(model, *loaders(csv_file), optimizer, CPU, epochs, **measured, after_step=lambda: steps.append(1))
    return values, len(steps)


@pytest.mark.parametrize("max_steps, updates, epochs_measured", [(None, 10, 2), (1, 1, 1), (5, 5, 1), (6, 6, 2), (10, 10, 2), (99, 10, 2)])
def test_max_steps_counts_updates_exactly(model, csv_file, max_steps, updates, epochs_measured):
    (train_losses, val_losses, train_accs, val_accs, seen), steps = train(model, csv_file, epochs=2, max_steps=max_steps)
    assert steps == updates and seen == 4 * updates
    assert len(train_losses) == len(val_losses) == math.ceil(updates / 2) and len(train_accs) == len(val_accs) == epochs_measured


def test_training_learns_the_rule_and_measuring_does_not_change_it(model, csv_file):
    start = model.state_dict()
    start = {name: value.clone() for name, value in start.items()}
    (losses, *_), _ = train(model, csv_file, epochs=6, eval_iter=5)
    assert losses[-1] < 0.2 < losses[0]
    trained = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(start)
    train(model, csv_file, epochs=6, eval_freq=1, eval_iter=3)
    assert all(torch.equal(trained[name], value) for name, value in model.state_dict().items())


def test_measures_agree_with_one_text_at_a_time_and_keep_the_mode(model, csv_file):
    loader = loaders(csv_file, batch_size=3)[1]
    rows = [(ids[None], label[None]) for ids, label in loader.dataset]
    losses = [calc_loss_batch(ids, label, model, CPU).item() for ids, label in rows]
    right = [(text_logits(model, ids).argmax(-1) == label).item() for ids, label in rows]
    for mode in (True, False):
        model.train(mode)
        assert calc_loss_loader(loader, model, CPU) == pytest.approx(sum(losses) / 20, abs=1e-5)
        assert calc_accuracy_loader(loader, model, CPU) == sum(right) / 20
        evaluate_model(model, loader, loader, CPU, 1)
        assert model.training is mode
    assert math.isnan(calc_loss_loader([], model, CPU)) and math.isnan(calc_accuracy_loader([], model, CPU))


def test_the_reading_reaches_every_measure(model, csv_file):
    loader = loaders(csv_file)[1]
    reading = {"trainable_token_pos": -1}
    assert calc_loss_loader(loader, model, CPU, **reading) != calc_loss_loader(loader, model, CPU)
    losses = zip(evaluate_model(model, loader, loader, CPU, 1, **reading), evaluate_model(model, loader, loader, CPU, 1))
    assert all(read != usual for read, usual in losses)
    assert calc_loss_loader(loader, model, CPU, average_embeddings=True) != calc_loss_loader(loader, model, CPU)


def test_a_loader_without_batches_is_refused(model, csv_file):
    train_loader, val_loader = loaders(csv_file)
    with pytest.raises(ValueError, match="no batch"):
        train_classifier_simple(model, train_loader, [], None, CPU, 1, 1, 1)


def test_pretrained_and_random_models_have_the_same_sizes_and_other_weights():
    torch.manual_seed(123)
    pretrained, fresh = instantiate_model("gpt2-mini (mini)", True), instantiate_model("mini", False)
    shapes = [{name: value.shape for name, value in model.state_dict().items()} for model in (pretrained, fresh)]
    assert shapes[0] == shapes[1] and pretrained.out_head.out_features == 2 and pretrained.pos_emb.num_embeddings == 256
    assert not torch.equal(pretrained.tok_emb.weight, fresh.tok_emb.weight)
    assert all(parameter.requires_grad for parameter in pretrained.parameters())
    without_head = sum(value.numel() for name, value in pretrained.named_parameters() if not name.startswith("out_head"))
    assert without_head == 12_368_064


def test_the_shared_options_do_not_change_from_script_to_script():
    parser = train_gpt.OneLineParser("x")
    add_training_options(parser)
    defaults = vars(parser.parse_args([]))
    expected = {"context_length": 256, "num_epochs": 1, "batch_size": 8, "eval_freq": 50, "eval_iter": 20, "seed": 123}
    assert {name: defaults[name] for name in expected} == expected
