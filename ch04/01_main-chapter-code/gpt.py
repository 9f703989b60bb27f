"""Chapter 4 in one file: a GPT model and greedy text generation.

It wraps chapter 3's `MultiHeadAttention` into transformer blocks (layer norm, feed-forward network, shortcuts) and stacks
them between token embeddings and an output head. The model is untrained here, so the text it writes is noise; chapter 5
trains it.

Run it:  python gpt.py --prompt "The harbor was" --max_new_tokens 10
"""

import math
import sys
import warnings

import torch
import torch.nn as nn
from previous_chapters import (  # noqa: F401 (the loader is re-exported for later chapters)
    GPTDatasetV1,
    MultiHeadAttention,
    OneLineParser,
    create_dataloader_v1,
    gpt2_tokenizer,
    int_at_least,
    pick_device,
)

GPT_CONFIG_124M = {
    "vocab_size": 50257,  # different tokens: rows of the embedding table, logits at each position
    "context_length": 1024,  # tokens the model can look at
    "emb_dim": 768,  # numbers that represent one token between the blocks
    "n_heads": 12,  # attention heads in a block; they share the width, 64 numbers each
    "n_layers": 12,  # transformer blocks
    "drop_rate": 0.1,  # share of numbers that dropout sets to zero in training
    "qkv_bias": False,  # biases in the query, key and value projections
}

MODEL_SIZES = {
    "gpt2-small": {"emb_dim": 768, "n_layers": 12, "n_heads": 12},
    "gpt2-medium": {"emb_dim": 1024, "n_layers": 24, "n_heads": 16},
    "gpt2-large": {"emb_dim": 1280, "n_layers": 36, "n_heads": 20},
    "gpt2-xl": {"emb_dim": 1600, "n_layers": 48, "n_heads": 25},
}


