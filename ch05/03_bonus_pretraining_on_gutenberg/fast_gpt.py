"""The GPT of chapter 4 made ready for long training: fused attention, norms and loss, a tied head, GPT-2's starting weights.

Same parameters, same names and same results as `GPTModel`; the arithmetic runs in fewer, larger steps. `SIZES` holds what
pretraining_simple.py can train.
"""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F
from previous_chapters import GPT_CONFIG_124M, GPTModel, LayerNorm, MultiHeadAttention, check_token_ids

SIZES = {
    "124M": {**GPT_CONFIG_124M, "tied": False},
    # 12,368,064 parameters: 9,649,344 of them embed the vocabulary and are the output head at the same time. No dropout on the
    # attention weights: for it PyTorch has to store their table after all, and an update takes half as long again.
    "mini": {
        "vocab_size": 50257, "context_length": 256, "emb_dim": 192, "n_heads": 6, "n_layers": 6, "drop_rate": 0.1,
        "attn_drop_rate": 0.0, "qkv_bias": True, "tied": True,
    },
    "debug": {
        "vocab_size": 50257, "context_length": 10, "emb_dim": 12, "n_heads": 2, "n_layers": 2, "drop_rate": 0.0,
        "qkv_bias": False, "tied": False,
    },
}  # fmt: skip


class FusedAttention(MultiHeadAttention):
    """Causal attention in PyTorch's one call, which never stores the table of attention weights. Shapes as its parent's."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, num_tokens, _ = x.shape
        by_head = (b, num_tokens, self.num_heads, self.head_dim)
        queries, keys, values = (w(x).view(by_head).transpose(1, 2) for w in (self.W_query, self.W_key, self.W_value))
        rate = self.dropout.p if self.training else 0.0
        context_vec = F.scaled_dot_product_attention(queries, keys, values, dropout_p=rate, is_causal=True)
        return self.out_proj(context_vec.transpose(1, 2).reshape(b, num_tokens, self.d_out))  # (b, num_tokens, d_out)


class FusedLayerNorm(LayerNorm):
    """Layer norm in one call."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, self.scale.shape, self.scale, self.shift, self.eps)


