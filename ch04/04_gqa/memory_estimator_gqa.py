"""How much memory a KV cache takes: the formula, and a command line for it.

Run it:  python memory_estimator_gqa.py --context_length 8192 --emb_dim 4096 --n_heads 32 --n_layers 32 --n_kv_groups 8
"""

import argparse
import sys

from previous_chapters import OneLineParser, int_at_least

DTYPE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1, "int8": 1}


def convert_bytes(n: float) -> str:
    """A number of bytes as people read it, in GB of 10^9 bytes, MB, kB or B. Folder 04 of chapter 4."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if n >= size:
            return f"{n / size:.3f} {unit}"
    return f"{n:.0f} B"


def calc_kv_bytes_total(
    batch: int, context_length: int, emb_dim: int, n_heads: int, n_kv_heads: int, n_layers: int, bytes_per_elem: int
) -> int:
    """Bytes of all keys and values: 2 x batch x tokens x layers x key-value heads x head_dim x bytes of a number.

    n_kv_heads: the sets of keys and values, 1 to n_heads. ValueError for head counts that do not divide. Folder 04 of chapter 4.
    """
    if emb_dim % n_heads != 0:
        raise ValueError(f"emb_dim {emb_dim} is not divisible by n_heads {n_heads}")
    if n_kv_heads < 1 or n_heads % n_kv_heads != 0:
        raise ValueError(f"n_heads {n_heads} is not divisible by {n_kv_heads} key-value heads")
    head_dim = emb_dim // n_heads
    return 2 * batch * context_length * n_layers * n_kv_heads * head_dim * bytes_per_elem


def estimator_parser(description: str) -> OneLineParser:
    """The options that every memory estimator shares. Folder 04 of chapter 4."""
    parser = OneLineParser(description)
    parser.add_argument("--context_length", type=int_at_least(1), default=1024, help="tokens in the cache")
    parser.add_argument("--emb_dim", type=int_at_least(1), required=True, help="width of the model")
    parser.add_argument("--n_heads", type=int_at_least(1), required=True, help="attention heads, a divisor of emb_dim")
    parser.add_argument("--n_layers", type=int_at_least(1), required=True, help="layers")
    parser.add_argument("--batch_size", type=int_at_least(1), default=1, help="texts at a time")
    parser.add_argument("--dtype", choices=DTYPE_BYTES, default="fp16", help="number type of the cache")
    return parser


def print_estimate(args: argparse.Namespace, estimates: dict[str, float]) -> None:
    """The inputs on one line, then each estimate in bytes beside the first one. Folder 04 of chapter 4."""
    print(", ".join(f"{name} {value}" for name, value in vars(args).items() if value is not None))
    first = next(iter(estimates.values()))
    for name, value in estimates.items():
        print(f"{name:<34} {convert_bytes(value):>12}   {value / first:7.2%} of the first line")


def main(argv: list[str] | None = None) -> int:
    """Command line of this file; returns 0, or exits with code 2 and one line on bad input."""
    parser = estimator_parser("Estimate the memory of a KV cache with grouped-query attention.")
    parser.add_argument("--n_kv_groups", type=int_at_least(1), default=2, help="sets of keys and values, a divisor of n_heads")
    args = parser.parse_args(argv)
    rows = {"MHA": args.n_heads, f"GQA with {args.n_kv_groups} key-value heads": args.n_kv_groups, "MQA": 1}
    sizes = (args.batch_size, args.context_length, args.emb_dim, args.n_heads)
    try:
        estimates = {name: calc_kv_bytes_total(*sizes, heads, args.n_layers, DTYPE_BYTES[args.dtype]) for name, heads in rows.items()}
    except ValueError as error:
        parser.error(str(error))
    print_estimate(args, estimates)
    return 0


if __name__ == "__main__":
    sys.exit(main())
