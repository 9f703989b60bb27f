"""Checks for the exercises of chapter 5; call them in the notebook, or: python exercise_checks.py 5.1 my_answer.py

Each check runs your answer on several inputs and compares with something computed in another way: PyTorch's own softmax,
loss and clipping, a plain loop, or a run that was never interrupted. A failed check ends with a question to think about.
"""

import contextlib
import io
import math
import os
import sys
import tempfile
import warnings
from pathlib import Path

import torch
import torch.nn as nn
from checkpoints import TrainingState, save_checkpoint
from gpt_generate import generate
from gpt_train import calc_loss_batch, create_split_loaders, train_model_simple
from previous_chapters import GPTModel, exercise, expect_close, expect_equal, fail, gpt2_tokenizer, passed, run_checks

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
    counts = {int(draw_word(logits, 1, 1.0, 1000)[1]) for _ in range(8)}
    if len(counts) == 1:
        fail("counts that vary from call to call", f"{counts} every time", "8 calls with 1000 draws", "did you draw, or multiply?")
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
    prompt = torch.tensor([[1, 2, 3]])  # (1, 3)
    for temperature in (0.0, 0.5, 1.0, 3.0):
        for top_k in (None, 1, 2, 40):
            runs = {tuple(generate(model, prompt, 12, 12, temperature, top_k)[0].tolist()) for _ in range(6)}
            where = f"{temperature=}, {top_k=}, six runs gave {len(runs)} texts"
            question = "which of the two settings leaves only one candidate, and does one of them suffice?"
            expect_equal(len(runs) == 1, always_repeats(temperature, top_k), where, question)
    passed("5.3")


@exercise("5.4", answer="one_more_epoch")
def check_5_4(one_more_epoch):
    """Weights, bit for bit, against a run that was never interrupted; stopped inside an epoch and at its end."""
    loaders = create_split_loaders(TINY_TEXT, TINY_CONFIG, batch_size=3)
    tokenizer = gpt2_tokenizer()

    def begin():
        torch.manual_seed(123)
        model = GPTModel(TINY_CONFIG)
        return model, torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1), TrainingState()

    def train(model, optimizer, state, num_epochs, stop_step=None):
        stop = lambda state: state.step + 1 == stop_step
        with contextlib.redirect_stdout(io.StringIO()):
            train_model_simple(model, *loaders, optimizer, torch.device("cpu"), num_epochs, 3, 1, "Nell", tokenizer, state, stop)

    for epochs, stop_step in ((3, 3), (1, None)):  # stopped inside the first epoch, or at its end
        model, optimizer, state = begin()
        with tempfile.TemporaryDirectory() as folder:
            train(model, optimizer, state, epochs, stop_step)
            path = Path(folder) / "checkpoint.pth"
            save_checkpoint(path, model, optimizer, state, TINY_CONFIG)
            torch.manual_seed(999)  # a fresh process knows nothing of the old random state
            with contextlib.redirect_stdout(io.StringIO()):
                got = one_more_epoch(path, TINY_CONFIG, *loaders, tokenizer)
        model, optimizer, state = begin()
        train(model, optimizer, state, 1 if stop_step else 2)
        where = f"stopped after step {stop_step} of the first epoch" if stop_step else "stopped at the end of the first epoch"
        question = "are weights, optimizer, random state and position all restored, before training goes on, and for one epoch only?"
        if not isinstance(got, nn.Module):
            fail("the trained model", type(got).__name__, where, "what does the function return?")
        for (name, expected), value in zip(model.state_dict().items(), got.state_dict().values(), strict=True):
            expect_close(expected, value, f"{name}, {where}", question, atol=0.0)
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


