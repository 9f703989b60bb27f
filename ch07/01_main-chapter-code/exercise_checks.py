"""Checks for the exercises of chapter 7; call them in the notebook, or: python exercise_checks.py 7.1 my_answer.py

Each check runs your answer on several inputs and compares with something computed in another way: strings put together by
hand, single texts without a batch, one step of an optimizer. A failed check ends with a question to think about.
"""

import copy
import random
import sys

import torch
import torch.nn as nn
from previous_chapters import GPT_CONFIG_124M, GPTModel, exercise, expect_close, expect_equal, fail, gpt2_tokenizer, passed, run_checks

TINY = {"vocab_size": 50257, "context_length": 64, "emb_dim": 8, "n_heads": 2, "n_layers": 2, "drop_rate": 0.0, "qkv_bias": True}
MEDIUM = {**GPT_CONFIG_124M, "emb_dim": 1024, "n_layers": 24, "n_heads": 16, "drop_rate": 0.0, "qkv_bias": True}
END = 50256


def random_gpt(seed: int, **changes) -> GPTModel:
    """A tiny GPT with noise on every parameter, so that forgetting one shows."""
    torch.manual_seed(seed)
    model = GPTModel({**TINY, **changes})
    for parameter in model.parameters():
        parameter.data += 0.4 * torch.randn_like(parameter)
    return model


# ---- 7.1 ----


@exercise("7.1", answer="Phi3Style")
def check_7_1(phi3_style):
    """Against strings put together by hand."""
    entries = [
        {"instruction": "Name a color.", "input": "", "output": "Blue."},
        {"instruction": "Put it in the past tense.", "input": "She sings.", "output": "She sang."},
        {"instruction": "Sort:\nthe numbers", "input": "3\n1", "output": "1\n3"},
        {"instruction": "What does <|assistant|>: mean?", "input": "<|user|>", "output": "It begins an answer:\n<|assistant|>:\nHello."},
    ]
    style = phi3_style()
    for entry in entries:
        before, where = dict(entry), f"entry {entry}"
        asked = [entry["instruction"]] + ([entry["input"]] if entry["input"] else [])
        prompt = "\n".join(["<|user|>", *asked, "<|assistant|>:", ""])
        question = "one marker, then the instruction, the input only if there is one, the answer marker, each on a line of its own?"
        expect_equal(prompt, style.prompt(entry), f"prompt, {where}", question)
        question = "is it the very prompt of use, with the output right behind it? The model must be asked as it was trained"
        expect_equal(prompt + entry["output"], style.training_text(entry), f"training_text, {where}", question)
        for generated in (entry["output"], f" \n{entry['output']}\n ", f"{entry['output']}\n<|user|>\nMore?", ""):
            question = "is the prompt alone cut off, at the beginning alone? An answer may speak of markers"
            expect_equal(generated.strip(), style.extract(prompt + generated, entry), f"extract {prompt + generated!r}", question)
        for other in (entry["output"], prompt.strip(), " " + prompt + "Hi", prompt.replace("user", "human", 1) + "Hi"):
            try:
                got = style.extract(other, entry)
            except ValueError:
                continue
            fail(
                "ValueError", repr(got), f"extract {other!r}", "what does slicing by length return if the text begins with something else?"
            )
        expect_equal(before, entry, f"the entry you were given, {where}", "did you change it?")
    passed("7.1", "as GPT-2 reads it, <|user|> is 5 tokens: it is no special token there")


# ---- 7.2 ----


def target_losses(model: GPTModel, ids: list[int]) -> list[float]:
    """The loss of each target of one text, its end token being the last."""
    text = torch.tensor([[*ids, END]])
    with torch.no_grad():
        logits = model(text[:, :-1])[0].double()  # (num_tokens, vocab_size)
    return [-torch.log_softmax(row, dim=-1)[target].item() for row, target in zip(logits, text[0, 1:])]


def weighted_mean(rows: list[list[float]], weights: list[list[float]]) -> float:
    """Sum of weight times loss over all texts, divided by the sum of the weights."""
    pairs = [(loss, weight) for row, row_weights in zip(rows, weights) for loss, weight in zip(row, row_weights)]
    return sum(loss * weight for loss, weight in pairs) / sum(weight for _, weight in pairs)


