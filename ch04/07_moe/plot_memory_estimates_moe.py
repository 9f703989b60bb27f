"""Draw the feed-forward parameters of one block against the number of experts: all of them, and those that a token uses.

Run it:  python plot_memory_estimates_moe.py --no_match_dense --output params_vs_experts.pdf
"""

import sys
from pathlib import Path

from memory_estimator_moe import MATRICES, calc_ffn_params, calc_moe_active_and_total
from previous_chapters import OneLineParser, int_at_least, run_plot, use_course_style


def plot_active_params_vs_experts(
    emb_dim: int = 4096, hidden_dim: int = 14336, ffn_type: str = "swiglu", top_k: int = 2, max_experts: int = 512,
    y_log: bool = True, match_dense: bool = True, output: str | Path = "params_vs_experts.pdf",
):  # fmt: skip
    """Save the plot for top_k, 2 top_k, 4 top_k, ... experts up to max_experts; returns the figure.

    match_dense: all experts together are as wide as the dense network; else each of them is. ValueError for a max_experts
    below top_k, for widths that the experts do not divide, and for a file that cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")  # files only: no display is needed
    import matplotlib.pyplot as plt

    if max_experts < top_k:
        raise ValueError(f"top_k {top_k} is more than max_experts {max_experts}")
    if not Path(output).parent.is_dir():
        raise ValueError(f"no such folder: {Path(output).parent}")
    numbers = [top_k]
    while numbers[-1] * 2 <= max_experts:
        numbers.append(numbers[-1] * 2)
    counts = [calc_moe_active_and_total(emb_dim, hidden_dim, ffn_type, number, top_k, match_dense) for number in numbers]
    use_course_style()
    fig, ax = plt.subplots(figsize=(6.5, 3.6))
    ax.axhline(
        calc_ffn_params(emb_dim, hidden_dim, ffn_type), color="black", linestyle="--", label=f"dense {ffn_type}, hidden {hidden_dim:,}"
    )
    ax.plot(numbers, [total for _, total in counts], marker="o", markersize=4, label="MoE: all parameters")
    ax.plot(numbers, [active for active, _ in counts], marker="s", markersize=4, label=f"MoE: used by a token, top {top_k}")
    ax.set_xscale("log", base=2)
    ax.set_xticks(numbers, [f"{number:,}" for number in numbers])
    if y_log:
        ax.set_yscale("log")
    width = "as wide as the dense network all together" if match_dense else "each as wide as the dense network"
    ax.set(xlabel="experts", ylabel="parameters of one block", title=f"Experts {width}: emb_dim {emb_dim:,}")
    ax.legend()
    fig.savefig(output, metadata={"Date": None} if Path(output).suffix == ".svg" else None)
    plt.close(fig)
    return fig


def main(argv: list[str] | None = None) -> int:
    """Command line of this file; returns 0, or exits with code 2 and one line on bad input."""
    parser = OneLineParser("Plot the feed-forward parameters of one block against the number of experts.")
    parser.add_argument("--emb_dim", type=int_at_least(1), default=4096, help="width of the model")
    parser.add_argument("--hidden_dim", type=int_at_least(1), default=14336, help="width of the dense network")
    parser.add_argument("--ffn_type", choices=MATRICES, default="swiglu", help="2 matrices or 3")
    parser.add_argument("--top_k", type=int_at_least(1), default=2, help="experts that each token uses")
    parser.add_argument("--max_experts", type=int_at_least(1), default=512, help="the largest number of experts to draw")
    parser.add_argument("--no_log", dest="y_log", action="store_false", help="parameters on a linear axis")
    words = "give each expert the whole hidden_dim instead of its share"
    parser.add_argument("--no_match_dense", dest="match_dense", action="store_false", help=words)
    parser.add_argument("--output", type=Path, default=Path("params_vs_experts.pdf"), help="file to write (pdf, svg, png)")
    return run_plot(parser, plot_active_params_vs_experts, argv)


if __name__ == "__main__":
    sys.exit(main())
