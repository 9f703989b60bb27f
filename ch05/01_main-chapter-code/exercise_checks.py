"""Checks for the exercises of chapter 5; call them in the notebook, or: python exercise_checks.py 5.1 my_answer.py

Each check runs your answer on several inputs and compares with something computed in another way: PyTorch's own softmax,
loss and clipping, a plain loop, or a run that was never interrupted. A failed check ends with a question to think about.
"""

import contextlib
import copy
import io
import math
import sys
import tempfile
from pathlib import Path

import torch
import torch.nn as nn
from checkpoints import TrainingState, restore_checkpoint, save_checkpoint
from gpt_generate import generate, load_weights_into_gpt
from gpt_train import calc_loss_batch, create_split_loaders, train_model_simple
from previous_chapters import (
    GPTModel,
    exercise,
    expect_close,
    expect_equal,
    expect_something,
    fail,
    forbid,
    gpt2_tokenizer,
    passed,
    run_checks,
)
from torch.utils._python_dispatch import TorchDispatchMode

TINY_CONFIG = {
    "vocab_size": 50257, "context_length": 12, "emb_dim": 8, "n_heads": 2, "n_layers": 1, "drop_rate": 0.1, "qkv_bias": False,
}  # fmt: skip
TINY_TEXT = "Nell sang while she rowed, and counted things, and stopped altogether when she wanted to think. " * 12


@exercise("5.1", answer="draw_word")
def check_5_1(draw_word):
    """Exact probability against softmax; counts within five standard deviations, and at three temperatures not all alike."""
    logits = torch.tensor([4.1, 3.6, 2.2, 2.9, 0.4, 1.1, 3.3, -0.7, -2.5])
    for word, temperature, draws in ((8, 5.0, 4000), (0, 1.0, 4000), (8, 1.0, 2000), (5, 0.5, 4000), (3, 2.0, 1000)):
        torch.manual_seed(123)
        exact, count = draw_word(logits, word, temperature, draws)
        count = count.item() if isinstance(count, torch.Tensor) else count  # a tensor of one number will do
        p = torch.softmax(logits.double() / temperature, dim=0)[word].item()
        where = f"word {word}, {temperature=}, {draws=}"
        expect_close(p, float(exact), f"exact probability of {where}", "is the temperature applied to the logits, before softmax?")
        spread = math.sqrt(draws * p * (1 - p))
        if not isinstance(count, int) or abs(count - draws * p) > 5 * spread + 1:
            question = "is every draw made with the same probabilities, and is only this word counted?"
            fail(f"a whole number near {draws * p:.0f}, give or take {spread:.0f}", repr(count), f"count for {where}", question)
    torch.manual_seed(1)
    p, question = torch.softmax(logits, dim=0)[1].item(), "did you draw, or compute the count from the probability?"
    for draws, calls in ((1, 400), (200, 60)):
        counts = torch.tensor([float(draw_word(logits, 1, 1.0, draws)[1]) for _ in range(calls)])
        spread = math.sqrt(draws * p * (1 - p))
        right = 0.6 * spread < counts.std() < 1.6 * spread and abs(counts.mean() - draws * p) < 5 * spread / math.sqrt(calls)
        if not right or counts.min() < 0 or counts.max() > draws:
            expected = f"counts from 0 to {draws} with mean {draws * p:.2f} and standard deviation {spread:.2f}"
            got = f"counts from {counts.min():.0f} to {counts.max():.0f} with mean {counts.mean():.2f}, deviation {counts.std():.2f}"
            fail(expected, got, f"{calls} calls with draws={draws}, word 1, temperature 1.0", question)
    passed("5.1")


@exercise("5.2", answer="text_statistics")
def check_5_2(text_statistics):
    """Both shares against a plain loop over the ids."""
    torch.manual_seed(123)
    rows = [[5, 5, 5, 5, 5], [1, 2, 3, 4], [1, 2, 1, 2, 1, 2], [7, 7], [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5], torch.randint(9, (80,)).tolist()]
    for ids in rows:
        pairs, repeated = [], 0
        for pair in zip(ids, ids[1:]):
            repeated += pair in pairs
            pairs.append(pair)
        distinct_share, repeated_share = text_statistics(ids)
        where = f"token_ids = {ids if len(ids) < 20 else '80 random ids below 9'}"
        expect_close(len(set(ids)) / len(ids), float(distinct_share), f"distinct share, {where}", "is it a share of all tokens?")
        question = "does a pair count as repeated only from its second appearance on, and how many pairs do n tokens have?"
        expect_close(repeated / len(pairs), float(repeated_share), f"repeated share, {where}", question)
    passed("5.2")