class HeadLoss(torch.autograd.Function):
    """Output head and cross-entropy in one, over a few rows at a time; use it through `head_loss`.

    The logits of a batch are its largest tensor by far, 0.8 GB for 4,096 tokens, and the usual way writes and reads it several
    times. Here each piece of at most PIECE logits stays in the processor's cache until its loss and its gradients are taken.
    The gradients are computed on the way forward, because afterwards nothing is left to compute them from.
    """

    PIECE = 2**22  # 17 MB in float32

    @staticmethod
    def forward(ctx, x, weight, targets, with_gradients, copies=1):
        """x (n, emb_dim), weight (columns, emb_dim), targets (n) -> the mean loss; the last column counts `copies` times."""
        n, total = len(targets), x.new_zeros(())
        x_grad, weight_grad = (torch.empty_like(x), torch.zeros_like(weight)) if with_gradients else (None, None)
        step = max(1, HeadLoss.PIECE // len(weight))
        for start in range(0, n, step):
            rows = slice(start, start + step)
            right = targets[rows, None]  # (rows, 1)
            logits = x[rows] @ weight.T  # (rows, columns)
            logits[:, -1] += math.log(copies)
            logits -= logits.amax(dim=1, keepdim=True)
            of_right = logits.gather(1, right)  # (rows, 1)
            sums = logits.exp_().sum(dim=1, keepdim=True)  # (rows, 1)
            total += (sums.log() - of_right).sum()
            if with_gradients:  # of the mean loss for the logits: (softmax - 1 at the right token) / n
                logits /= sums * n
                logits.scatter_add_(1, right, torch.full_like(of_right, -1 / n))
                x_grad[rows] = logits @ weight
                weight_grad.addmm_(logits.T, x[rows])
        ctx.save_for_backward(x_grad, weight_grad)
        return total / n

    @staticmethod
    def backward(ctx, grad):
        x_grad, weight_grad = ctx.saved_tensors
        return grad * x_grad, grad * weight_grad, None, None, None


def head_loss(x: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, seen: torch.Tensor | None = None) -> torch.Tensor:
    """Return the mean cross-entropy of the logits x @ weight.T, without keeping them where that is faster (float32 on a CPU).

    x: (b, num_tokens, emb_dim), weight (vocab_size, emb_dim), targets (b, num_tokens). seen (vocab_size), bool: the rows of
    weight for all other tokens are equal, so one column stands for them; used in training only, where each target is seen.
    """
    x, targets = x.flatten(0, 1), targets.flatten()
    if x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return F.cross_entropy(F.linear(x, weight).float(), targets)
    if seen is None or not torch.is_grad_enabled():
        return HeadLoss.apply(x, weight, targets, torch.is_grad_enabled())
    column_of = seen.cumsum(0) - 1  # (vocab_size): where a seen token stands among the seen ones
    # the mean of equal rows is that row, and hands each of them its share of the gradient
    columns = torch.cat([weight[seen], weight[~seen].mean(0, keepdim=True)])  # (seen tokens + 1, emb_dim)
    return HeadLoss.apply(x, columns, column_of[targets], True, int((~seen).sum()))


class FastGPT(GPTModel):
    """Token ids (b, num_tokens) -> logits (b, num_tokens, vocab_size); cfg as for GPTModel, and `tied`, `attn_drop_rate`.

    Called with targets (b, num_tokens) too, it returns the mean cross-entropy instead.

    Tied: the output head is the token embedding itself. Raises ValueError like GPTModel; on a GPU it does not look at the
    ids, because asking for their largest value makes the GPU wait.
    """

    def __init__(self, cfg: dict):
        super().__init__(cfg)
        sizes = {"d_in": cfg["emb_dim"], "d_out": cfg["emb_dim"], "context_length": cfg["context_length"], "num_heads": cfg["n_heads"]}
        for block in self.trf_blocks:
            block.att = FusedAttention(**sizes, dropout=cfg.get("attn_drop_rate", cfg["drop_rate"]), qkv_bias=cfg["qkv_bias"])
            block.norm1, block.norm2 = FusedLayerNorm(cfg["emb_dim"]), FusedLayerNorm(cfg["emb_dim"])
            block.ff.layers[1] = nn.GELU(approximate="tanh")
        self.final_norm = FusedLayerNorm(cfg["emb_dim"])
        if cfg["tied"]:
            self.out_head.weight = self.tok_emb.weight
        self.start_like_gpt2(len(self.trf_blocks))
        self.seen = None

    def start_like_gpt2(self, n_layers: int) -> None:
        """Draw weights as small as GPT-2's: standard deviation 0.02, biases 0, layers that end a shortcut smaller still.

        PyTorch's own start draws embeddings fifty times larger; with a tied head the first loss would be in the hundreds.
        """
        for name, parameter in self.named_parameters():
            if name.endswith(("bias", "shift")):
                nn.init.zeros_(parameter)
            elif not name.endswith("scale"):
                ends_shortcut = name.endswith(("out_proj.weight", "layers.2.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * n_layers) if ends_shortcut else 0.02)

    @torch.no_grad()
    def share_unseen(self, seen: torch.Tensor) -> None:
        """Let all tokens that the training text lacks start with one embedding; seen (vocab_size), bool, is false for them.

        Training then moves them all alike, because the softmax pushes equal rows by equal amounts; so the loss needs a single
        column for them. Raises ValueError for an untied head, or if no token is left out.
        """
        if self.out_head.weight is not self.tok_emb.weight:
            raise ValueError("tokens can share an embedding only where it is the output head too")
        if seen.all():
            raise ValueError("the training text holds every token of the vocabulary: none is left to share")
        self.tok_emb.weight[~seen] = self.tok_emb.weight[~seen][0].clone()
        self.seen = seen

    def forward(self, in_idx: torch.Tensor, targets: torch.Tensor | None = None) -> torch.Tensor:
        if in_idx.device.type == "cpu":
            check_token_ids(in_idx, self.tok_emb.num_embeddings, self.pos_emb.num_embeddings)
        x = self.tok_emb(in_idx) + self.pos_emb.weight[: in_idx.shape[1]]  # (b, num_tokens, emb_dim)
        x = self.trf_blocks(self.drop_emb(x))  # (b, num_tokens, emb_dim)
        x = self.final_norm(x)  # (b, num_tokens, emb_dim)
        if targets is not None:
            return head_loss(x, self.out_head.weight, targets, self.seen)
        return self.out_head(x)  # (b, num_tokens, vocab_size)


def count_parameters(model: nn.Module) -> int:
    """Return the number of trained numbers; a tied tensor counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def make_optimizer(model: nn.Module, lr: float, weight_decay: float, fused: bool) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices and embeddings only: biases and norms have no size to keep small."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    others = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=fused)


def learning_rate_at(step: int, total_steps: int, peak: float, warmup_steps: int, floor: float) -> float:
    """Linear warm-up to `peak`, then half a cosine down to `floor` at the last step. step counts from 0."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, total_steps - 1 - warmup_steps)
    return floor + 0.5 * (peak - floor) * (1 + math.cos(math.pi * min(1.0, done)))
