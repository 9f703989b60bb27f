"""The delta rule in a state of three rows: store three prices, change one, ask for all. Then: how many pairs a state can hold.

Run it:  python store_and_overwrite.py --output read-errors.png
"""

import sys
from pathlib import Path

import torch
from gated_deltanet import delta_rule_steps, l2norm
from previous_chapters import OneLineParser, int_at_least, use_course_style

ITEMS, PRICES = ["apple", "bread", "cheese"], [3.0, 5.0, 8.0]
CHANGED, NEW_PRICE = "bread", 6.0
RULES = {"linear attention": (1.0, False), "linear, half fades": (0.5, False), "delta rule": (1.0, True)}  # alpha, corrects
KEYS = {  # one row an item, each of length 1
    "keys at right angles": torch.eye(3),
    "keys with a cosine of 0.5": torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]) / 2**0.5,
}


def write_pairs(keys: torch.Tensor, values: torch.Tensor, alpha: float, corrects: bool) -> torch.Tensor:
    """The state after all pairs: keys and values (b, 1, num_pairs, head_dim) -> (b, 1, head_dim, head_dim).

    Before each write the state shrinks to its alpha-fold. corrects: the delta rule with beta 1; otherwise the value is added.
    """
    b, _, num_pairs, head_dim = keys.shape
    state = torch.zeros(b, 1, head_dim, head_dim)
    if corrects:
        log_alpha = torch.full((b, 1, num_pairs), alpha).log()  # (b, 1, num_pairs)
        return delta_rule_steps(keys, keys, values, log_alpha, torch.ones(b, 1, num_pairs), state)[1]
    for pair in range(num_pairs):
        state = alpha * state + keys[:, :, pair, :, None] * values[:, :, pair, None, :]  # (b, 1, head_dim, head_dim)
    return state


def read_prices(keys: torch.Tensor, alpha: float, corrects: bool) -> list[float]:
    """Store the prices under keys (3, 3), change one, and read all: a price for each item.

    A value has as many numbers as a key. The price is the first, the others are 0.
    """
    changed = ITEMS.index(CHANGED)
    written = torch.cat([keys, keys[changed : changed + 1]])  # (4, 3)
    values = torch.zeros(4, 3)
    values[:, 0] = torch.tensor([*PRICES, NEW_PRICE])
    state = write_pairs(written[None, None], values[None, None], alpha, corrects)  # (1, 1, 3, 3)
    return (keys @ state[0, 0])[:, 0].tolist()


def read_errors(counts: list[int], head_dim: int, seed: int, trials: int = 100) -> dict[str, list[float]]:
    """Name of a rule -> for each number of random pairs, how wrong the reads are: mean squared error / mean square of the values.

    0 is perfect; 1 is as bad as answering 0 each time.
    """
    errors = {}
    for count in counts:
        draw = torch.Generator().manual_seed(seed)
        keys = l2norm(torch.randn(trials, 1, count, head_dim, generator=draw))  # (trials, 1, count, head_dim)
        values = torch.randn(trials, 1, count, head_dim, generator=draw)  # (trials, 1, count, head_dim)
        for name in ("linear attention", "delta rule"):
            wrong = keys @ write_pairs(keys, values, *RULES[name]) - values  # (trials, 1, count, head_dim)
            reads = {name: wrong, f"{name}, last pair": wrong[:, :, -1]}
            for label, part in reads.items():
                errors.setdefault(label, []).append((part.square().mean() / values.square().mean()).item())
    return errors


def draw_errors(counts: list[int], errors: dict[str, list[float]], head_dim: int, output: Path):
    """Save the read error against the number of stored pairs; returns the figure. ValueError for a missing folder."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    if not output.parent.is_dir():
        raise ValueError(f"no such folder: {output.parent}")
    use_course_style()
    fig, ax = plt.subplots(figsize=(6.5, 3.2))
    for (name, values), style in zip(errors.items(), ("o-", "o:", "s-", "s:")):
        ax.plot(counts, values, style, color=f"C{'delta' in name:d}", markersize=4, label=name)
    ax.axvline(head_dim, color="gray", linewidth=1, linestyle="--")
    ax.set(xlabel="pairs stored", ylabel="read error (1: knows nothing)", title=f"Random pairs in one state, head_dim {head_dim}")
    ax.legend()
    fig.savefig(output)
    plt.close(fig)
    return fig


def main(argv: list[str] | None = None) -> int:
    """Command line of this file; returns 0, or exits with code 2 and one line on bad input."""
    parser = OneLineParser("Store key-value pairs in a state and overwrite one, by linear attention and by the delta rule.")
    parser.add_argument("--head_dim", type=int_at_least(1), default=32, help="rows and columns of the state in the plot")
    parser.add_argument("--seed", type=int, default=123, help="random seed of the plot's pairs")
    parser.add_argument("--output", type=Path, default=Path("read-errors.pdf"), help="file of the plot (pdf, svg, png)")
    args = parser.parse_args(argv)
    wanted = [NEW_PRICE if item == CHANGED else price for item, price in zip(ITEMS, PRICES)]
    for title, keys in KEYS.items():
        print(f"{title:<27}" + "".join(f"{item:>8}" for item in ITEMS))
        for name, prices in {"wanted": wanted, **{name: read_prices(keys, *rule) for name, rule in RULES.items()}}.items():
            print(f"{name:<27}" + "".join(f"{price:>8.2f}" for price in prices))
    counts = sorted({max(1, args.head_dim * part // 8) for part in (1, 2, 4, 6, 8, 10, 12, 16)})
    errors = read_errors(counts, args.head_dim, args.seed)
    try:
        draw_errors(counts, errors, args.head_dim, args.output)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(f"{'random pairs in one state':<27}" + "".join(f"{count:>6}" for count in counts))
    for name, values in errors.items():
        print(f"{name:<27}" + "".join(f"{value:>6.1f}" for value in values))
    print(f"wrote {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
