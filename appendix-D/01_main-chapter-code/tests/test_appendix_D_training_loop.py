"""train_model: the rates it uses, what it clips and when, and that with every part switched off it is chapter 5's loop."""

import contextlib
import io
import math

import pytest
import torch
import torch.nn as nn
import training_loop
from previous_chapters import GPT_CONFIG_124M, STORY_FILE, GPTModel, gpt2_tokenizer, train_model_simple
from story_data import SmallVocabulary, create_loaders, split_story
from training_loop import find_highest_gradient, train_model

CPU = torch.device("cpu")
TEXTS = tuple(part[:1500] for part in split_story())
TOKENIZER = SmallVocabulary(gpt2_tokenizer(), TEXTS)
TINY = {**GPT_CONFIG_124M, "vocab_size": len(TOKENIZER.old_ids), "context_length": 16, "emb_dim": 8, "n_heads": 2, "n_layers": 1}
EPOCHS = 3
PEAK = 0.01


def new_training(batch_size: int = 4):
    """The same model with dropout, loaders and optimizer in every call."""
    torch.manual_seed(123)
    model = GPTModel(TINY)
    loaders = create_loaders(TEXTS, TOKENIZER, 16, batch_size)
    return model, *loaders, torch.optim.AdamW(model.parameters(), lr=PEAK, weight_decay=0.1)


def run(training, *schedule, epochs: int = EPOCHS, eval_freq: int = 5, function=train_model, **more):
    torch.manual_seed(123)  # shuffles and dropout
    with contextlib.redirect_stdout(io.StringIO()):
        return function(*training, CPU, epochs, eval_freq, 1, "Nell", TOKENIZER, *schedule, **more)


def watch_steps(optimizer) -> list:
    """Note, at every step of the optimizer, the rates of its groups and the norm of all gradients."""
    seen, step = [], optimizer.step

    def noted(*args):
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = math.sqrt(sum(gradient.square().sum().item() for gradient in gradients))
        seen.append(([group["lr"] for group in optimizer.param_groups], norm))
        return step(*args)

    optimizer.step = noted
    return seen


# ---- the schedule ----

@pytest.mark.parametrize("warmup_steps", [0, 1, 5, 12])
def test_the_rates_start_at_the_initial_one_reach_the_peak_once_and_end_at_the_floor(warmup_steps):
    training = new_training()
    rates = run(training, warmup_steps, 1e-4, 1e-5)[3]
    total_steps = EPOCHS * len(training[1])
    assert len(rates) == total_steps == 18
    assert rates[0] == (1e-4 if warmup_steps else pytest.approx(PEAK))
    assert [step for step, rate in enumerate(rates) if rate > 0.999999 * PEAK] == [warmup_steps]
    assert rates[-1] == 1e-5
    up, down = rates[: warmup_steps + 1], rates[warmup_steps:]
    assert up == sorted(up) and down == sorted(down, reverse=True)
    assert [b - a for a, b in zip(up, up[1:])] == pytest.approx([(PEAK - 1e-4) / max(1, warmup_steps)] * warmup_steps)
    half = [(a + b) / 2 for a, b in zip(down, down[::-1])]  # half a cosine is symmetric about its middle
    assert half == pytest.approx([(PEAK + 1e-5) / 2] * len(down))
    quarter = (len(down) - 1) / 4
    if quarter == int(quarter):
        assert down[int(quarter)] == pytest.approx(1e-5 + (PEAK - 1e-5) * (0.5 + 0.5 / math.sqrt(2)))


@pytest.mark.parametrize(("warmup_steps", "expected"), [(2, [0.001, 0.0055]), (1, [0.001, 0.01]), (0, [0.01, 0.002])])
def test_schedules_of_two_steps(warmup_steps, expected):
    model, train_loader, val_loader, optimizer = new_training()
    two_batches = list(train_loader)[:2]
    assert run((model, two_batches, val_loader, optimizer), warmup_steps, 0.001, 0.002, epochs=1)[3] == pytest.approx(expected)


def test_the_noted_rate_is_the_one_that_every_group_used_in_its_ratio():
    model, *loaders, _ = new_training()
    parameters = list(model.parameters())
    groups = [{"params": parameters[:3]}, {"params": parameters[3:6], "lr": PEAK / 4}, {"params": parameters[6:]}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK)
    seen = watch_steps(optimizer)
    rates = run((model, *loaders, optimizer), 5)[3]
    assert [used for used, _ in seen] == [[rate, rate / 4, rate] for rate in rates]


def test_a_second_training_has_the_same_peak_also_after_an_interrupted_one():
    training = new_training()
    first = run(training, 4)[3]
    assert run(training, 4)[3] == first

    def interrupt(*args):
        raise KeyboardInterrupt

    training[0].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(training, 4)
    assert training[3].param_groups[0]["lr"] == PEAK


def test_what_is_refused():
    model, train_loader, val_loader, optimizer = new_training()
    total_steps = EPOCHS * len(train_loader)
    for warmup_steps in (-1, total_steps + 1):
        with pytest.raises(ValueError, match=f"between 0 and the {total_steps} steps of this training, got {warmup_steps}"):
            run((model, train_loader, val_loader, optimizer), warmup_steps)
    for loader, epochs in (([], EPOCHS), (train_loader, 0)):
        with pytest.raises(ValueError, match="0 training steps"):
            run((model, loader, val_loader, optimizer), 0, epochs=epochs)
    optimizer.param_groups[0]["lr"] = 0.0
    with pytest.raises(ValueError, match="must be positive, got 0.0"):
        run((model, train_loader, val_loader, optimizer), 0)


