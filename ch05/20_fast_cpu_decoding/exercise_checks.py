"""Checks for the exercises of this folder. In a notebook: check_1(your_function). From a shell:

python exercise_checks.py 1 my_answer.py
"""

import sys

import numpy as np
import torch
from numba.core.dispatcher import Dispatcher
from previous_chapters import attempt, exercise, expect_close, expect_equal, fail, passed, run_checks  # noqa: F401 (attempt: for notebooks)


@exercise("1", answer="int8_product")
def check_1(int8_product):
    """Oracle: NumPy's product in float64."""
    if not isinstance(int8_product, Dispatcher):
        fail("a function compiled by numba", type(int8_product).__name__, "int8_product", "is @njit(fastmath=True) above it?")
    if not int8_product.targetoptions.get("fastmath"):
        fail("fastmath=True", "a sum in a fixed order", "int8_product", "what must a compiler be allowed to do, to add in lanes?")
    numbers = np.random.default_rng(5)
    for rows, d_in in ((1, 1), (3, 8), (5, 33), (40, 100)):
        q = numbers.integers(-127, 128, (rows, d_in)).astype(np.int8)
        scale, x = (numbers.uniform(0.5, 2, size).astype(np.float32) for size in (rows, d_in))
        x -= 1
        before, y = (q.copy(), scale.copy(), x.copy()), np.full(rows, 7, np.float32)
        int8_product(q, scale, x, y)
        expected = scale.astype(np.float64) * (q.astype(np.float64) @ x.astype(np.float64))
        where = f"{rows} rows of {d_in} numbers"
        expect_close(
            torch.from_numpy(expected).float(),
            torch.from_numpy(y),
            where,
            "is y set or added to, and does each row get its own scale, once?",
            atol=1e-2,
        )
        for name, old, now in zip(("q", "scale", "x"), before, (q, scale, x)):
            if not np.array_equal(old, now):
                fail(f"{name} as it was", f"{name} changed", where, "do you write into an argument that is only read?")
    passed("1", "the same loop serves float32 with a scale of 1")


@exercise("2", answer="best_tokens_per_second")
def check_2(best_tokens_per_second):
    """Oracle: the bytes of real arrays."""
    shapes = {"small": [(10, 32)] * 3 + [(50, 32)], "one": [(7, 64)], "wide": [(64, 320), (320, 64)] * 4}
    for name, matrices in shapes.items():
        for bits, block in ((32, None), (8, 32), (4, 32), (4, 16), (8, None)):
            for cached, per_token in ((0, 100), (1000, 144)):
                size = 0
                for rows, columns in matrices:
                    size += np.zeros(rows * columns * bits // 8, np.uint8).nbytes
                    if block is not None:
                        size += np.zeros((rows, columns // block), np.float16).nbytes
                expected = 1e9 / (size + cached * per_token)
                got = best_tokens_per_second(matrices, bits, block, 1e9, cached, per_token)
                where = f"model {name!r}, {bits} bits, block {block}, {cached} cached tokens of {per_token} bytes"
                question = "weights, a scale of 2 bytes for each block, and the cache: is each of them read once for a token?"
                expect_close(expected, got, where, question, atol=1e-6 * expected)
    passed("2", "two numbers decide: bytes for a token, and bytes a second")


@exercise("3", answer="useful_threads")
def check_3(useful_threads):
    """Oracle: all numbers of threads, one after the other."""
    cases = [
        (1e9, 1e6, 10e9, 20e9, 1e12, 8),
        (1e9, 1e9, 10e9, 40e9, 1e10, 8), (1e9, 1e9, 10e9, 12e9, 1e9, 8), (1e8, 4e9, 40e9, 45e9, 1e10, 16), (5e8, 1e8, 30e9, 30e9, 1e11, 4),
        (1e8, 1e9, 40e9, 40e9, 1e10, 2), (1e9, 1e9, 5e9, 50e9, 1e9, 64), (1e8, 1e10, 40e9, 80e9, 1e9, 1), (2e8, 3e9, 20e9, 60e9, 8e9, 6),
    ]  # fmt: skip
    for size, operations, one_core, all_cores, rate, cores in cases:
        seconds = [max(size / min(n * one_core, all_cores), operations / (n * rate)) for n in range(1, cores + 1)]
        expected = next((n for n in range(1, cores) if seconds[n] > seconds[n - 1] / 1.05), cores)
        got = useful_threads(size, operations, one_core, all_cores, rate, cores)
        where = f"useful_threads({size:.0e}, {operations:.0e}, {one_core:.0e}, {all_cores:.0e}, {rate:.0e}, {cores})"
        expect_equal(expected, got, where, "the slower of reading and computing takes the time: which of the two still shrinks?")
    passed("3")


if __name__ == "__main__":
    sys.exit(run_checks(sys.argv[1:]))
