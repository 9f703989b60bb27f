"""Checks for the exercises of chapter 6; call them in the notebook, or: python exercise_checks.py 6.1 my_answer.py

Each check runs your answer on several inputs and compares with something computed in another way: single texts without a
batch, one step of an optimizer, the reach of a mask, a plain loop. A failed check ends with a question to think about.
"""

import math
import re
import sys
import tempfile
from pathlib import Path

import torch
import torch.nn as nn
from gpt_class_finetune import add_classification_head, calc_loss_batch
from previous_chapters import GPTModel, exercise, expect_close, expect_equal, fail, gpt2_tokenizer, passed, run_checks
from spam_data import create_loaders, load_spam_messages
from torch.utils.data import DataLoader

TINY = {
    "vocab_size": 50257, "context_length": 24, "emb_dim": 8, "n_heads": 2, "n_layers": 3, "drop_rate": 0.3, "qkv_bias": False,
}  # fmt: skip
PAD = 50256


def random_classifier(seed: int, **changes) -> GPTModel:
    """A tiny classifier with noise on every parameter, so that forgetting one shows, and with dropout, so that a wrong mode does."""
    torch.manual_seed(seed)
    model = GPTModel({**TINY, **changes})
    add_classification_head(model)
    for parameter in model.parameters():
        parameter.data += 0.4 * torch.randn_like(parameter)
    return model


def small_trained_classifier() -> tuple[GPTModel, list[DataLoader]]:
    """A GPT of 0.8 million numbers, all trained for three epochs on the chapter's messages: (model in eval mode, three loaders).

    It starts from random weights, takes seconds, and gives the pictures something real to show.
    """
    with tempfile.TemporaryDirectory() as folder:
        loaders, _ = create_loaders(load_spam_messages(), Path(folder), context_length=64, batch_size=16)
    torch.manual_seed(123)
    model = GPTModel({**TINY, "context_length": 64, "emb_dim": 16, "n_layers": 1, "drop_rate": 0.0})
    add_classification_head(model)
    model.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(3):
        for input_batch, target_batch in loaders[0]:
            optimizer.zero_grad()
            calc_loss_batch(input_batch, target_batch, model, torch.device("cpu")).backward()
            optimizer.step()
    return model.eval(), loaders


def expect_mode(model: nn.Module, training: bool, where: str) -> None:
    """Fail unless the model is in the mode it was given in."""
    names = {True: "train mode", False: "eval mode"}
    question = "which mode was the model in when your function got it, and which is it in now?"
    expect_equal(names[training], names[model.training], f"mode of the model afterwards, {where}", question)


@exercise("6.1", answer="padded_logits")
def check_6_1(padded_logits):
    """Against one text at a time, its ids put together by hand."""
    tokenizer, texts = gpt2_tokenizer(), ["ok", "", "the <|endoftext|> of it", "See you at one, by the clock.", "free prize! " * 9]
    model = random_classifier(1, drop_rate=0.3)
    cases = [(5, False, 24, PAD), (5, True, 7, PAD), (5, False, 1, PAD), (5, True, 15, 11), (2, False, 9, PAD)]
    for count, training, max_length, pad in cases:
        where = f"max_length {max_length}, pad_token_id {pad}, {count} texts, model given in {'train' if training else 'eval'} mode"
        got = padded_logits(texts[:count], model.train(training), tokenizer, max_length, pad)
        expect_mode(model, training, where)
        rows = [tokenizer.encode_ordinary(text)[:max_length] for text in texts[:count]]
        model.eval()
        with torch.no_grad():
            expected = torch.stack([model(torch.tensor([ids + [pad] * (max_length - len(ids))]))[0, max_length - 1] for ids in rows])
        question = "is every text cut, then filled on the right to max_length, and read at its very last position, without dropout?"
        expect_close(expected, got, f"logits (texts, classes), {where}", question, atol=1e-4)
        if got.requires_grad:
            fail("logits alone", "logits that remember how to compute gradients", where, "do you need gradients to classify?")
    passed("6.1")