# ---- clipping ----

@pytest.mark.parametrize(("late", "first"), [(False, 6), (True, 7)])
def test_gradients_are_clipped_between_backward_and_step_from_the_end_of_the_warm_up_on(late, first):
    training = new_training()
    seen = watch_steps(training[3])
    run(training, 6, orig_book_version=late, max_norm=0.1)
    norms = [norm for _, norm in seen]
    assert all(norm > 0.2 for norm in norms[:first])
    assert norms[first:] == pytest.approx([0.1] * len(norms[first:]), rel=1e-4)


def test_small_gradients_are_left_alone():
    free, clipped = new_training(), new_training()
    run(free, 6, max_norm=math.inf)
    run(clipped, 6, max_norm=1e6)
    assert equal_weights(free[0], clipped[0])


def test_the_largest_gradient_is_the_largest_by_absolute_value():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2), nn.Linear(2, 1))
    assert find_highest_gradient(model) is None
    for parameter in model[:2].parameters():  # the last layer stays without
        parameter.grad = torch.rand_like(parameter)
    model[1].bias.grad[1] = -7.5
    highest = find_highest_gradient(model)
    assert highest.shape == () and highest.item() == 7.5


# ---- the loop ----

def equal_weights(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_with_every_part_switched_off_it_is_the_loop_of_chapter_5_bit_for_bit():
    ours, theirs = new_training(), new_training()
    results = run(ours, 0, min_lr=PEAK, max_norm=math.inf)
    assert results[:3] == run(theirs, function=train_model_simple)
    assert equal_weights(ours[0], theirs[0])
    assert set(results[3]) == {PEAK}


def test_each_part_changes_the_training():
    plain = {"warmup_steps": 0, "initial_lr": 1e-5, "min_lr": PEAK, "max_norm": math.inf}
    models = []
    for change in ({}, {"warmup_steps": 5}, {"min_lr": 1e-5}, {"max_norm": 0.1}):
        models.append(new_training())
        run(models[-1], **{**plain, **change})
    assert not any(equal_weights(models[0][0], other[0]) for other in models[1:])


def test_losses_are_measured_after_the_step_at_step_0_and_every_eval_freq():
    training = new_training(batch_size=6)
    train_losses, val_losses, tokens_seen, rates = run(training, 3, eval_freq=4)
    assert len(train_losses) == len(val_losses) == len(tokens_seen) == (len(rates) - 1) // 4 + 1
    assert tokens_seen == [6 * 16 * (4 * index + 1) for index in range(len(tokens_seen))]
    assert train_losses[-1] < train_losses[0] - 0.2 and val_losses[-1] < val_losses[0]
    # the first entry is the loss after one update, by hand
    model, train_loader, val_loader, optimizer = new_training(batch_size=6)
    optimizer.param_groups[0]["lr"] = 3e-5
    torch.manual_seed(123)
    first = next(iter(train_loader))
    nn.functional.cross_entropy(model(first[0]).flatten(0, 1), first[1].flatten()).backward()
    optimizer.step()
    assert val_losses[0] == pytest.approx(training_loop.evaluate_model(model, train_loader, val_loader, CPU, 1)[1], abs=1e-5)


def test_measuring_changes_nothing():
    seldom, often = new_training(), new_training()
    run(seldom, 5, eval_freq=50)
    run(often, 5, eval_freq=1)
    assert equal_weights(seldom[0], often[0])


# ---- the story's vocabulary ----

@pytest.mark.parametrize("text", ["Nell sang", "<|endoftext|>", "Nell<|endoftext|>Nell sang", ""])
def test_the_small_vocabulary_loses_nothing(text):
    tokenizer = SmallVocabulary(gpt2_tokenizer(), split_story())
    ids = tokenizer.encode(text, allowed_special={"<|endoftext|>"})
    assert tokenizer.decode(ids) == text
    assert all(0 <= new < len(tokenizer.old_ids) for new in ids)


def test_the_small_vocabulary_is_that_of_gpt2_renumbered():
    texts = split_story()
    assert "".join(texts) == STORY_FILE.read_text(encoding="utf-8")
    large, small = gpt2_tokenizer(), SmallVocabulary(gpt2_tokenizer(), texts)
    for text in texts:
        assert [small.old_ids[new] for new in small.encode(text)] == large.encode(text)
    used = set(large.encode(texts[0])) | set(large.encode(texts[1])) | {50256}
    assert small.old_ids == sorted(used) and len(used) == 1083
    with pytest.raises(ValueError, match="no token ' quant', which is in 'Nell quantized'"):
        small.encode("Nell quantized")


def test_an_end_of_text_marker_in_the_training_text_is_one_token():
    tokenizer = SmallVocabulary(gpt2_tokenizer(), ["Nell sang.<|endoftext|>Nell rowed."])
    marker = tokenizer.new_ids[50256]
    loader, _ = create_loaders(("Nell sang.<|endoftext|>Nell rowed.", "Nell sang.<|endoftext|>Nell rowed."), tokenizer, 4, 1)
    assert sum((inputs == marker).sum().item() for inputs, _ in loader) == 1