@exercise("5.3", answer="always_repeats")
def check_5_3(always_repeats):
    """The claim against `generate`, run several times without a seed in between."""
    torch.manual_seed(123)
    model = GPTModel({**TINY_CONFIG, "vocab_size": 40}).eval()
    model.out_head.weight.data *= 0.01  # logits so close that even a very low temperature draws now this token, now that
    prompt = torch.tensor([[1, 2, 3]])  # (1, 3)
    for temperature in (0.0, 0.01, 0.05, 0.3, 1.0, 3.0):
        for top_k in (None, 1, 2, 40):
            runs = {tuple(generate(model, prompt, 9, 12, temperature, top_k)[0].tolist()) for _ in range(6)}
            where = f"{temperature=}, {top_k=}, six runs gave {len(runs)} {'text' if len(runs) == 1 else 'texts'}"
            question = "which of the two settings leaves only one candidate, and does one of them suffice?"
            expect_equal(len(runs) == 1, always_repeats(temperature, top_k), where, question)
    passed("5.3")


RESUME_SLIPS = {  # what goes wrong -> the question it deserves
    "untrained": "these are the saved weights: does the training run at all, and how many epochs does num_epochs count?",
    "optimizer": "AdamW remembers two averages for each weight: are they restored, and into the optimizer that trains?",
    "random state": "which numbers does dropout draw next? Does anything draw (or seed) after the random state was restored?",
    "position": "in which batch of which epoch did the run stop, and does the training know it?",
    "an epoch more": "num_epochs counts the epochs of the whole run: how many should be finished in the end?",
}


def resume(path: Path, loaders, tokenizer, slip: str = "") -> nn.Module:
    """Finish one more epoch of a saved run, with one slip if it is named."""
    model = GPTModel(TINY_CONFIG)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    state = restore_checkpoint(torch.load(path, weights_only=True), model, optimizer)
    last = state.epoch + {"untrained": 0, "an epoch more": 2}.get(slip, 1)
    if slip == "optimizer":
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    if slip == "random state":
        torch.manual_seed(123)
    if slip == "position":
        state, last = TrainingState(), 1
    with contextlib.redirect_stdout(io.StringIO()):
        train_model_simple(model, *loaders, optimizer, torch.device("cpu"), last, 3, 1, "Nell", tokenizer, state)
    return model


def same_weights(left: nn.Module, right: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left.state_dict().values(), right.state_dict().values(), strict=True))


@exercise("5.4", answer="one_more_epoch")
def check_5_4(one_more_epoch):
    """Weights, bit for bit, against a run that was never interrupted; stopped inside an epoch and at its end."""
    loaders = create_split_loaders(TINY_TEXT, TINY_CONFIG, batch_size=3)
    tokenizer = gpt2_tokenizer()

    def run(num_epochs, stop_step=None):
        torch.manual_seed(123)
        model, state = GPTModel(TINY_CONFIG), TrainingState()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
        stop = lambda state: state.step + 1 == stop_step
        with contextlib.redirect_stdout(io.StringIO()):
            train_model_simple(model, *loaders, optimizer, torch.device("cpu"), num_epochs, 3, 1, "Nell", tokenizer, state, stop)
        return model, optimizer, state

    for epochs, stop_step in ((3, 3), (1, None)):  # stopped inside the first epoch, or at its end
        where = f"stopped after step {stop_step} of the first epoch" if stop_step else "stopped at the end of the first epoch"
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "checkpoint.pth"
            save_checkpoint(path, *run(epochs, stop_step), TINY_CONFIG)
            torch.manual_seed(999)  # a fresh process knows nothing of the old random state
            with contextlib.redirect_stdout(io.StringIO()):
                got = one_more_epoch(path, TINY_CONFIG, *loaders, tokenizer)
            expect_something(got, where)
            if not isinstance(got, nn.Module):
                fail("the trained model", type(got).__name__, where, "what does the function return?")
            expected = run(1 if stop_step else 2)[0]
            if not same_weights(expected, got):
                slips = (slip for slip in RESUME_SLIPS if same_weights(resume(path, loaders, tokenizer, slip), got))
                question = RESUME_SLIPS.get(next(slips, ""), "is everything restored, and are learning rate and decay as told?")
                name, value = next((n, v) for n, v in expected.state_dict().items() if not torch.equal(v, got.state_dict()[n]))
                first = [round(x, 6) for x in value.flatten()[:3].tolist()]
                theirs = [round(x, 6) for x in got.state_dict()[name].flatten()[:3].tolist()]
                fail(f"{first} ...", f"{theirs} ...", f"{name}, {where}", question)
    passed("5.4", "equal to the uninterrupted run, bit for bit")