class DummyGPTModel(nn.Module):
    """The frame of a GPT with placeholders inside: token ids (b, num_tokens) -> logits (b, num_tokens, vocab_size). Section 4.1."""

    def __init__(self, cfg: dict):
        super().__init__()
        self.tok_emb = nn.Embedding(cfg["vocab_size"], cfg["emb_dim"])
        self.pos_emb = nn.Embedding(cfg["context_length"], cfg["emb_dim"])
        self.drop_emb = nn.Dropout(cfg["drop_rate"])
        self.trf_blocks = nn.Sequential(*[DummyTransformerBlock(cfg) for _ in range(cfg["n_layers"])])
        self.final_norm = DummyLayerNorm(cfg["emb_dim"])
        self.out_head = nn.Linear(cfg["emb_dim"], cfg["vocab_size"], bias=False)

    def forward(self, in_idx: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(in_idx.shape[1], device=in_idx.device)  # (num_tokens)
        tokens = self.tok_emb(in_idx)  # (b, num_tokens, emb_dim)
        places = self.pos_emb(positions)  # (num_tokens, emb_dim)
        x = tokens + places  # (b, num_tokens, emb_dim)
        x = self.drop_emb(x)  # (b, num_tokens, emb_dim)
        x = self.trf_blocks(x)  # (b, num_tokens, emb_dim)
        x = self.final_norm(x)  # (b, num_tokens, emb_dim)
        return self.out_head(x)  # (b, num_tokens, vocab_size)


class DummyTransformerBlock(nn.Identity):
    """Placeholder: takes a configuration and returns its input. Section 4.1."""


class DummyLayerNorm(nn.Identity):
    """Placeholder: takes a width and returns its input. Section 4.1."""


class LayerNorm(nn.Module):
    """Bring the last dimension to mean 0 and variance 1, then scale and shift: shape in = shape out. Section 4.2."""

    def __init__(self, emb_dim: int):
        super().__init__()
        self.eps = 1e-5  # keeps constant inputs from dividing by zero
        self.scale = nn.Parameter(torch.ones(emb_dim))
        self.shift = nn.Parameter(torch.zeros(emb_dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean(dim=-1, keepdim=True)  # (b, num_tokens, 1)
        var = x.var(dim=-1, keepdim=True, unbiased=False)  # (b, num_tokens, 1)
        centered = x - mean  # (b, num_tokens, emb_dim)
        std = torch.sqrt(var + self.eps)  # (b, num_tokens, 1)
        return self.scale * centered / std + self.shift  # (b, num_tokens, emb_dim)


class GELU(nn.Module):
    """GPT-2's activation, the tanh form of x times the normal distribution function: shape in = shape out. Section 4.3."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        half = 0.5 * x
        curve = torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))  # from -1 to 1
        return half * (1 + curve)


class FeedForward(nn.Module):
    """Widen each token's vector fourfold, bend it, and narrow it again: (b, num_tokens, emb_dim) -> the same. Section 4.3."""

    def __init__(self, cfg: dict):
        super().__init__()
        emb_dim = cfg["emb_dim"]
        self.layers = nn.Sequential(
            nn.Linear(emb_dim, 4 * emb_dim),  # expand
            GELU(),
            nn.Linear(4 * emb_dim, emb_dim),  # contract
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)  # (b, num_tokens, emb_dim)


class ExampleDeepNeuralNetwork(nn.Module):
    """Linear layers, each with GELU; with use_shortcut, a layer of equal widths adds its input to its output. Section 4.4."""

    def __init__(self, layer_sizes: list[int], use_shortcut: bool):
        super().__init__()
        self.use_shortcut = use_shortcut
        self.layers = nn.ModuleList()
        for d_in, d_out in zip(layer_sizes[:-1], layer_sizes[1:]):
            self.layers.append(nn.Sequential(nn.Linear(d_in, d_out), GELU()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            out = layer(x)
            if self.use_shortcut and x.shape == out.shape:
                out = x + out
            x = out
        return x


def mean_abs_gradients(model: nn.Module, x: torch.Tensor) -> dict:
    """Return {weight name: mean absolute gradient} for the squared distance between model(x) and 0. Section 4.4."""
    output = model(x)
    loss = nn.functional.mse_loss(output, torch.zeros_like(output))
    model.zero_grad()
    loss.backward()
    gradients = {}
    for name, parameter in model.named_parameters():
        if name.endswith("weight"):
            gradients[name] = parameter.grad.abs().mean().item()
    return gradients


def print_gradients(model: nn.Module, x: torch.Tensor) -> None:
    """Print what `mean_abs_gradients` returns, one line a weight. Section 4.4."""
    for name, value in mean_abs_gradients(model, x).items():
        print(f"{name}: mean absolute gradient {value:.1e}")


class TransformerBlock(nn.Module):
    """Attention, then the feed-forward network, each behind a layer norm and beside a shortcut; shape kept. Section 4.5."""

    def __init__(self, cfg: dict):
        super().__init__()
        self.att = MultiHeadAttention(
            d_in=cfg["emb_dim"],
            d_out=cfg["emb_dim"],
            context_length=cfg["context_length"],
            dropout=cfg["drop_rate"],
            num_heads=cfg["n_heads"],
            qkv_bias=cfg["qkv_bias"],
        )
        self.ff = FeedForward(cfg)
        self.norm1 = LayerNorm(cfg["emb_dim"])
        self.norm2 = LayerNorm(cfg["emb_dim"])
        self.drop_shortcut = nn.Dropout(cfg["drop_rate"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branch = self.norm1(x)  # (b, num_tokens, emb_dim)   1. normalize
        branch = self.att(branch)  # (b, num_tokens, emb_dim)   2. work
        branch = self.drop_shortcut(branch)  # (b, num_tokens, emb_dim)   3. drop out
        x = x + branch  # (b, num_tokens, emb_dim)   4. add

        branch = self.norm2(x)  # (b, num_tokens, emb_dim)   1. normalize
        branch = self.ff(branch)  # (b, num_tokens, emb_dim)   2. work
        branch = self.drop_shortcut(branch)  # (b, num_tokens, emb_dim)   3. drop out
        x = x + branch  # (b, num_tokens, emb_dim)   4. add
        return x


class GPTModel(nn.Module):
    """A GPT: token ids (b, num_tokens) -> logits (b, num_tokens, vocab_size).

    `cfg` needs the keys of GPT_CONFIG_124M; others are ignored. Raises ValueError for missing keys, for more tokens than
    context_length, for ids that are not whole numbers or lie outside the vocabulary. Chapter 4, sections 4.6 and 4.11.
    """

    def __init__(self, cfg: dict):
        super().__init__()
        missing = [key for key in GPT_CONFIG_124M if key not in cfg]
        if missing:
            raise ValueError(f"the configuration lacks: {', '.join(missing)}")
        self.tok_emb = nn.Embedding(cfg["vocab_size"], cfg["emb_dim"])
        self.pos_emb = nn.Embedding(cfg["context_length"], cfg["emb_dim"])
        self.drop_emb = nn.Dropout(cfg["drop_rate"])
        self.trf_blocks = nn.Sequential(*[TransformerBlock(cfg) for _ in range(cfg["n_layers"])])
        self.final_norm = LayerNorm(cfg["emb_dim"])
        self.out_head = nn.Linear(cfg["emb_dim"], cfg["vocab_size"], bias=False)

    def forward(self, in_idx: torch.Tensor) -> torch.Tensor:
        check_token_ids(in_idx, self.tok_emb.num_embeddings, self.pos_emb.num_embeddings)
        positions = torch.arange(in_idx.shape[1], device=in_idx.device)  # (num_tokens)
        tokens = self.tok_emb(in_idx)  # (b, num_tokens, emb_dim)
        places = self.pos_emb(positions)  # (num_tokens, emb_dim)
        x = tokens + places  # (b, num_tokens, emb_dim)
        x = self.drop_emb(x)  # (b, num_tokens, emb_dim)
        x = self.trf_blocks(x)  # (b, num_tokens, emb_dim)
        x = self.final_norm(x)  # (b, num_tokens, emb_dim)
        return self.out_head(x)  # (b, num_tokens, vocab_size)


def memory_in_mib(cfg: dict) -> float:
    """Return the MiB (2**20 bytes) that the float32 parameters of GPTModel(cfg) take, without allocating them. Section 4.10."""
    with torch.device("meta"):  # tensors there have a shape but no data
        model = GPTModel(cfg)
    return sum(parameter.numel() for parameter in model.parameters()) * 4 / 2**20


def check_token_ids(token_ids: torch.Tensor, vocab_size: int, context_length: int) -> None:
    """Raise ValueError, naming the numbers, unless token_ids is a (b, num_tokens) batch that the model can take. Section 4.11.

    Ids outside the vocabulary are looked for on the CPU only: a GPU would have to finish all waiting work to answer.
    """
    if token_ids.dim() != 2 or token_ids.numel() == 0:
        raise ValueError(f"expected at least one token id per row, shape (b, num_tokens), got {tuple(token_ids.shape)}")
    if token_ids.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"token ids must be whole numbers, got {token_ids.dtype}")
    if token_ids.shape[1] > context_length:
        raise ValueError(f"{token_ids.shape[1]} tokens are more than the context_length {context_length}")
    if token_ids.device.type == "cpu" and not 0 <= int(token_ids.min()) <= int(token_ids.max()) < vocab_size:
        raise ValueError(f"token ids {int(token_ids.min())} to {int(token_ids.max())} leave the vocabulary 0 to {vocab_size - 1}")


def tie_weights(model: nn.Module) -> nn.Module:
    """Make the output head use the token embedding's own weight, one tensor for both, and return the model. Section 4.10."""
    model.out_head.weight = model.tok_emb.weight  # (vocab_size, emb_dim)
    return model


def generate_text_simple(model: nn.Module, idx: torch.Tensor, max_new_tokens: int, context_size: int) -> torch.Tensor:
    """Append the likeliest next token max_new_tokens times: (b, num_tokens) -> (b, num_tokens + max_new_tokens).

    Each step sees the last context_size tokens. Warns when the model is in train mode, because dropout would then make
    the result random. Raises ValueError for ids that are not a batch, max_new_tokens < 0, context_size < 1, and for
    whatever ids the model refuses. Chapter 4, sections 4.7 and 4.11.
    """
    if idx.dim() != 2:
        raise ValueError(f"expected token ids of shape (b, num_tokens), got {tuple(idx.shape)}")
    if max_new_tokens < 0 or context_size < 1:
        raise ValueError(f"need max_new_tokens >= 0 and context_size >= 1, got {max_new_tokens} and {context_size}")
    if model.training:
        warnings.warn("the model is in train mode: call model.eval() before generating", stacklevel=2)
    for _ in range(max_new_tokens):
        recent = idx[:, -context_size:]  # (b, num_recent)
        with torch.no_grad():
            logits = model(recent)  # (b, num_recent, vocab_size)
        last = logits[:, -1]  # (b, vocab_size)
        next_id = last.argmax(dim=-1, keepdim=True)  # (b, 1)
        idx = torch.cat([idx, next_id.to(idx.dtype)], dim=1)  # (b, num_tokens)
    return idx


def main(argv: list[str] | None = None) -> int:
    """Command line of this file; returns 0, or exits with code 2 and one line on bad input."""
    parser = OneLineParser("Let an untrained GPT of a chosen size continue a prompt (the result is noise).")
    parser.add_argument("--prompt", default="The harbor was", help="text to continue")
    parser.add_argument("--max_new_tokens", type=int_at_least(0), default=10, help="tokens to add")
    parser.add_argument("--model_name", default="gpt2-small", choices=list(MODEL_SIZES), help="size of the model")
    parser.add_argument("--seed", type=int, default=123, help="random seed of the weights")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    args = parser.parse_args(argv)
    cfg = {**GPT_CONFIG_124M, **MODEL_SIZES[args.model_name]}
    tokenizer = gpt2_tokenizer()
    prompt_ids = tokenizer.encode(args.prompt, allowed_special={"<|endoftext|>"})
    if not prompt_ids:
        parser.error("the prompt is empty")
    if len(prompt_ids) > cfg["context_length"]:
        parser.error(f"the prompt has {len(prompt_ids)} tokens, more than the context_length {cfg['context_length']}")
    try:
        device = pick_device(args.device)
        print(f"{args.model_name} takes {memory_in_mib(cfg) / 1024:.1f} GiB of memory", file=sys.stderr)
    except ValueError as error:
        parser.error(str(error))

    torch.manual_seed(args.seed)
    model = GPTModel(cfg).to(device).eval()
    idx = torch.tensor([prompt_ids], device=device)  # (1, num_tokens)
    out = generate_text_simple(model, idx, args.max_new_tokens, cfg["context_length"])
    print(f"prompt: {args.prompt}\nids: {prompt_ids}\nshape: {tuple(idx.shape)}")
    print(f"output ids: {out[0].tolist()}\ntext: {tokenizer.decode(out[0].tolist())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