@exercise("6.2", answer="choose_trainable")
def check_6_2(choose_trainable):
    """One real step of an optimizer must move the chosen parameters, all of them, and no other."""
    parts = {"head": ("out_head.",), "last_block": ("out_head.", "final_norm.", "trf_blocks.2."), "all": ("",)}
    ids, targets = torch.arange(48).reshape(2, 24), torch.tensor([0, 1])  # (2, 24), (2)
    model = random_classifier(2, drop_rate=0.0)
    for part in ("last_block", "head", "all", "last_block", "all", "head"):  # each also after each other one
        count = choose_trainable(model, part)
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        expected = sorted(name for name in before if name.startswith(parts[part]))
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad] or [nn.Parameter(torch.zeros(1))], lr=0.1)
        model.zero_grad()
        loss = nn.functional.cross_entropy(model(ids)[:, -1], targets)
        if loss.requires_grad:
            loss.backward()
            optimizer.step()
        moved = sorted(name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name]))
        missing, extra = sorted({*expected} - {*moved}), sorted({*moved} - {*expected})
        where = f"{part!r}: parameters that one step of AdamW moves"
        if missing:
            fail(f"{missing[0]} moves", "it stays as it was", where, "what else belongs to this part, and did an earlier call freeze it?")
        if extra:
            fail(f"{extra[0]} stays as it was", "it moves", where, "what did an earlier call leave trainable?")
        question = "how many single numbers are trainable now? A matrix has many"
        expect_equal(sum(before[name].numel() for name in expected), count, f"number returned for {part!r}", question)
    try:
        got = choose_trainable(model, "first_block")
    except ValueError:
        passed("6.2", "GPT-2 124M: 1,538 numbers in the head, 7.1 million with the last block, 124 million in all")
        return
    except KeyError:
        fail("ValueError", "KeyError", "a part that does not exist", "does the name reach a dictionary before you have looked at it?")
    fail("ValueError", repr(got), "a part that does not exist", "would a typing error train the wrong part unnoticed?")


def reach(blocked: torch.Tensor, n_layers: int) -> torch.Tensor:
    """True at [i, j] where position i can have heard of position j after n_layers layers with this mask (num_tokens, num_tokens)."""
    step = (~blocked.bool()).double()  # (num_tokens, num_tokens)
    return torch.linalg.matrix_power(step, n_layers) > 0  # (num_tokens, num_tokens)


@exercise("6.3", answer="heard_positions")
def check_6_3(heard_positions):
    """Against the paths through the mask, for the causal model and for models whose mask has been exchanged."""
    causal = torch.ones(24, 24).triu(1)  # (24, 24)
    masks = {
        "a causal GPT": causal,
        "a GPT without a mask": torch.zeros(24, 24),
        "a GPT that looks at itself and one token back, in each layer": 1 - torch.eye(24) - torch.eye(24).roll(1, 0).tril(),
        "a GPT that looks ahead only": causal.T,
    }
    for seed, (name, mask) in enumerate(masks.items()):
        model = random_classifier(seed, vocab_size=10)
        for block in model.trf_blocks:
            block.att.mask.copy_(mask)
        for training, num_tokens, position in ((False, 9, 0), (True, 9, 8), (False, 7, 4), (True, 1, 0)):
            ids = torch.arange(5, 5 + num_tokens)[None] % 10  # (1, num_tokens)
            before = ids.clone()
            got = heard_positions(model.train(training), ids, position)
            where = f"{name}, {num_tokens} tokens, position {position}, model given in {'train' if training else 'eval'} mode"
            expect_equal(before, ids, f"the ids you were given, {where}", "did you change the input in place?")
            expect_mode(model, training, where)
            expected = reach(mask[:num_tokens, :num_tokens], 3)[position].nonzero().flatten().tolist()
            question = "is one token at a time exchanged for a different one, without dropout, and are the logits of `position` compared?"
            expect_equal(expected, got, f"positions heard by {where}", question)
    passed("6.3", "position 0 of a causal model hears itself and nothing else")