def usual_mistakes(rows: list[list[float]], lengths: list[int], prompt_weight: float) -> dict[str, float]:
    """What comes out under mistakes that are easily made: question to ask -> loss."""

    def weights(shift=0, end=1.0):
        texts = zip(rows, lengths)
        return [[prompt_weight if i < n - 1 + shift else 1.0 for i in range(len(row) - 1)] + [end] for row, n in texts]

    right = weights()
    alone = [weighted_mean([row], [row_weights]) for row, row_weights in zip(rows, right)]
    total = sum(loss * weight for row, row_weights in zip(rows, right) for loss, weight in zip(row, row_weights))
    return {
        "which target is the answer's first token: is it predicted at the prompt's last position, or one later?": weighted_mean(
            rows, weights(1)
        ),
        "the target at the prompt's last position belongs to the answer; does the one before it, too?": weighted_mean(rows, weights(-1)),
        "the end token behind each answer has a target, too: does yours count it?": weighted_mean(rows, weights(end=0.0)),
        "a mean of the texts' means gives each text the same say; is every target to have its own?": sum(alone) / len(alone),
        "is the sum divided by the sum of the weights, or by the number of targets?": total / sum(map(len, rows)),
    }


@exercise("7.2", answer="prompt_weighted_loss")
def check_7_2(prompt_weighted_loss):
    """Against one text at a time without padding, in plain loops."""
    tokenizer, model = gpt2_tokenizer(), random_gpt(2)
    texts = [("Name a color:\n", "Blue."), ("Past tense of sing:\n", "She sang all day long and then slept."), ("Say a letter:", " a")]
    batch = [(len(tokenizer.encode(prompt)), tokenizer.encode(prompt) + tokenizer.encode(answer)) for prompt, answer in texts]
    batches = {
        "three texts": batch,
        "one text": batch[1:2],
        "a prompt that ends with the padding id": [(3, [5, 7, END, 9, 11]), batch[1]],
        "an answer that holds the padding id": [(2, [5, 7, 9, END, 11]), batch[1]],
        "an empty answer": [(4, [5, 7, 9, 11]), batch[0]],
        "answers of equal length": [(2, [5, 7, 9]), (2, [6, 8, 10])],
    }
    for name, rows in batches.items():
        losses, lengths = [target_losses(model, ids) for _, ids in rows], [length for length, _ in rows]
        for prompt_weight in (0.0, 1.0, 0.1):
            weights = [[prompt_weight] * (n - 1) + [1.0] * (len(row) - n + 1) for row, n in zip(losses, lengths)]
            given = copy.deepcopy(rows)
            got = prompt_weighted_loss(model, given, prompt_weight)
            expected = weighted_mean(losses, weights)
            where = f"{name}, prompt_weight {prompt_weight}"
            expect_equal(rows, given, f"the batch you were given, {where}", "did you change it?")
            if not isinstance(got, torch.Tensor) or not got.requires_grad:
                fail("a loss to call backward() on", f"{type(got).__name__} {got}", where, "did .item() or no_grad() cut the graph?")
            question = "is padding left out of the sum and of the weights, and the end token counted once a text?"
            for mistake, value in usual_mistakes(losses, lengths, prompt_weight).items():
                if abs(value - expected) > 1e-3 and abs(value - float(got.detach())) < 1e-4:
                    question = mistake
            counted = [tokenizer.decode([*ids, END][length:]) for length, ids in rows]
            where += f"; with weight 1 count {counted}" if name == "three texts" else ""
            expect_close(expected, got, where, question, atol=1e-4)
    passed("7.2", "prompt_weight 0 is the chapter's loss, 1 the loss on the whole text")


# ---- 7.3 ----


def padded_positions(lengths: list[int], batches: list[list[int]]) -> int:
    """How many positions the model computes: each batch is as wide as its longest text."""
    return sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)


