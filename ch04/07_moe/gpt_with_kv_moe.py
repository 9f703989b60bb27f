"""The GPT with a mixture of experts: each block has several feed-forward networks, and a router picks a few for each token.

`# new` marks what the dense model of gpt_with_kv_ffn.py does not have.

Run it:  python gpt_with_kv_moe.py --hidden_dim 1536 --num_experts 8 --num_experts_per_tok 2
"""

import sys

import torch
import torch.nn as nn
import torch.nn.functional as F
from gpt_with_kv_ffn import FeedForward
from gpt_with_kv_mha import GPTModel as BaseModel
from previous_chapters import cached_model_parser, int_at_least, run_cached_model


class MoEFeedForward(nn.Module):
    """num_experts SwiGLU networks, of which each token uses num_experts_per_tok: (b, num_tokens, emb_dim) -> the same shape.

    `cfg` needs emb_dim, hidden_dim (of one expert), num_experts, num_experts_per_tok, and may have num_shared_experts: how many
    more experts every token uses, unweighted. ValueError for a choice that the experts do not allow.
    routing: (scores, chosen) of the last call, (tokens, num_experts) and (tokens, num_experts_per_tok).
    """

    def __init__(self, cfg: dict):
        super().__init__()
        self.num_experts, self.num_experts_per_tok = cfg["num_experts"], cfg["num_experts_per_tok"]
        if not 1 <= self.num_experts_per_tok <= self.num_experts:
            raise ValueError(f"num_experts_per_tok {self.num_experts_per_tok} is not between 1 and num_experts {self.num_experts}")
        emb_dim, hidden_dim = cfg["emb_dim"], cfg["hidden_dim"]
        self.gate = nn.Linear(emb_dim, self.num_experts, bias=False)  # new: the router, one score for each expert
        self.fc1 = nn.ModuleList(nn.Linear(emb_dim, hidden_dim, bias=False) for _ in range(self.num_experts))  # new: one for each expert
        self.fc2 = nn.ModuleList(nn.Linear(emb_dim, hidden_dim, bias=False) for _ in range(self.num_experts))
        self.fc3 = nn.ModuleList(nn.Linear(hidden_dim, emb_dim, bias=False) for _ in range(self.num_experts))
        shared = cfg.get("num_shared_experts", 0)  # side by side, n networks of hidden_dim are one network n times as wide
        self.shared = FeedForward({**cfg, "hidden_dim": shared * hidden_dim}) if shared else None
        self.routing = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, num_tokens, emb_dim = x.shape
        tokens = x.reshape(b * num_tokens, emb_dim)  # (b * num_tokens, emb_dim), one list: the experts see no texts, only tokens
        scores = self.gate(tokens)  # (b * num_tokens, num_experts)
        top_scores, chosen = scores.topk(self.num_experts_per_tok, dim=-1)  # (b * num_tokens, num_experts_per_tok), both
        weights = torch.softmax(top_scores, dim=-1)  # (b * num_tokens, num_experts_per_tok), over the chosen alone
        self.routing = (scores if self.training else scores.detach(), chosen)

        out = torch.zeros_like(x) if self.shared is None else self.shared(x)  # (b, num_tokens, emb_dim)
        out = out.reshape(b * num_tokens, emb_dim)  # (b * num_tokens, emb_dim)
        for expert in chosen.unique().tolist():
            rows, place = torch.where(chosen == expert)  # the tokens that chose this expert, and as which of their choices
            picked = tokens[rows]  # (n, emb_dim)
            gated = F.silu(self.fc1[expert](picked)) * self.fc2[expert](picked)  # (n, hidden_dim)
            weighted = self.fc3[expert](gated) * weights[rows, place, None]  # (n, emb_dim)
            out = out.index_add(0, rows, weighted.to(out.dtype))  # (b * num_tokens, emb_dim)
        return out.view(b, num_tokens, emb_dim)  # (b, num_tokens, emb_dim)


def moe_layers(model: nn.Module) -> list[MoEFeedForward]:
    """The mixtures of experts of a model, first layer first; empty for a dense model."""
    return [module for module in model.modules() if isinstance(module, MoEFeedForward)]


def expert_shares(layer: MoEFeedForward) -> torch.Tensor:
    """Of all choices in the layer's last call, the share that fell on each expert: (num_experts), sum 1."""
    counts = torch.bincount(layer.routing[1].flatten(), minlength=layer.num_experts)  # (num_experts)
    return counts / counts.sum()  # (num_experts)


def load_balancing_loss(model: nn.Module) -> torch.Tensor | float:
    """num_experts x sum over experts of (share of choices x mean probability), mean over layers; 1 if all get the same, 0 if dense.

    Counts have no gradient, so the probabilities carry it: experts that are chosen more often than others get less probable.
    From "Switch Transformers" (Fedus, Zoph and Shazeer 2021). Speaks of the last call of each layer.
    """
    losses = []
    for layer in moe_layers(model):
        probabilities = torch.softmax(layer.routing[0], dim=-1).mean(dim=0)  # (num_experts)
        losses.append(layer.num_experts * (expert_shares(layer) * probabilities).sum())
    return sum(losses) / len(losses) if losses else 0.0


class GPTModel(BaseModel):
    """The GPT of gpt_with_kv_mha.py with a mixture of experts in every block; with num_experts 0, the dense SwiGLU."""

    def make_feed_forward(self, cfg: dict) -> nn.Module:
        return MoEFeedForward(cfg) if cfg["num_experts"] else FeedForward(cfg)


def main(argv: list[str] | None = None) -> int:
    """Command line of this file; returns 0, or exits with code 2 and one line on bad input."""
    parser = cached_model_parser("Time an untrained GPT with a mixture of experts in each block.")
    parser.add_argument("--hidden_dim", type=int_at_least(1), default=3072, help="width of one expert")
    parser.add_argument("--num_experts", type=int_at_least(0), default=8, help="experts in each block; 0: one dense SwiGLU")
    parser.add_argument("--num_experts_per_tok", type=int_at_least(1), default=2, help="experts that each token uses")
    parser.add_argument("--num_shared_experts", type=int_at_least(0), default=0, help="further experts that every token uses")
    options = ("hidden_dim", "num_experts", "num_experts_per_tok", "num_shared_experts")
    return run_cached_model(parser, GPTModel, argv, cfg_options=options)


if __name__ == "__main__":
    sys.exit(main())
