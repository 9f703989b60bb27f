"""Draw the memory of keys and values against that of DeltaNet's state and of a 3:1 mix, over the length of the text.

Run it:  python plot_memory_estimates_gated_deltanet.py --output memory_vs_context_length.pdf
"""

import sys
from pathlib import Path

from gated_deltanet import is_deltanet
from previous_chapters import DTYPE_BYTES, OneLineParser, calc_kv_bytes_total, int_at_least, plot_bytes


def calc_kv_bytes_total_mha(batch: int, context_length: int, emb_dim: int, n_layers: int, bytes_per_elem: int, n_heads: int) -> int:
    """Bytes of the KV cache of n_layers layers with full attention. ValueError for heads that do not divide emb_dim."""
    return calc_kv_bytes_total(batch, context_length, emb_dim, n_heads, n_heads, n_layers, bytes_per_elem)


def calc_kv_bytes_total_deltanet_no_conv(batch: int, emb_dim: int, n_layers: int, bytes_per_elem: int, n_heads: int) -> int:
    """Bytes of the states of n_layers DeltaNet layers: batch x layers x heads x head_dim x head_dim x bytes of a number.

    No KV cache in spite of the name, and the tokens do not count; the published layers also keep the last inputs of a short
    convolution. ValueError for heads that do not divide emb_dim.
    """
    if emb_dim % n_heads != 0:
        raise ValueError(f"emb_dim {emb_dim} is not divisible by n_heads {n_heads}")
    head_dim = emb_dim // n_heads
    return batch * n_layers * n_heads * head_dim * head_dim * bytes_per_elem


def calc_bytes_total_mix(
    batch: int, context_length: int, emb_dim: int, n_layers: int, bytes_per_elem: int, n_heads: int, stride: int = 3
) -> int:
    """Bytes of a model's states and caches together, its layers split as `GPTModel` splits them: caches still grow."""
    n_states = sum(is_deltanet(layer, stride) for layer in range(n_layers))
    states = calc_kv_bytes_total_deltanet_no_conv(batch, emb_dim, n_states, bytes_per_elem, n_heads)
    return states + calc_kv_bytes_total_mha(batch, context_length, emb_dim, n_layers - n_states, bytes_per_elem, n_heads)


def convert_to_gb(n: float) -> float:
    """Bytes in GB of 10^9 bytes."""
    return n / 10**9


def lines_of_bytes(batch: int, emb_dim: int, n_layers: int, bytes_per_elem: int, n_heads: int, contexts: list[int]) -> dict:
    """Name of a model -> its bytes at each of these numbers of tokens."""
    sizes, n_states = (emb_dim, n_layers, bytes_per_elem, n_heads), sum(is_deltanet(layer, 3) for layer in range(n_layers))
    return {
        "full attention": [calc_kv_bytes_total_mha(batch, n, *sizes) for n in contexts],
        f"3:1 mix, {n_states} + {n_layers - n_states} layers": [calc_bytes_total_mix(batch, n, *sizes) for n in contexts],
        "DeltaNet only": [calc_kv_bytes_total_deltanet_no_conv(batch, *sizes)] * len(contexts),
    }


def main(argv: list[str] | None = None) -> int:
    """Command line of this file; returns 0, or exits with code 2 and one line on bad input."""
    parser = OneLineParser("Plot the memory of caches and states against the text's length.")
    parser.add_argument("--batch", type=int_at_least(1), default=1, help="texts at a time")
    parser.add_argument("--emb_dim", type=int_at_least(1), default=2048, help="width of the model")
    parser.add_argument("--n_heads", type=int_at_least(1), default=16, help="heads, a divisor of emb_dim")
    parser.add_argument("--n_layers", type=int_at_least(1), default=48, help="layers")
    parser.add_argument("--dtype", choices=DTYPE_BYTES, default="bf16", help="number type of caches and states")
    parser.add_argument("--min_ctx", type=int_at_least(1), default=128, help="fewest tokens")
    parser.add_argument("--max_ctx", type=int_at_least(1), default=131072, help="most tokens")
    parser.add_argument("--output", type=Path, default=Path("memory_vs_context_length.pdf"), help="file to write (pdf, svg, png)")
    args = parser.parse_args(argv)
    if args.min_ctx > args.max_ctx:
        parser.error(f"--min_ctx {args.min_ctx} is more than --max_ctx {args.max_ctx}")
    contexts = [args.min_ctx]
    while contexts[-1] < args.max_ctx:
        contexts.append(min(2 * contexts[-1], args.max_ctx))
    try:
        lines = lines_of_bytes(args.batch, args.emb_dim, args.n_layers, DTYPE_BYTES[args.dtype], args.n_heads, contexts)
        head_dim = args.emb_dim // args.n_heads
        title = f"Memory: {args.n_layers} layers, {args.n_heads} heads of {head_dim}, {args.dtype}, batch {args.batch}"
        fig = plot_bytes(lines, contexts, title, args.output)
        fig.axes[0].set_xlabel("tokens read")  # a state is no cache of tokens
        fig.savefig(args.output)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(", ".join(f"{name} {value}" for name, value in vars(args).items() if name != "output"))
    for name, values in lines.items():
        fewest, most = convert_to_gb(values[0]), convert_to_gb(values[-1])
        print(f"{name:<26} {fewest:7.3f} GB at {contexts[0]} tokens, {most:7.3f} GB at {contexts[-1]}")
    print(f"wrote {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
