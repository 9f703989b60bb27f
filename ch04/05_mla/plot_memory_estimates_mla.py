"""Draw the memory of latent attention's cache against the length of the text, beside multi-head attention.

Run it:  python plot_memory_estimates_mla.py --output kv_bytes_vs_context_length.pdf
"""

import sys
from pathlib import Path

from memory_estimator_mla import calc_mla_bytes_total
from previous_chapters import CONTEXT_LENGTHS, DTYPE_BYTES, calc_kv_bytes_total, int_at_least, plot_bytes, plot_parser, run_plot


def calc_kv_bytes_total_mha(batch: int, context_length: int, emb_dim: int, n_heads: int, n_layers: int, bytes_per_elem: int) -> int:
    """Bytes of the KV cache of multi-head attention."""
    return calc_kv_bytes_total(batch, context_length, emb_dim, n_heads, n_heads, n_layers, bytes_per_elem)


def calc_kv_bytes_total_mla(batch: int, context_length: int, n_layers: int, latent_dim: int, bytes_per_elem: int) -> int:
    """Bytes of the latent vectors, as the estimator has them."""
    return calc_mla_bytes_total(batch, context_length, n_layers, latent_dim, bytes_per_elem)


def plot_abs_kv_vs_context_multiple(
    emb_dim: int = 4096, n_heads: int = 32, n_layers: int = 32, batch_size: int = 1, dtype: str = "bf16",
    output: str | Path = "kv_bytes_vs_context_length.pdf", latent_dims: tuple = (2048, 1024, 512, 256),
):  # fmt: skip
    """Save one line of bytes for MHA and for each latent_dim; returns the figure."""
    elem = DTYPE_BYTES[dtype]
    lines = {"MHA": [calc_kv_bytes_total_mha(batch_size, n, emb_dim, n_heads, n_layers, elem) for n in CONTEXT_LENGTHS]}
    for width in latent_dims:
        lines[f"MLA: latent_dim {width}"] = [calc_kv_bytes_total_mla(batch_size, n, n_layers, width, elem) for n in CONTEXT_LENGTHS]
    title = f"Cache: {n_layers} layers, {n_heads} heads of {emb_dim // n_heads}, {dtype}, batch {batch_size}"
    return plot_bytes(lines, CONTEXT_LENGTHS, title, Path(output))


def main(argv: list[str] | None = None) -> int:
    """Command line of this file; returns 0, or exits with code 2 and one line on bad input."""
    parser = plot_parser("Plot the memory of latent attention's cache against the text's length.")
    widths = (2048, 1024, 512, 256)
    parser.add_argument("--latent_dims", type=int_at_least(1), nargs="+", default=widths, help="widths of the latent vector, one line each")
    return run_plot(parser, plot_abs_kv_vs_context_multiple, argv)


if __name__ == "__main__":
    sys.exit(main())
