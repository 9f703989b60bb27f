"""Checks for the exercises of this folder. In a notebook: check_1(your_function). From a shell:

python exercise_checks.py 1 my_answer.py
"""

import sys

import torch
from gpt_with_kv_cache_object import GPTModel
from kv_cache import KVCache
from previous_chapters import attempt, exercise, expect_close, expect_equal, fail, passed, run_checks  # noqa: F401 (attempt: for notebooks)

TINY = {"vocab_size": 40, "context_length": 32, "emb_dim": 16, "n_heads": 4, "n_layers": 3, "drop_rate": 0.0, "qkv_bias": False}


def random_gpt(seed: int = 123) -> GPTModel:
    """A tiny GPT that takes a KVCache, in eval mode; its weights are larger than usual, so that every mistake shows."""
    torch.manual_seed(seed)
    model = GPTModel(TINY).eval()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model


class CountReads:
    """`with CountReads(model) as reads:` counts in reads.tokens how many tokens the model is given, over all rows."""

    def __init__(self, model):
        self.model, self.tokens = model, 0

    def __enter__(self):
        self.hook = self.model.register_forward_hook(lambda model, inputs, output: self.add(inputs[0].numel()))
        return self

    def add(self, number):
        self.tokens += number

    def __exit__(self, *error):
        self.hook.remove()


def real_bytes(cfg: dict, rows: int, tokens: int, dtype: torch.dtype) -> int:
    """Bytes of the tensors of a real cache; on the device meta nothing is allocated."""
    shape = (rows, cfg["n_heads"], tokens, cfg["emb_dim"] // cfg["n_heads"])
    pair = [torch.empty(shape, dtype=dtype, device="meta") for _ in ("keys", "values")]
    return cfg["n_layers"] * sum(part.nbytes for part in pair)


@exercise("1", answer="tokens_that_fit")
def check_1(tokens_that_fit):
    """Oracle: the tensors themselves, one token more at a time."""
    small = {**TINY, "emb_dim": 768, "n_heads": 12, "n_layers": 12, "context_length": 1024}
    cases = [(TINY, 1, 4000, 4), (TINY, 3, 9216, 4), (TINY, 3, 9215, 4), (TINY, 1, 383, 4), (TINY, 2, 10**9, 4), (TINY, 5, 7000, 2)]
    cases += [(small, 16, 2 * 10**8, 4), (small, 16, 2 * 10**8, 2), (small, 1, 10**8, 4)]
    for cfg, rows, free, size in cases:
        dtype, expected = {2: torch.float16, 4: torch.float32}[size], 0
        while expected < cfg["context_length"] and real_bytes(cfg, rows, expected + 1, dtype) <= free:
            expected += 1
        got = tokens_that_fit(cfg, rows, free, size)
        where = f"emb_dim {cfg['emb_dim']}, {cfg['n_layers']} layers, {rows} rows, {free:,} bytes free, {size} bytes a number"
        question = "keys and values, every layer, every row: is each counted once? And what else ends a text, beside memory?"
        expect_equal(expected, got, where, question)
    passed("1", "GPT-2 small: 1 GB holds about 13,500 tokens in float32, shared by all rows")


@exercise("2", answer="blocked_keys")
def check_2(blocked_keys):
    """Oracle: two loops over queries and keys."""
    for num_cached, num_new, window in [(0, 4, None), (3, 2, None), (5, 1, None), (0, 6, 3), (4, 3, 3), (6, 1, 2), (2, 5, 1), (3, 3, 100)]:
        expected = torch.zeros(num_new, num_cached + num_new, dtype=torch.bool)
        for i in range(num_new):
            for j in range(num_cached + num_new):
                distance = num_cached + i - j
                expected[i, j] = distance < 0 or (window is not None and distance >= window)
        got = blocked_keys(num_cached, num_new, window)
        where = f"blocked_keys({num_cached}, {num_new}, {window}), row = new token, column = key, True = blocked"
        if not isinstance(got, torch.Tensor) or got.dtype != torch.bool:
            fail("a bool tensor", f"{getattr(got, 'dtype', type(got).__name__)}", where, "does your function return a comparison?")
        question = "at which position of the text does row 0 stand, and how far back may it look?"
        expect_equal(expected.int(), got.int(), where, question)
    passed("2")


@exercise("3", answer="continue_text")
def check_3(continue_text):
    """Oracle: a model that reads the new text from its beginning, and a count of the tokens read."""
    model = random_gpt()
    old = torch.randint(40, (1, 12))
    edited, other = old.clone(), (old + 1) % 40
    edited[0, 5] = (edited[0, 5] + 1) % 40
    cases = {
        "the text got longer": (old[:, :7], old), "a token in the middle changed": (old, edited), "everything changed": (old, other),
        "the text was cut": (old, old[:, :4]), "nothing changed": (old, old), "nothing was read before": (old[:, :0], old),
        "changed and longer": (edited[:, :8], old), "one token": (old, old[:, :1]),
    }  # fmt: skip
    for where, (read, text) in cases.items():
        cache = KVCache(TINY["n_layers"])
        with torch.no_grad():
            if read.shape[1]:
                model(read, cache=cache)
            expected = model(text)[:, -1]
            with CountReads(model) as reads:
                got = continue_text(model, cache, read, text)
        expect_close(expected, got, where, "which tokens does the cache hold when the model reads the rest?", atol=1e-4)
        same = next((i for i in range(min(read.shape[1], text.shape[1])) if read[0, i] != text[0, i]), min(read.shape[1], text.shape[1]))
        needed = text.shape[1] - min(same, text.shape[1] - 1)
        question = "which tokens are still right in the cache? Logits need at least one token read"
        expect_equal(needed, reads.tokens, f"{where}: tokens read", question)
        expect_equal(text.shape[1], len(cache), f"{where}: tokens in the cache afterwards", "does the cache hold the new text?")
    passed("3")


def slow_beam_search(model, ids: torch.Tensor, num_beams: int, new_tokens: int) -> torch.Tensor:
    """The definition: all continuations of all beams, each read from its beginning; keep the best."""
    beams = [(0.0, ids[0].tolist())]
    for _ in range(new_tokens):
        grown = []
        for score, text in beams:
            log_probs = torch.log_softmax(model(torch.tensor([text]))[0, -1], dim=-1)
            grown += [(score + value, [*text, token]) for token, value in enumerate(log_probs.tolist())]
        beams = sorted(grown, reverse=True)[:num_beams]
    return torch.tensor([text for _, text in beams])


@exercise("4", answer="beam_search")
def check_4(beam_search):
    """Oracle: the same search without a cache, and a count of the tokens read."""
    for seed, length, num_beams, new_tokens in [(1, 4, 1, 5), (2, 3, 3, 1), (3, 6, 2, 6), (4, 5, 4, 8), (5, 1, 5, 6), (6, 2, 8, 5)]:
        model, ids = random_gpt(seed), torch.randint(40, (1, length))
        with torch.no_grad():
            expected = slow_beam_search(model, ids, num_beams, new_tokens)
            with CountReads(model) as reads:
                got = beam_search(model, ids, num_beams, new_tokens)
        where = f"{num_beams} beams, a prompt of {length} tokens, {new_tokens} new ones"
        question = "whose cache does a row continue after the best rows were chosen, and whose score?"
        expect_equal(expected, got, where, question)
        needed = length + num_beams * (new_tokens - 1)
        expect_equal(needed, reads.tokens, f"{where}: tokens read", "what has to be read after the prompt, and after the last token?")
    passed("4")


if __name__ == "__main__":
    sys.exit(run_checks())