@exercise("5.5", answer="text_loss")
def check_5_5(text_loss):
    """Against a loop over single positions; texts shorter than, equal to and longer than the context."""
    torch.manual_seed(123)
    model = GPTModel({**TINY_CONFIG, "vocab_size": 30})
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    for num_tokens, context_length in ((2, 12), (9, 12), (13, 12), (14, 12), (31, 12), (25, 4), (5, 1)):
        ids, total = torch.randint(30, (num_tokens,)).tolist(), 0.0
        model.eval()
        for position in range(1, num_tokens):
            start = (position - 1) // context_length * context_length
            with torch.no_grad():
                logits = model(torch.tensor([ids[start:position]]))[0, -1].double()  # (vocab_size)
            total -= torch.log_softmax(logits, dim=-1)[ids[position]].item()
        model.train()
        got = float(text_loss(model, list(ids), context_length))
        question = "is every token but the first predicted exactly once, at a window's border too, counted equally, and without dropout?"
        expect_close(total / (num_tokens - 1), got, f"a text of {num_tokens} tokens, {context_length=}", question, atol=1e-4)
    passed("5.5")


def random_params(seed: int = 123) -> dict:
    """Random weights of a tiny GPT-2, in the form in which download_and_load_gpt2 returns them."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(shape, generator=generator).numpy()
    linear = lambda d_in, d_out: {"w": draw(d_in, d_out), "b": draw(d_out)}
    norm = lambda: {"g": draw(8), "b": draw(8)}
    blocks = [
        {"attn": {"c_attn": linear(8, 24), "c_proj": linear(8, 8)}, "mlp": {"c_fc": linear(8, 32), "c_proj": linear(32, 8)},
         "ln_1": norm(), "ln_2": norm()}
        for _ in range(2)
    ]  # fmt: skip
    return {"wte": draw(30, 8), "wpe": draw(12, 8), "blocks": blocks, **norm()}


def config_of_model(model: GPTModel) -> dict:
    """The configuration with which a GPTModel with biases was built, without dropout."""
    vocab_size, emb_dim = model.tok_emb.weight.shape
    return {
        "vocab_size": vocab_size, "context_length": len(model.pos_emb.weight), "emb_dim": emb_dim, "drop_rate": 0.0, "qkv_bias": True,
        "n_heads": model.trf_blocks[0].att.num_heads, "n_layers": len(model.trf_blocks),
    }  # fmt: skip


def exchange(left: nn.Parameter, right: nn.Parameter) -> None:
    """Let two parameters of one shape change places; with itself, a square matrix is transposed."""
    if left is right:
        left.data = left.data.T.contiguous()
    else:
        left.data, right.data = right.data, left.data


MISPLACED = {  # the mistake -> pairs of parameters that changed places
    "not transposed": [("trf_blocks.1.att.out_proj.weight",) * 2],
    "query and key": [(f"trf_blocks.0.att.W_query.{kind}", f"trf_blocks.0.att.W_key.{kind}") for kind in ("weight", "bias")],
    "scale and shift": [("trf_blocks.1.norm2.scale", "trf_blocks.1.norm2.shift")],
}
MORE_MISPLACED = {
    "nothing": [],
    "blocks": [("trf_blocks.0.ff.layers.2.bias", "trf_blocks.1.ff.layers.2.bias")],
    "final norm": [("final_norm.scale", "final_norm.shift")],
}


def misplaced_models(params: dict, mistakes: dict = MISPLACED) -> dict[str, GPTModel]:
    """A model for each mistake, with the weights of random_params and that mistake."""
    sizes = {"vocab_size": 30, "context_length": 12, "emb_dim": 8, "n_heads": 2, "n_layers": 2, "drop_rate": 0.0, "qkv_bias": True}
    models = {}
    for name, pairs in mistakes.items():
        models[name] = GPTModel(sizes).eval()
        load_weights_into_gpt(models[name], params)
        for left, right in pairs:
            exchange(models[name].get_parameter(left), models[name].get_parameter(right))
    return models


@exercise("5.6", answer="find_misplaced")
def check_5_6(find_misplaced):
    """Against the list of what was exchanged, in six models; model and params must stay as they were."""
    for seed, mistakes in ((123, MISPLACED), (7, MORE_MISPLACED)):
        params = random_params(seed)
        before_params = copy.deepcopy(params)
        for name, model in misplaced_models(params, mistakes).items():
            before = copy.deepcopy(model.state_dict())
            got = find_misplaced(model, params)
            where = f"a model with the mistake {name!r}"
            for key, value in model.state_dict().items():
                expect_equal(before[key], value, f"{key} afterwards, {where}", "did you load anything into this model?")
            expect_equal(False, model.training, f"train mode afterwards, {where}", "who switched the mode?")
            expected = sorted({parameter for pair in mistakes[name] for parameter in pair})
            question = "do you compare every parameter, number by number, with the right one, and sort the names?"
            expect_equal(expected, got, where, question)
        expect_equal(before_params["wte"].tolist(), params["wte"].tolist(), "params afterwards", "did you change the published weights?")
    passed("5.6")


@exercise("5.7", answer="perplexity")
def check_5_7(perplexity):
    """Against PyTorch's cross-entropy: several shapes, logits that overflow, a probability that rounds to zero."""
    forbidden = {"cross_entropy", "nll_loss", "log_softmax", "CrossEntropyLoss", "NLLLoss", "LogSoftmax"}
    forbid(perplexity, forbidden, "can you do its steps yourself?")
    torch.manual_seed(123)
    cases = []
    for b, num_tokens, vocab_size, size in ((1, 1, 5, 1.0), (2, 3, 7, 2.0), (3, 5, 50, 4.0), (2, 4, 10, 200.0)):
        logits = torch.randn(b, num_tokens, vocab_size) * size  # (b, num_tokens, vocab_size)
        targets = logits.argmax(-1) if size > 100 else torch.randint(vocab_size, (b, num_tokens))  # (b, num_tokens)
        cases.append((logits, targets, f"logits {tuple(logits.shape)} of size about {size:g}"))
    unlikely = torch.zeros(1, 4, 6)  # (1, 4, 6)
    unlikely[0, 0, 1] = 150.0  # the target of this position has probability e^-150, which float32 rounds to 0
    cases.append((unlikely, torch.zeros(1, 4, dtype=torch.long), "one target of four with probability e^-150"))
    for logits, targets, where in cases:
        expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).exp().item()
        before = logits.clone()
        got = perplexity(logits, targets)
        expect_something(got, where)
        expect_equal(before, logits, f"the logits you were given, {where}", "did you change the input in place?")
        if not math.isclose(float(got), expected, rel_tol=1e-3):
            question = "is the mean taken over all tokens and before the exponential, and does the softmax survive large logits?"
            fail(f"{expected:.5g}", f"{float(got):.5g}", where, question)
    passed("5.7")