@exercise("5.6", answer="load_gpt2")
def check_5_6(load_gpt2):
    """Logits of small random GPT-2 models of three sizes against Hugging Face's."""
    warnings.filterwarnings("ignore", message="IProgress not found")  # transformers would like nicer progress bars
    from transformers import GPT2Config, GPT2LMHeadModel  # here, because it takes seconds
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    for emb_dim, n_heads, n_layers, context_length, vocab_size in ((8, 2, 1, 10, 40), (24, 6, 3, 7, 31), (12, 3, 2, 16, 50)):
        sizes = {"n_embd": emb_dim, "n_head": n_heads, "n_layer": n_layers, "n_positions": context_length, "vocab_size": vocab_size}
        torch.manual_seed(123)
        theirs = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).eval()
        for parameter in theirs.parameters():
            nn.init.normal_(parameter, std=0.4)
        with tempfile.TemporaryDirectory() as folder, without_named_weights():
            theirs.save_pretrained(Path(folder) / "mini")
            model, cfg = load_gpt2("mini", folder)
        where = f"a GPT-2 with {sizes}"
        expected = {
            "vocab_size": vocab_size, "context_length": context_length, "emb_dim": emb_dim, "n_heads": n_heads, "n_layers": n_layers,
            "drop_rate": 0.0, "qkv_bias": True,
        }  # fmt: skip
        expect_equal(expected, {key: cfg.get(key) for key in expected}, f"configuration of {where}", "do all sizes come from settings?")
        ids = torch.randint(vocab_size, (2, context_length))  # (2, context_length)
        with torch.no_grad():
            question = "are the weights loaded, is the model in eval mode, and has it the same heads and biases?"
            expect_close(theirs(ids).logits, model(ids), f"logits of {where}", question, atol=1e-3)
    passed("5.6")


@contextlib.contextmanager
def without_named_weights():
    """Hide LLM_COURSE_WEIGHTS, which goes before models_dir."""
    named = os.environ.pop("LLM_COURSE_WEIGHTS", None)
    try:
        yield
    finally:
        if named is not None:
            os.environ["LLM_COURSE_WEIGHTS"] = named


@exercise("5.7", answer="perplexity")
def check_5_7(perplexity):
    """Against PyTorch's cross-entropy, for several shapes, and for logits so large that a naive exponential overflows."""
    torch.manual_seed(123)
    for b, num_tokens, vocab_size, size in ((1, 1, 5, 1.0), (2, 3, 7, 2.0), (3, 5, 50, 4.0), (2, 4, 10, 200.0)):
        logits = torch.randn(b, num_tokens, vocab_size) * size  # (b, num_tokens, vocab_size)
        targets = logits.argmax(-1) if size > 100 else torch.randint(vocab_size, (b, num_tokens))  # (b, num_tokens)
        expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).exp().item()
        where = f"logits {tuple(logits.shape)} of size about {size:g}"
        question = "is the mean taken over all tokens and before the exponential, and does the softmax survive large logits?"
        expect_close(1.0, float(perplexity(logits, targets)) / expected, f"perplexity / expected, {where}", question, atol=1e-3)
    passed("5.7")


@exercise("5.8", answer="keep_top_p")
def check_5_8(keep_top_p):
    """Against a loop over sorted probabilities, row by row."""
    torch.manual_seed(123)
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
            expect_equal(before, logits, "the logits you were given", "did you change the input in place?")
            where = f"logits {tuple(logits.shape)}, {top_p=}"
            question = "is the token that crosses the limit kept, is at least one kept in every row, and is the original order restored?"
            expect_equal(expected.isfinite(), got.isfinite(), f"which entries are kept, {where}", question)
            expect_close(expected, got, f"values, {where}", "do kept logits keep their value?")
    passed("5.8")


@exercise("5.9", answer="mean_loss")
def check_5_9(mean_loss):
    """Against one batch that holds all rows; nothing may be trained or left switched."""
    torch.manual_seed(123)
    model = GPTModel({**TINY_CONFIG, "vocab_size": 30})
    ids = torch.randint(30, (7, 13))  # (7, 13)
    for sizes in ([7], [3, 3, 1], [1, 6], [4, 2, 1]):
        parts = ids.split(sizes)
        batches = [(part[:, :-1], part[:, 1:]) for part in parts]
        model.eval()
        expected = calc_loss_batch(ids[:, :-1], ids[:, 1:], model, torch.device("cpu")).item()
        model.train()
        got = float(mean_loss(batches, model))
        question = "is dropout off, and does a batch of one row count one seventh of a batch of seven?"
        expect_close(expected, got, f"batches of {sizes} rows", question)
        expect_equal(True, model.training, f"train mode afterwards, batches of {sizes} rows", "who switches the model back?")
    expect_equal(True, math.isnan(mean_loss([], model)), "is nan, for no batches at all", "would 0 not look like a perfect model?")
    passed("5.9")


@exercise("5.10", answer="clip_gradients")
def check_5_10(clip_gradients):
    """Norm and gradients against PyTorch's clip_grad_norm_; parameters without a gradient included."""
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


if __name__ == "__main__":
    sys.exit(run_checks())
