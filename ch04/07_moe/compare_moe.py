"""What do more experts buy at equal compute? Train dense models and mixtures of experts on the story, three seeds each.

Run it:  python compare_moe.py --draw_only        reads the committed story-comparison.json
"""

import json
import statistics
import sys
from pathlib import Path

import torch
import torch.nn as nn
from gpt_with_kv_ffn import GPTModel as DenseModel
from gpt_with_kv_moe import GPTModel, expert_shares, load_balancing_loss, moe_layers
from previous_chapters import (
    EVALUATIONS,
    OneLineParser,
    compare_on_story,
    comparison_rows,
    draw_comparison,
    held_out_loss,
    int_at_least,
    read_log,
    story_characters,
    use_course_style,
)

EXPERTS = {"hidden_dim": 64, "num_experts": 8, "num_experts_per_tok": 2}
BUILDERS = {
    "dense, hidden 128": lambda cfg: DenseModel({**cfg, "hidden_dim": 128}),
    "MoE, 2 of 8 experts of 64": lambda cfg: GPTModel({**cfg, **EXPERTS}),
    "MoE, balanced": lambda cfg: GPTModel({**cfg, **EXPERTS, "balance": 0.01}),
    "dense, hidden 512": lambda cfg: DenseModel({**cfg, "hidden_dim": 512}),
}


def balance(model: nn.Module) -> torch.Tensor | float:
    """What is added to the loss: the load-balancing loss times the model's cfg["balance"], by default 0."""
    weight = model.cfg.get("balance", 0.0)
    return weight * load_balancing_loss(model) if weight else 0.0


def active_parameters(model: nn.Module) -> int:
    """Parameters that one token uses: all but the experts that it does not choose."""
    total = sum(weight.numel() for weight in model.parameters())
    for layer in moe_layers(model):
        expert = sum(part[0].weight.numel() for part in (layer.fc1, layer.fc2, layer.fc3))
        total -= (layer.num_experts - layer.num_experts_per_tok) * expert
    return total


def shares_by_layer(model: nn.Module) -> list[list[float]]:
    """For each layer, the share of the held-out text's choices that fell on each expert, the most used first."""
    held_out_loss(model, story_characters()[1], model.cfg["context_length"])
    shares = [sorted(expert_shares(layer).tolist(), reverse=True) for layer in moe_layers(model)]
    return [[round(share, 4) for share in layer] for layer in shares]


def train_all(seeds: list[int], steps: int) -> dict:
    """The log of compare_on_story, and for each variant "active" parameters and "shares": expert use, one entry a seed."""
    models: dict[str, list[nn.Module]] = {name: [] for name in BUILDERS}

    def keeping(name: str):
        return lambda cfg: models[name].append(BUILDERS[name](cfg)) or models[name][-1]

    log = compare_on_story({name: keeping(name) for name in BUILDERS}, seeds, steps, balance)
    for name, trained in models.items():
        log["runs"][name] |= {"active": active_parameters(trained[0]), "shares": [shares_by_layer(model) for model in trained]}
    return log


def use_rows(log: dict) -> list[str]:
    """Lines of a Markdown table: active parameters, and the largest and smallest share of an expert, mean of layers and seeds."""
    rows = ["| variant | parameters a token uses | busiest expert | idlest expert |", "|---|---|---|---|"]
    for name, run in log["runs"].items():
        layers = [layer for seed in run["shares"] for layer in seed]
        ends = [f"{statistics.mean(layer[end] for layer in layers):.1%}" if layers else "" for end in (0, -1)]
        rows.append(f"| {name} | {run['active']:,} | {ends[0]} | {ends[1]} |")
    return rows


def draw_router_use(log: dict, output: Path):
    """Save one panel a layer: the share of each expert, the most used first, mean of the seeds, for each mixture; returns the figure."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    use_course_style()
    mixtures = {name: list(zip(*run["shares"])) for name, run in log["runs"].items() if run["shares"][0]}  # by layer, then by seed
    experts, width = EXPERTS["num_experts"], 0.8 / len(mixtures)
    layers = len(next(iter(mixtures.values())))
    fig, axes = plt.subplots(1, layers, figsize=(8.5, 2.8), sharey=True, squeeze=False, layout="constrained")
    for layer, ax in enumerate(axes[0]):
        for number, (name, shares) in enumerate(mixtures.items()):
            means = [statistics.mean(column) for column in zip(*shares[layer])]
            ax.bar([rank + number * width for rank in range(experts)], means, width, align="edge", label=name)
        ax.axhline(1 / experts, color="black", linestyle="--", linewidth=1)
        ax.set(title=f"layer {layer + 1}", xticks=[])
    axes[0][0].set(ylabel="share of all choices")
    fig.supxlabel("experts, most used first; dashed: equal shares", fontsize=9)
    fig.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper right", ncols=2)
    fig.savefig(output, dpi=100)
    plt.close(fig)
    return fig


def main(argv: list[str] | None = None) -> int:
    """Command line of this file; returns 0, or exits with code 2 and one line on bad input."""
    parser = OneLineParser("Train dense models and mixtures of experts on the story, side by side.")
    parser.add_argument("--steps", type=int_at_least(EVALUATIONS), default=500, help="updates of each run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="one run of each variant a seed")
    parser.add_argument("--log", type=Path, default=Path("story-comparison.json"), help="file of the result")
    parser.add_argument("--figure", type=Path, default=Path("story-comparison.png"), help="file of the plot of losses")
    parser.add_argument("--router_figure", type=Path, default=Path("router-use.png"), help="file of the plot of expert use")
    parser.add_argument("--draw_only", action="store_true", help="read the log instead of training")
    args = parser.parse_args(argv)
    for path in (args.log, args.figure, args.router_figure):
        if not path.parent.is_dir():
            parser.error(f"no such folder: {path.parent}")
    if args.draw_only:
        log = read_log(parser, args.log)
        if not all("shares" in run for run in log["runs"].values()):
            parser.error(f"{args.log} says nothing about the use of experts: it is not from this script")
    else:
        log = train_all(args.seeds, args.steps)
        args.log.write_text(json.dumps(log, indent=1) + "\n", encoding="utf-8")
    draw_comparison(log, "Story: dense models and mixtures of experts", args.figure)
    draw_router_use(log, args.router_figure)
    print("\n".join([*comparison_rows(log), "", *use_rows(log)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