class CountOperations(TorchDispatchMode):
    """Counts the tensor operations inside a `with`: a loop over a vocabulary shows."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


@exercise("5.8", answer="keep_top_p")
def check_5_8(keep_top_p):
    """Against a loop over sorted probabilities, row by row."""
    torch.manual_seed(123)
    forbid(keep_top_p, {"tolist", "numpy"}, "can the tensors do the whole job, without a loop over the vocabulary?")
    rows = [torch.tensor([[4.1, 3.6, 2.2, 2.9, 0.4, 1.1, 3.3, -0.7, -2.5]]), torch.randn(3, 12) * 2, torch.randn(2, 6) - 30]
    for logits in rows:
        for top_p in (0.05, 0.5, 0.9, 1.0):
            expected = torch.full_like(logits, float("-inf"))  # (b, vocab_size)
            for row, values in enumerate(logits):
                total = 0.0
                for token in values.argsort(descending=True).tolist():
                    expected[row, token] = values[token]
                    total += torch.softmax(values.double(), dim=0)[token].item()
                    if total >= top_p:
                        break
            before = logits.clone()
            got = keep_top_p(logits, top_p)
            where = f"logits {tuple(logits.shape)}, {top_p=}"
            expect_something(got, where)
            expect_equal(before, logits, "the logits you were given", "did you change the input in place?")
            question = "is the token that crosses the limit kept, is at least one kept in every row, and is the original order restored?"
            for row in range(len(logits)):
                kept = [values[row].isfinite().nonzero().flatten().tolist() for values in (expected, got)]
                expect_equal(kept[0], kept[1], f"positions kept in row {row}, {where}", question)
            expect_close(expected, got, f"values, {where}", "do kept logits keep their value?")
    for top_p, count in ((0.5, 2), (0.75, 3), (0.25, 1)):  # exact in binary
        got = int(keep_top_p(torch.zeros(1, 4), top_p).isfinite().sum())
        expect_equal(count, got, f"number kept of four equal logits, {top_p=}", "the sum reaches top_p exactly: is one more token kept?")
    with CountOperations() as operations:
        keep_top_p(torch.randn(2, 3000), 0.9)
    if operations.count > 300:
        fail("a few dozen tensor operations", f"{operations.count}", "logits (2, 3000)", "can one operation treat the whole vocabulary?")
    passed("5.8")


@exercise("5.9", answer="diagnose")
def check_5_9(diagnose):
    """Curves made by hand, with their words; ties, a loss that is not finite, and a single bad end among them."""
    nan, inf = math.nan, math.inf
    cases = [
        ([10.0, 5.0, 1.0, 0.2], [10.0, 6.0, 5.7, 6.4], ("overfitting", 2)),
        ([10.0, 7.0, 6.0], [10.0, 7.5, 6.5], ("learning", 2)),
        ([10.0, 7.0, 6.0, 5.9], [10.0, 6.5, 6.5, 6.55], ("learning", 1)),
        ([5.0, 4.0, 3.0], [6.0, 5.0, 5.25], ("overfitting", 1)),
        ([10.0, 9.0, 12.0], [10.0, 9.5, 12.0], ("diverged", 1)),
        ([10.0, 8.0, 10.0], [10.0, 9.0, 9.0], ("diverged", 1)),
        ([10.0, 8.0, nan], [10.0, 9.0, nan], ("diverged", 1)),
        ([10.0, nan, 5.0], [10.0, 9.0, 8.0], ("diverged", 2)),
        ([10.0, 8.0, 5.0], [10.0, inf, 8.0], ("diverged", 2)),
        ([10.0, 8.0, 5.0], [nan, nan, nan], ("diverged", 0)),
        ([10.0, 8.0], [nan, 9.0], ("diverged", 1)),
    ]
    for train_losses, val_losses, expected in cases:
        got = diagnose(list(train_losses), list(val_losses))
        where = f"train_losses={train_losses}, val_losses={val_losses}"
        expect_something(got, where)
        question = "which rule of the task comes first, and which measurement would you keep?"
        expect_equal(expected, tuple(got), where, question)
    passed("5.9")


@exercise("5.9b", answer="recited")
def check_5_9b(recited):
    """Texts that a tiny model writes itself, changed at one place; in train mode with dropout, and in eval mode."""
    torch.manual_seed(123)
    model = GPTModel({**TINY_CONFIG, "vocab_size": 30, "drop_rate": 0.5})
    for training, prompt_length, wrong_at in ((True, 4, None), (False, 4, 7), (True, 2, 2), (False, 1, 11), (True, 3, 4), (True, 12, None)):
        model.eval()
        prompt = torch.randint(30, (1, prompt_length))  # (1, prompt_length)
        ids = generate(model, prompt, 12 - prompt_length, 12)[0].tolist()
        if wrong_at is not None:
            ids[wrong_at] = (ids[wrong_at] + 1) % 30
        model.train(training)
        expected = 12 - prompt_length if wrong_at is None else wrong_at - prompt_length
        got = recited(model, list(ids), prompt_length)
        where = f"12 ids, {prompt_length=}, the first difference {'nowhere' if wrong_at is None else f'at position {wrong_at}'}"
        question = "does the count begin behind the prompt and stop at the first difference, and is dropout off?"
        expect_equal(expected, got, where, question)
        expect_equal(training, model.training, f"train mode afterwards, {where}", "in which mode did the model come?")
    passed("5.9b")


@exercise("5.10", answer="clip_gradients")
def check_5_10(clip_gradients):
    """Norm and gradients against PyTorch's clip_grad_norm_; parameters without a gradient included."""
    forbidden = {"clip_grad_norm_", "clip_grads_with_norm_", "get_total_norm", "clip_grad_norm"}
    forbid(clip_gradients, forbidden, "can you do its arithmetic yourself?")
    torch.manual_seed(123)
    for size, max_norm in ((10.0, 1.0), (0.01, 1.0), (1.0, 0.25), (0.0, 1.0)):
        ours = [nn.Parameter(torch.randn(shape)) for shape in ((3, 4), (4,), (2, 2, 2), (5,))]
        for parameter in ours[:-1]:
            parameter.grad = torch.randn_like(parameter) * size
        theirs = [nn.Parameter(parameter.detach().clone()) for parameter in ours]
        for parameter, original in zip(theirs[:-1], ours):
            parameter.grad = original.grad.clone()
        expected = torch.nn.utils.clip_grad_norm_(theirs, max_norm).item()
        where = f"gradients of size {size}, {max_norm=}"
        got = float(clip_gradients(ours, max_norm))
        expect_close(expected, got, f"returned norm, {where}", "is it one norm over all parameters, measured before clipping?", atol=1e-4)
        for index, (a, b) in enumerate(zip(theirs[:-1], ours)):
            question = "are all gradients scaled by one common factor, and left alone when the norm is small enough?"
            expect_close(a.grad, b.grad, f"gradient {index}, {where}", question, atol=1e-4)
        expect_equal(True, ours[-1].grad is None, "the parameter without a gradient stays without", "what if a layer was not used?")
    passed("5.10")


