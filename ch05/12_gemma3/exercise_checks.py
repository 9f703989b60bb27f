"""Checks for the exercises of this folder. In a notebook: check_1(your_function). From a shell:

python exercise_checks.py 1 my_answer.py
"""

import sys

import torch
from gemma3 import FULL, GEMMA3_CONFIG_270M, SLIDING
from previous_chapters import attempt, exercise, expect_equal, fail, passed, run_checks  # noqa: F401 (attempt: for notebooks)

SMALL = {**GEMMA3_CONFIG_270M, "context_length": 60, "n_layers": 4, "n_kv_groups": 2, "head_dim": 8, "sliding_window": 7,
         "layer_types": [SLIDING, SLIDING, FULL, SLIDING]}  # fmt: skip


def real_bytes(cfg: dict, num_tokens: int, dtype: torch.dtype) -> int:
    """Bytes of the tensors of a real cache with windows; on the device meta nothing is allocated."""
    total = 0
    for kind in cfg["layer_types"]:
        kept = num_tokens if kind == FULL else min(num_tokens, cfg["sliding_window"] - 1)
        shape = (1, cfg["n_kv_groups"], kept, cfg["head_dim"])
        total += sum(torch.empty(shape, dtype=dtype, device="meta").nbytes for _ in ("keys", "values"))
    return total


@exercise("1", answer="tokens_that_fit")
def check_1(tokens_that_fit):
    """Oracle: the tensors themselves, one token more at a time."""
    all_full, all_sliding = {**SMALL, "layer_types": [FULL] * 4}, {**SMALL, "layer_types": [SLIDING] * 4}
    one_group, wide = {**SMALL, "n_kv_groups": 1}, {**SMALL, "head_dim": 16, "emb_dim": 64, "n_heads": 8}
    long = {**SMALL, "context_length": 300, "sliding_window": 20, "n_layers": 5, "layer_types": [SLIDING] * 3 + [FULL] * 2}
    cases = [(SMALL, 0), (SMALL, 511), (SMALL, 512), (SMALL, 3071), (SMALL, 3072), (SMALL, 3199), (SMALL, 3200), (SMALL, 9000)]
    cases += [(all_full, 5000), (all_sliding, 3071), (all_sliding, 3072), (one_group, 2000), (wide, 5000), (long, 15_000), (SMALL, 10**6)]
    for cfg, free in cases:
        for size, dtype in ((4, torch.float32), (2, torch.bfloat16)):
            expected = 0
            while expected < cfg["context_length"] and real_bytes(cfg, expected + 1, dtype) <= free:
                expected += 1
            got = tokens_that_fit(cfg, free, size)
            kinds = f"{cfg['layer_types'].count(SLIDING)} sliding and {cfg['layer_types'].count(FULL)} full layers"
            where = f"{kinds}, window {cfg['sliding_window']}, {cfg['n_kv_groups']} groups of {cfg['head_dim']}, {free:,} bytes, {size} a number"
            question = "what does the next token cost before the windows are full, what afterwards, and what else ends a text?"
            expect_equal(expected, got, where, question)
    passed("1", "with 100 MB in bfloat16, Gemma 3 270M remembers 30,000 tokens; without windows it would be 5,400")


@exercise("2", answer="ring_positions")
def check_2(ring_positions):
    """Oracle: a list into which the tokens are written one after the other."""
    for size in (1, 2, 3, 5, 8, 511):
        for num_read in [*range(0, 3 * size if size < 9 else 3), size - 1, size, size + 1, 4 * size + 2]:
            slots = [-1] * size
            for position in range(num_read):
                slots[position % size] = position
            got = ring_positions(num_read, size)
            where = f"ring_positions({num_read}, {size}), one number a slot, -1 = still empty"
            if not isinstance(got, torch.Tensor) or got.dtype != torch.int64:
                got = getattr(got, "dtype", type(got).__name__)
                fail("an int64 tensor", f"{got}", where, "does your function return whole numbers in a tensor?")
            question = "which token was written last, into which slot, and how many steps before it was this slot written?"
            expect_equal(torch.tensor(slots), got, where, question)
    passed("2")


if __name__ == "__main__":
    sys.exit(run_checks())
