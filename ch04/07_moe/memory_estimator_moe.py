"""How many parameters the feed-forward part of one block has, and how many of them a token uses, with a mixture of experts.

Run it:  python memory_estimator_moe.py --emb_dim 4096 --hidden_dim 14336 --num_experts 8 --top_k 2
"""

import sys

from previous_chapters import DTYPE_BYTES, OneLineParser, convert_bytes, int_at_least

MATRICES = {"gelu": 2, "swiglu": 3}


def get_num_param_matrices(ffn_type: str) -> int:
    """Matrices of one feed-forward network: 2 with "gelu" (chapter 4), 3 with "swiglu"; ValueError for another name."""
    if ffn_type not in MATRICES:
        raise ValueError(f"ffn_type {ffn_type!r} is not one of {', '.join(MATRICES)}")
    return MATRICES[ffn_type]


def calc_ffn_params(emb_dim: int, hidden_dim: int, ffn_type: str) -> int:
    """Parameters of one feed-forward network, or of one expert, without biases."""
    return get_num_param_matrices(ffn_type) * emb_dim * hidden_dim


def calc_router_params(emb_dim: int, num_experts: int) -> int:
    """Parameters of the router: one vector of emb_dim for each expert."""
    return emb_dim * num_experts


def estimate_params_and_hidden(emb_dim: int, hidden_dim: int, ffn_type: str, num_experts: int, match_dense: bool = False) -> dict:
    """{"dense", "router", "expert", "total": parameters of one block, "hidden": width of one expert}.

    dense: one network of hidden_dim. With match_dense the experts share its width, hidden_dim / num_experts each; ValueError
    if that is no whole number. With 0 experts, total is dense.
    """
    dense = calc_ffn_params(emb_dim, hidden_dim, ffn_type)
    if num_experts < 0:
        raise ValueError(f"need 0 experts or more, got {num_experts}")
    if num_experts == 0:
        return {"dense": dense, "router": 0, "expert": 0, "total": dense, "hidden": hidden_dim}
    if match_dense and hidden_dim % num_experts != 0:
        raise ValueError(f"hidden_dim {hidden_dim} is not divisible by {num_experts} experts")
    hidden = hidden_dim // num_experts if match_dense else hidden_dim
    expert, router = calc_ffn_params(emb_dim, hidden, ffn_type), calc_router_params(emb_dim, num_experts)
    return {"dense": dense, "router": router, "expert": expert, "total": num_experts * expert + router, "hidden": hidden}


def calc_moe_active_and_total(
    emb_dim: int, hidden_dim: int, ffn_type: str, num_experts: int, top_k: int, match_dense: bool = True, num_shared_experts: int = 0
) -> tuple[int, int]:
    """(parameters of one block that a token uses, all of them). ValueError for a top_k that is not 1 to num_experts.

    With 0 experts both are those of the dense network.
    """
    found = estimate_params_and_hidden(emb_dim, hidden_dim, ffn_type, num_experts, match_dense)
    if num_experts == 0:
        return found["dense"], found["dense"]
    if not 1 <= top_k <= num_experts:
        raise ValueError(f"top_k {top_k} is not between 1 and the number of experts, {num_experts}")
    shared = num_shared_experts * found["expert"]
    return top_k * found["expert"] + found["router"] + shared, found["total"] + shared


def main(argv: list[str] | None = None) -> int:
    """Command line of this file; returns 0, or exits with code 2 and one line on bad input."""
    parser = OneLineParser("Count the feed-forward parameters of one block with a mixture of experts.")
    parser.add_argument("--emb_dim", type=int_at_least(1), required=True, help="width of the model")
    parser.add_argument("--hidden_dim", type=int_at_least(1), required=True, help="width of the dense network, and of each expert")
    parser.add_argument("--ffn_type", choices=MATRICES, default="swiglu", help="2 matrices or 3")
    parser.add_argument("--num_experts", type=int_at_least(0), default=8, help="experts; 0: dense")
    parser.add_argument("--top_k", type=int_at_least(1), default=2, help="experts that each token uses")
    parser.add_argument("--num_shared_experts", type=int_at_least(0), default=0, help="further experts that every token uses")
    parser.add_argument("--match_dense", action="store_true", help="divide hidden_dim among the experts: as many parameters as dense")
    parser.add_argument("--dtype", choices=DTYPE_BYTES, default="fp16", help="number type of the weights")
    args = parser.parse_args(argv)
    sizes = (args.emb_dim, args.hidden_dim, args.ffn_type, args.num_experts)
    try:
        dense = calc_ffn_params(*sizes[:3])
        active, total = calc_moe_active_and_total(*sizes, args.top_k, args.match_dense, args.num_shared_experts)
        hidden = estimate_params_and_hidden(*sizes, args.match_dense)["hidden"]
    except ValueError as error:
        parser.error(str(error))
    print(", ".join(f"{name} {value}" for name, value in vars(args).items()))
    rows = {f"dense {args.ffn_type}, hidden {args.hidden_dim}": dense}
    if args.num_experts:
        rows |= {f"MoE, experts of {hidden}: all": total, "MoE: a token uses": active}
    for name, count in rows.items():
        print(f"{name:<34} {count:>15,} parameters {convert_bytes(count * DTYPE_BYTES[args.dtype]):>12} {count / dense:8.2%} of dense")
    return 0


if __name__ == "__main__":
    sys.exit(main())