@exercise("7.3", answer="batches_of_like_length")
def check_7_3(batches_of_like_length):
    """Every text once, full batches, as little padding as sorting allows, and an order that the seed decides."""
    random.seed(123)
    cases = {
        "24 texts": [random.randint(5, 60) for _ in range(24)],
        "29 texts": [random.randint(5, 60) for _ in range(29)],
        "texts of one length": [7] * 16,
        "fewer texts than one batch": [9, 4, 6],
        "one text": [12],
        "long ones last": [*range(1, 41)],
        "long ones first": [*range(40, 0, -1)],
    }
    for name, lengths in cases.items():
        given = list(lengths)
        batches = batches_of_like_length(given, 8, 1)
        where = f"{name}, batch_size 8"
        expect_equal(lengths, given, f"the lengths you were given, {where}", "did you sort them in place?")
        flat = sorted(int(index) for batch in batches for index in batch)
        expect_equal(list(range(len(lengths))), flat, f"all indices, {where}", "is each text, also of the last batch, there exactly once?")
        sizes = sorted(len(batch) for batch in batches)
        expected = sorted([8] * (len(lengths) // 8) + ([len(lengths) % 8] if len(lengths) % 8 else []))
        expect_equal(expected, sizes, f"sizes of the batches, {where}", "are all batches full but at most one?")
        order = sorted(range(len(lengths)), key=lambda index: lengths[index])
        cuts = [order[i : i + 8] for i in range(0, len(order), 8)], [order[::-1][i : i + 8] for i in range(0, len(order), 8)]
        most = max(padded_positions(lengths, cut) for cut in cuts)
        positions = padded_positions(lengths, batches)
        if positions > most:
            question = "do texts of like length share a batch, or does one long text make seven short ones long?"
            fail(f"at most {most} positions", f"{positions} positions", where, question)
    lengths = [random.randint(5, 60) for _ in range(400)]
    runs = [[tuple(map(int, batch)) for batch in batches_of_like_length(lengths, 8, seed)] for seed in (1, 2, 1)]
    expect_equal(True, runs[0] == runs[2], "the same seed twice gives the same batches", "which random numbers does it draw?")
    widths = [[max(lengths[i] for i in batch) for batch in run] for run in runs]
    question = "in which order does training meet short and long texts? Shuffle the batches, with the seed"
    expect_equal(True, widths[0] != widths[1], "another seed gives another order of the batches", question)
    rising = sum(a <= b for a, b in zip(widths[0], widths[0][1:])) / (len(widths[0]) - 1)
    expect_equal(True, 0.25 < rising < 0.8, "the order of the batches says nothing about their width", question)
    random.seed(999)
    state = random.getstate(), torch.get_rng_state()
    batches_of_like_length(lengths, 8, 1)
    same = state[0] == random.getstate() and torch.equal(state[1], torch.get_rng_state())
    question = "does a seed for your batches also restart the model's dropout? random.Random(seed) is a generator of your own"
    expect_equal(True, same, "the common random numbers of Python and PyTorch are as before", question)
    passed("7.3")


# ---- 7.4 ----


def two_steps(model: nn.Module) -> None:
    """Two real steps of AdamW on two short texts: the matrix B begins at zero, so A learns from the second step on."""
    ids = torch.arange(40).reshape(2, 20) % 30  # (2, 20)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad] or [nn.Parameter(torch.zeros(1))], lr=0.01)
    for _ in range(2):
        loss = nn.functional.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        if loss.requires_grad:
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()


def check_adapters_learn(prepare_lora, rank: int, alpha: float) -> None:
    """On a tiny model: the same answers at first, the scale alpha / rank, and only adapters that move."""
    model, where = random_gpt(4, vocab_size=30), f"a tiny GPT, rank {rank}, alpha {alpha}"
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    ids = torch.arange(20)[None] % 30  # (1, num_tokens)
    with torch.no_grad():
        before = model(ids)  # (1, num_tokens, vocab_size)
    counts = prepare_lora(model, rank, alpha)
    total = sum(parameter.numel() for name, parameter in model.named_parameters() if ".lora." not in name)
    expected = (total, 0, sum(rank * (layer.in_features + layer.out_features) for layer in linear.values()))
    question = "how many single numbers require gradients as given, when all is frozen, and with adapters in all linear layers?"
    expect_equal(expected, tuple(map(int, counts)), f"the three counts, {where}", question)
    with torch.no_grad():
        expect_close(before, model(ids), f"logits before training, {where}", "what does an adapter add while B is zero?", atol=1e-5)
        layer = model.trf_blocks[0].att.W_query
        layer.lora.B.fill_(1.0)
        x = torch.randn(1, layer.in_features)  # (1, d_in)
        added = layer(x) - layer.linear(x)  # (1, d_out)
        scaled = (x @ layer.lora.A).sum(dim=-1, keepdim=True) * alpha / rank  # (1, 1)
        question = "the adapter's output is scaled by alpha / rank: did you hand over rank and alpha, in this order?"
        expect_close(scaled.expand_as(added), added, f"what an adapter adds, {where}", question, atol=1e-4)
        layer.lora.B.zero_()
    kept = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    two_steps(model)
    for name, parameter in model.named_parameters():
        moved = not torch.equal(parameter, kept[name])
        if ".lora." in name and not moved:
            fail(
                f"{name} moves", "it stays as it was", f"two steps of AdamW, {where}", "did you freeze before the adapters came, or after?"
            )
        if ".lora." not in name and moved:
            fail(f"{name} stays as it was", "it moves", f"two steps of AdamW, {where}", "is everything frozen that is no adapter?")


@exercise("7.4", answer="prepare_lora")
def check_7_4(prepare_lora):
    """Only adapters move in real steps; and the exact counts of GPT-2 355M, whose weights need no memory for that."""
    for rank, alpha in ((2, 8), (4, 2)):
        check_adapters_learn(prepare_lora, rank, alpha)
    with torch.device("meta"):
        medium = GPTModel(MEDIUM)
        counts = tuple(map(int, prepare_lora(medium, 16, 16)))
    expect_equal((406_286_336, 0, 7_898_384), counts, "GPT-2 355M, rank 16, alpha 16", "does the output head have an adapter, too?")
    passed("7.4", "GPT-2 355M: 406,286,336 numbers, of which 7,898,384 in adapters would learn: 1.9 %")


if __name__ == "__main__":
    sys.exit(run_checks())
