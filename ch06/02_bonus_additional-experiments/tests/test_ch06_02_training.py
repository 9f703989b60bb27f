"""Loss and loop: labels that do not count, accumulated gradients, updates that are counted, measuring that changes nothing."""

import math

import pytest
import torch
from additional_experiments import calc_accuracy_loader, calc_loss_batch, calc_loss_loader, evaluate_model, train_classifier_simple
from torch.utils.data import DataLoader, TensorDataset

CPU = torch.device("cpu")
PAD = 50256


class Scores(torch.nn.Module):
    """Logits of each token from a table: fast, and easy to compute by hand."""

    def __init__(self, seed: int = 3):
        super().__init__()
        torch.manual_seed(seed)
        self.table = torch.nn.Embedding(PAD + 1, 2)
        self.mode_seen = []

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        self.mode_seen.append(self.training)
        return self.table(ids)  # (b, num_tokens, num_classes)


def texts(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Texts of 1 to 5 tokens, padded to 6, with both labels among them."""
    torch.manual_seed(1)
    ids = torch.randint(50, (number, 6))
    for row, ids_of_text in enumerate(ids):
        ids_of_text[1 + row % 5 :] = PAD
    return ids, torch.arange(number) % 2


def loader(number: int, batch_size: int = 8, **options) -> DataLoader:
    return DataLoader(TensorDataset(*texts(number)), batch_size, **options)


def run(model, train_loader, learning_rate: float = 0.5, num_epochs: int = 1, **options):
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
    how = {"eval_freq": 1, "eval_iter": 1, **options}
    return train_classifier_simple(model, train_loader, loader(4), optimizer, CPU, num_epochs, **how)


# ---- the loss ----


@pytest.mark.parametrize("reading", [{}, {"trainable_token_pos": "flexible"}, {"trainable_token_pos": 0}, {"average_embeddings": True}])
def test_an_ignored_label_does_not_count_however_a_text_is_read(reading):
    model, (ids, labels) = Scores(), texts(8)
    whole = calc_loss_batch(ids, labels, model, CPU, **reading)
    for ignored in (0, 1):
        kept = labels != ignored
        alone = calc_loss_batch(ids[kept], labels[kept], model, CPU, **reading)
        assert torch.isclose(calc_loss_batch(ids, labels, model, CPU, ignore_index=ignored, **reading), alone)
        assert not torch.isclose(whole, alone, rtol=1e-3)
    assert torch.equal(calc_loss_batch(ids, labels, model, CPU, ignore_index=50256, **reading), whole)  # no text has this label


def test_a_batch_in_which_nothing_counts_has_loss_0_and_moves_no_weight():
    model, (ids, _) = Scores(), texts(3)
    loss = calc_loss_batch(ids, torch.ones(3, dtype=torch.long), model, CPU, ignore_index=1)
    loss.backward()
    assert loss == 0 and model.table.weight.grad.abs().max() == 0


def test_the_positional_order_of_the_options_is_that_of_the_documentation():
    model, (ids, labels) = Scores(), texts(8)
    named = calc_loss_batch(ids, labels, model, CPU, trainable_token_pos=0, ignore_index=1, average_embeddings=False)
    assert torch.equal(calc_loss_batch(ids, labels, model, CPU, 0, 1, False), named)
    assert not torch.equal(calc_loss_batch(ids, labels, model, CPU, 0, 1, True), named)


def test_losses_and_accuracies_of_a_loader_are_those_of_its_texts():
    model, (ids, labels) = Scores(), texts(10)
    for options in ({}, {"ignore_index": 1}, {"average_embeddings": True}):
        by_hand = calc_loss_batch(ids, labels, model, CPU, **options).item()
        assert calc_loss_loader(loader(10, 3), model, CPU, **options) == pytest.approx(by_hand, rel=1e-5)
    last = [ids[row, row % 5] for row in range(10)]
    right = [(model.table.weight[token].argmax() == label).item() for token, label in zip(last, labels)]
    assert calc_accuracy_loader(loader(10, 3), model, CPU) == sum(right) / 10
    assert calc_accuracy_loader(loader(10, 3), model, CPU, num_batches=1) == sum(right[:3]) / 3
    assert 0 < sum(right) < 10
    assert math.isnan(calc_accuracy_loader(loader(10), model, CPU, num_batches=0)) and math.isnan(
        calc_loss_loader(loader(10), model, CPU, num_batches=0)
    )


@pytest.mark.parametrize("training", [True, False])
def test_measuring_changes_neither_mode_nor_random_draws(training):
    model = Scores().train(training)
    shuffled, validation = loader(10, 3, shuffle=True), loader(4)
    torch.manual_seed(9)
    expected = torch.rand(1)
    torch.manual_seed(9)
    evaluate_model(model, shuffled, validation, CPU, 2)
    assert torch.equal(torch.rand(1), expected) and model.training is training and set(model.mode_seen) == {False}


# ---- the loop ----


def test_accumulated_batches_take_the_step_of_one_large_batch():
    small, large = Scores(), Scores()
    run(small, loader(16, 2), accumulation_steps=4)
    run(large, loader(16, 8))
    assert torch.allclose(small.table.weight, large.table.weight, atol=1e-6)
    assert not torch.allclose(small.table.weight, Scores().table.weight, atol=1e-2)


def test_a_short_last_group_counts_as_much_as_its_batches():
    """Three batches, accumulated by two: the third is an update of its own, not half of one."""
    short, by_hand = Scores(), Scores()
    run(short, loader(6, 2), accumulation_steps=2)
    run(by_hand, DataLoader(torch.utils.data.Subset(TensorDataset(*texts(6)), range(4)), 4))
    run(by_hand, DataLoader(torch.utils.data.Subset(TensorDataset(*texts(6)), range(4, 6)), 2))
    assert torch.allclose(short.table.weight, by_hand.table.weight, atol=1e-6)


def test_the_ignored_label_reaches_the_training():
    plain, ignoring, useless = Scores(), Scores(), Scores()
    run(plain, loader(16, 4))
    run(ignoring, loader(16, 4), ignore_index=1)
    run(useless, loader(16, 4), ignore_index=50256)
    assert torch.equal(useless.table.weight, plain.table.weight)
    assert not torch.allclose(ignoring.table.weight, plain.table.weight, atol=1e-3)


@pytest.mark.parametrize("options", [{"trainable_token_pos": "last"}, {"trainable_token_pos": "first"}, {"average_embeddings": True}])
def test_the_way_of_reading_reaches_the_training(options):
    plain, other = Scores(), Scores()
    run(plain, loader(16, 4))
    run(other, loader(16, 4), **options)
    assert not torch.allclose(other.table.weight, plain.table.weight, atol=1e-3)


def test_updates_examples_and_measurements_are_counted():
    losses, val_losses, accs, val_accs, seen = run(Scores(), loader(20, 4), num_epochs=2, eval_freq=3)
    assert seen == 40 and len(accs) == len(val_accs) == 2
    assert len(losses) == len(val_losses) == 4  # after updates 0, 3, 6 and 9 of ten
    tokens = []
    losses, _, accs, _, seen = run(Scores(), loader(20, 2), num_epochs=5, max_steps=7, accumulation_steps=2, after_batch=tokens.append)
    # an epoch has ten batches and five updates, so the seventh update ends with batch 14
    assert seen == 28 and len(losses) == 7 and len(accs) == 2 and tokens == [12] * 14


def test_losses_fall():
    losses, *_ = run(Scores(), loader(32, 4), num_epochs=20, learning_rate=2.0)
    assert losses[-1] < 0.6 * losses[0]


def test_a_loader_without_batches_is_refused():
    with pytest.raises(ValueError, match="no batch"):
        run(Scores(), loader(3, 4, drop_last=True))
