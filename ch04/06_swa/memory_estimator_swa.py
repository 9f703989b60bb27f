"""How much memory the KV cache takes when some layers have a sliding window.

Run it:  python memory_estimator_swa.py --context_length 32768 --emb_dim 4096 --n_heads 16 --n_kv_groups 8 --n_layers 48 --swa_ratio 5:1
"""

import argparse
import sys

from previous_chapters import DTYPE_BYTES, calc_kv_bytes_total, estimator_parser, int_at_least, print_estimate


def is_sliding(layer: int, a: int, b: int) -> bool:
    """Whether layer 0, 1, ... has a window when `a` sliding layers are followed by `b` full ones, again and again."""
    return layer % (a + b) < a


def distribute_layers(n_layers: int, a: int, b: int) -> tuple[int, int]:
    """(sliding layers, full layers) of a model that repeats `a` sliding and `b` full ones, as the model itself has them."""
    n_swa = sum(is_sliding(layer, a, b) for layer in range(n_layers))
    return n_swa, n_layers - n_swa


def parse_ratio(text: str) -> tuple[int, int]:
    """Read sliding to full layers, "5:1" -> (5, 1); ValueError for anything that is not two whole numbers, at least one above 0."""
    parts = text.split(":")
    if len(parts) != 2 or not all(part.isascii() and part.isdigit() for part in parts) or not any(map(int, parts)):
        raise ValueError(f"{text!r} is no ratio of sliding to full layers, such as 5:1, 1:0 or 0:1")
    return int(parts[0]), int(parts[1])


def ratio_type(text: str) -> str:
    """argparse type for a ratio; it stays text, so that the inputs print as they were given."""
    try:
        parse_ratio(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def calc_kv_bytes_per_layer(batch: int, context_length: int, head_dim: int, n_kv_heads: int, bytes_per_elem: int) -> int:
    """Bytes of one layer's keys and values; in a sliding layer context_length is at most the window."""
    return calc_kv_bytes_total(batch, context_length, head_dim * n_kv_heads, n_kv_heads, n_kv_heads, 1, bytes_per_elem)


def estimate_totals(
    context_length: int, sliding_window_size: int, emb_dim: int, n_heads: int, n_layers: int,
    n_kv_groups: int | None = None, batch_size: int = 1, dtype: str = "fp16", swa_ratio: str = "1:0",
) -> dict:  # fmt: skip
    """{"n_swa_layers", "n_full_layers", "total_full": bytes if all layers were full, "total_swa": bytes with the windows}.

    n_kv_groups: key-value heads, by default n_heads. ValueError for head counts that do not divide and for a bad ratio.
    """
    kv_heads = n_heads if n_kv_groups is None else n_kv_groups
    elem, (n_swa, n_full) = DTYPE_BYTES[dtype], distribute_layers(n_layers, *parse_ratio(swa_ratio))
    total_full = calc_kv_bytes_total(batch_size, context_length, emb_dim, n_heads, kv_heads, n_layers, elem)
    head_dim, seen = emb_dim // n_heads, min(context_length, sliding_window_size)
    sliding, full = (calc_kv_bytes_per_layer(batch_size, tokens, head_dim, kv_heads, elem) for tokens in (seen, context_length))
    return {"n_swa_layers": n_swa, "n_full_layers": n_full, "total_full": total_full, "total_swa": n_swa * sliding + n_full * full}


def main(argv: list[str] | None = None) -> int:
    """Command line of this file; returns 0, or exits with code 2 and one line on bad input."""
    parser = estimator_parser("Estimate the memory of a KV cache with sliding windows in some layers.")
    parser.add_argument("--n_kv_groups", type=int_at_least(1), help="sets of keys and values (default: n_heads)")
    parser.add_argument("--sliding_window_size", type=int_at_least(1), default=1024, help="tokens that a sliding layer keeps")
    parser.add_argument("--swa_ratio", type=ratio_type, default="1:0", help="sliding to full layers")
    args = parser.parse_args(argv)
    try:
        found = estimate_totals(**vars(args))
    except ValueError as error:
        parser.error(str(error))
    names = ("all layers full", f"{found['n_swa_layers']} sliding, {found['n_full_layers']} full")
    print_estimate(args, dict(zip(names, (found["total_full"], found["total_swa"]))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