@exercise("5.10b", answer="train_from_scratch")
def check_5_10b(train_from_scratch):
    """The trained weights against a loop with PyTorch's own clipping; limits that always, sometimes and never act."""
    cfg = {**TINY_CONFIG, "vocab_size": 30}
    for num_epochs, lr, max_norm in ((2, 1e-2, 0.5), (1, 3e-3, 2.0), (3, 1e-2, 100.0)):
        torch.manual_seed(5)
        ids = torch.randint(30, (5, 3, 13))  # (5, 3, 13)
        loader = [(rows[:, :-1], rows[:, 1:]) for rows in ids]
        torch.manual_seed(123)
        model = GPTModel(cfg)
        optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.1)
        for _ in range(num_epochs):
            for inputs, targets in loader:
                optimizer.zero_grad()
                calc_loss_batch(inputs, targets, model, torch.device("cpu")).backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
                optimizer.step()
        got = train_from_scratch(cfg, loader, num_epochs, lr, max_norm)
        where = f"{num_epochs=}, {lr=}, {max_norm=}"
        expect_something(got, where)
        if not isinstance(got, nn.Module):
            fail("the trained model", type(got).__name__, where, "what does the function return?")
        question = "does each step come in the order loss, backward, clip, step, zero_grad, in train mode, for all epochs?"
        for (name, expected), value in zip(model.state_dict().items(), got.state_dict().values(), strict=True):
            expect_close(expected, value, f"{name}, {where}", question, atol=1e-4)
    passed("5.10b")


if __name__ == "__main__":
    sys.exit(run_checks())