@exercise("6.4", answer="choose_threshold")
def check_6_4(choose_threshold):
    """Against trying every possible threshold, from 0 upward."""
    torch.manual_seed(123)
    cases = [(200, 1), (200, 0), (100, 1), (99, 1), (50, 29), (7, 50), (4, 100), (1, 1)]
    for num_texts, per_hundred in cases:
        probas = (torch.rand(num_texts) * 50).round() / 50  # (num_texts)
        labels = (torch.arange(num_texts) % 3 == 1).long()  # (num_texts)
        before = probas.clone()
        ham, threshold = [p for p, label in zip(probas.tolist(), labels.tolist()) if label == 0], None
        for candidate in sorted({0.0, *probas.tolist()}):
            lost = sum(p > candidate for p in ham)
            if 100 * lost <= per_hundred * len(ham):
                threshold = candidate
                break
        got = choose_threshold(probas, labels, per_hundred)
        where = f"{num_texts} texts, {len(ham)} of them ham, lost_per_hundred {per_hundred}"
        expect_equal(before, probas, f"the probabilities you were given, {where}", "did you change the input in place?")
        question = "is only ham counted, only what lies strictly above the threshold, and do equal probabilities stay together?"
        expect_close(threshold, got, f"threshold for {where}", question, atol=1e-6)
    passed("6.4")


@exercise("6.5", answer="without_repeats")
def check_6_5(without_repeats):
    """Against comparing every test message with every training message."""
    cases = {
        "exact repeats": (["a b", "c"], ["c", "d", "a b"], [True, False, False]),
        "other capitals": (["FREE entry", "Ok"], ["free ENTRY", "OK", "no"], [True, True, False]),
        "other white space": (["see  you\tsoon", " ok "], ["see you soon", "ok", "o k", "seeyou soon"], [False, True, True, False]),
        "a part of a training message": (["call me now", "yes"], ["call me", "me", "y"], [False, True, True]),
        "repeats within the test set alone": (["a"], ["b", "b", "c"], [True, True, False]),
        "an empty message": (["", "a"], [" ", "b"], [True, False]),
        "nothing but repeats": (["a", "b"], ["b", "A"], [True, True]),
        "no repeats": (["a"], ["b", "c", "d"], [True, False, True]),
    }
    for name, (train_texts, test_texts, right) in cases.items():
        train = [re.sub(r"\s+", " ", text).strip().lower() for text in train_texts]
        test = [re.sub(r"\s+", " ", text).strip().lower() for text in test_texts]
        repeats = [position for position, text in enumerate(test) if any(text == other for other in train)]
        new = [right[position] for position in range(len(test)) if position not in repeats]
        got = without_repeats(list(train_texts), list(test_texts), list(right))
        where = f"{name}: training {train_texts}, test {test_texts}"
        if not isinstance(got, tuple) or len(got) != 2:
            fail("a tuple: positions, accuracy", repr(got), where, "do you return both, positions first?")
        question = "is it the test message's position, and are whole messages compared, other capitals and spaces aside?"
        expect_equal(repeats, [int(position) for position in got[0]], f"repeated messages, {where}", question)
        if not new:
            expect_equal(True, math.isnan(got[1]), f"the accuracy is nan, {where}", "what is the accuracy on no message at all?")
        else:
            question = "is it the share of right answers among the messages that are left?"
            expect_close(sum(new) / len(new), got[1], f"accuracy without repeats, {where}, right {right}", question)
    passed("6.5")


