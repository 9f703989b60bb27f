"""How much memory the cache of multi-head latent attention takes, beside a KV cache.

Run it:  python memory_estimator_mla.py --context_length 8192 --emb_dim 4096 --n_heads 32 --n_layers 32 --latent_dim 512
"""

import sys

from previous_chapters import DTYPE_BYTES, calc_kv_bytes_total, estimator_parser, int_at_least, print_estimate


def calc_mla_bytes_total(batch: int, context_length: int, n_layers: int, latent_dim: int, bytes_per_elem: int) -> int:
    """Bytes of all latent vectors: batch x tokens x layers x latent_dim x bytes of a number. ValueError for a width below 1.

    For a model that also caches a key for rotary positions, latent_dim is the sum of both widths.
    """
    if latent_dim < 1:
        raise ValueError(f"need a latent_dim of at least 1, got {latent_dim}")
    return batch * context_length * n_layers * latent_dim * bytes_per_elem


def main(argv: list[str] | None = None) -> int:
    """Command line of this file; returns 0, or exits with code 2 and one line on bad input."""
    parser = estimator_parser("Estimate the memory of the cache of latent attention, beside MHA and GQA.")
    parser.add_argument("--n_kv_groups", type=int_at_least(1), default=2, help="key-value heads of the GQA to compare with")
    parser.add_argument("--latent_dim", type=int_at_least(1), required=True, help="width of the latent vector")
    args = parser.parse_args(argv)
    sizes, elem = (args.batch_size, args.context_length, args.emb_dim, args.n_heads), DTYPE_BYTES[args.dtype]
    try:
        heads = {"MHA": args.n_heads, f"GQA with {args.n_kv_groups} key-value heads": args.n_kv_groups}
        estimates = {name: calc_kv_bytes_total(*sizes, number, args.n_layers, elem) for name, number in heads.items()}
    except ValueError as error:
        parser.error(str(error))
    estimates[f"MLA, latent vector of {args.latent_dim}"] = calc_mla_bytes_total(*sizes[:2], args.n_layers, args.latent_dim, elem)
    print_estimate(args, estimates)
    return 0


if __name__ == "__main__":
    sys.exit(main())