@exercise("6.6", answer="mean_logits")
def check_6_6(mean_logits):
    """Against one text at a time without any padding; the batch must go through the model in one call."""
    model, calls = random_classifier(6, drop_rate=0.0), []
    model.tok_emb.register_forward_hook(lambda *args: calls.append(1))
    torch.manual_seed(123)
    for lengths, width, pad in (([5, 9, 1], 9, PAD), ([5, 9, 1], 24, PAD), ([3], 3, PAD), ([4, 0, 2], 6, PAD), ([2, 7], 8, 3)):
        rows = [torch.randint(100, 2000, (length,)) for length in lengths]
        batch = torch.full((len(rows), width), pad)  # (b, num_tokens)
        for row, ids in zip(batch, rows):
            row[: len(ids)] = ids
        before = batch.clone()
        calls.clear()
        got = mean_logits(model, batch, pad)
        num_calls = len(calls)
        expected = torch.stack([model((ids if len(ids) else torch.tensor([pad]))[None])[0].mean(dim=0) for ids in rows])
        where = f"texts of {lengths} tokens padded to {width}, pad_token_id {pad}"
        question = "is padding left out of the sum AND of the count, and what is left of a row that is all padding?"
        expect_close(expected, got, f"logits, {where}", question, atol=1e-4)
        expect_equal(before, batch, f"the ids you were given, {where}", "did you change the input in place?")
        expect_equal(1, num_calls, f"calls of the model, {where}", "can all rows go through the model together?")
        expect_equal(True, got.requires_grad, f"the model can be trained on it, {where}", "did you switch gradients off?")
    passed("6.6")


@exercise("6.7", answer="cache_features")
def check_6_7(cache_features):
    """The head, applied to the cached features, must say what the whole model says of each text alone."""
    model, calls = random_classifier(7), []
    model.tok_emb.register_forward_hook(lambda *args: calls.append(1))
    head = model.out_head
    torch.manual_seed(123)
    lengths = [5, 1, 12, 7, 0, 3, 9]
    batch = torch.full((7, 12), PAD)  # (7, 12)
    for row, length in zip(batch, lengths):
        row[:length] = torch.randint(2000, (length,))
    data = [(row, torch.tensor(length % 2)) for row, length in zip(batch, lengths)]
    for training, batch_size, shuffle in ((False, 7, False), (True, 3, False), (True, 2, True)):
        where = f"batch_size {batch_size}, {shuffle=}, model given in {'train' if training else 'eval'} mode"
        calls.clear()
        torch.manual_seed(5)
        got = cache_features(model.train(training), DataLoader(data, batch_size, shuffle=shuffle))
        num_calls = len(calls)
        if not isinstance(got, tuple) or len(got) != 2:
            fail("a tuple: features, labels", type(got).__name__, where, "do you return both, features first?")
        expect_mode(model, training, where)
        expect_equal(True, model.out_head is head, f"the model has its head, {where}", "did you put back what you took away?")
        torch.manual_seed(5)
        in_order = [(ids, label) for rows, labels in DataLoader(data, batch_size, shuffle=shuffle) for ids, label in zip(rows, labels)]
        model.eval()
        with torch.no_grad():
            trimmed = [ids[: max(1, int((ids != PAD).sum()))] for ids, _ in in_order]
            expected = torch.stack([model(ids[None])[0, -1] for ids in trimmed])  # (7, num_classes)
        features, labels = got
        expect_equal((7, TINY["emb_dim"]), tuple(features.shape), f"shape of the features, {where}", "is it one vector for each text?")
        question = "is it the vector at the last token that is no padding, behind the final norm, without dropout?"
        with torch.no_grad():
            expect_close(expected, head(features), f"the head's logits on your features, {where}", question, atol=1e-4)
        in_order = torch.stack([label for _, label in in_order])
        expect_equal(in_order, labels, f"labels, {where}", "do they come from the same pass as the features?")
        expect_equal(math.ceil(7 / batch_size), num_calls, f"calls of the model, {where}", "is every batch read exactly once?")
        expect_equal(False, features.requires_grad, f"the features remember gradients, {where}", "will anything below the head be trained?")
    passed("6.7")


if __name__ == "__main__":
    sys.exit(run_checks())
