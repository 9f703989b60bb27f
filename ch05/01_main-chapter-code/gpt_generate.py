"""Chapter 5 in one file, decoding: let a trained GPT write, greedily or by sampling with temperature and top-k.

It adds to chapter 4's greedy loop the two dials with which every LLM is served. The weights come from gpt_train.py.

Run it:  python gpt_generate.py --weights my-gpt/model.pth --prompt "Nell opened the box" --temperature 0.8 --top_k 40
"""

import argparse
import json
import math
import pickle
import sys
from pathlib import Path

import torch
import torch.nn as nn
from previous_chapters import GPTModel, OneLineParser, gpt2_tokenizer, int_at_least, pick_device


def text_to_token_ids(text: str, tokenizer) -> torch.Tensor:
    """Return the ids of a text as a batch of one, shape (1, num_tokens). Chapter 5, section 5.1.1."""
    return torch.tensor([tokenizer.encode(text, allowed_special={"<|endoftext|>"})], dtype=torch.int64)


def token_ids_to_text(token_ids: torch.Tensor, tokenizer) -> str:
    """Return the text of one row of ids, shape (1, num_tokens) or (num_tokens). Chapter 5, section 5.1.1."""
    return tokenizer.decode(token_ids.flatten().tolist())


def softmax_with_temperature(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return softmax(logits / temperature) over the last dimension; ValueError unless temperature > 0. Section 5.3.1."""
    if not temperature > 0:
        raise ValueError(f"temperature must be positive here, got {temperature}")
    # Subtract the maximum first: dividing large logits by a small temperature would overflow, and softmax does not mind.
    shifted = logits - logits.max(dim=-1, keepdim=True).values
    return torch.softmax(shifted / temperature, dim=-1)


def print_sampled_tokens(probas: torch.Tensor, words: list | None = None, draws: int = 1000) -> None:
    """Draw token ids from probas (vocab_size) and print how often each came up, with its word if `words` are given. Section 5.3.1."""
    counts = torch.multinomial(probas, num_samples=draws, replacement=True).bincount(minlength=len(probas))  # (vocab_size)
    for token, count in enumerate(counts.tolist()):
        print(f"{count:5d} x {words[token] if words else token}")


def keep_top_k(logits: torch.Tensor, top_k: int) -> torch.Tensor:
    """Return logits with all but each row's top_k largest set to minus infinity. Shape kept. Section 5.3.2."""
    threshold = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values[..., -1:]  # one a row: the smallest that stays
    return logits.masked_fill(logits < threshold, float("-inf"))


def generate(
    model: nn.Module,
    idx: torch.Tensor,
    max_new_tokens: int,
    context_size: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    eos_id: int | None = None,
) -> torch.Tensor:
    """Append up to max_new_tokens tokens to each row of idx (b, num_tokens); temperature 0 is greedy.

    With `eos_id`, stops before appending it; in a batch a finished row is filled with eos_id until all are finished.
    Raises ValueError for a temperature below 0 or not finite, top_k < 1, max_new_tokens < 0, context_size < 1. Chapter 5, section 5.3.3.
    """
    if not 0 <= temperature < math.inf or (top_k is not None and top_k < 1):
        raise ValueError(f"need a finite temperature >= 0 and top_k >= 1, got {temperature} and {top_k}")
    if max_new_tokens < 0 or context_size < 1:
        raise ValueError(f"need max_new_tokens >= 0 and context_size >= 1, got {max_new_tokens} and {context_size}")
    finished = torch.zeros(idx.shape[0], 1, dtype=torch.bool, device=idx.device)  # (b, 1)
    for _ in range(max_new_tokens):
        with torch.no_grad():
            logits = model(idx[:, -context_size:])[:, -1].float()  # (b, vocab_size)
        if top_k is not None:
            logits = keep_top_k(logits, top_k)  # (b, vocab_size)
        if temperature > 0:
            next_id = torch.multinomial(softmax_with_temperature(logits, temperature), num_samples=1)  # (b, 1)
        else:
            next_id = logits.argmax(dim=-1, keepdim=True)  # (b, 1)
        if eos_id is not None:
            finished = finished | (next_id == eos_id)
            if finished.all():
                break
            next_id = next_id.masked_fill(finished, eos_id)  # (b, 1)
        idx = torch.cat([idx, next_id.to(idx.dtype)], dim=1)
    return idx


def trim_input_tensor(input_ids_tensor: torch.Tensor, context_len: int, max_new_tokens: int) -> torch.Tensor:
    """Keep the last max(1, context_len - max_new_tokens) columns, so that prompt and answer fit the context. Section 5.3.3."""
    assert max_new_tokens < context_len, f"max_new_tokens {max_new_tokens} must be below context_len {context_len}"
    return input_ids_tensor[:, -max(1, context_len - max_new_tokens) :]


def load_trained_gpt(weights: str | Path) -> tuple[GPTModel, dict]:
    """Return (model in eval mode, its configuration) from a model.pth and the config.json beside it.

    Raises ValueError with one clear line for a missing or damaged file, or one that does not fit the configuration.
    """
    weights = Path(weights)
    config_file = weights.with_name("config.json")
    try:
        cfg = json.loads(config_file.read_text(encoding="utf-8"))
        model = GPTModel(cfg)
        model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    except FileNotFoundError as error:
        raise ValueError(f"{error.filename} does not exist; gpt_train.py writes it") from None
    except (RuntimeError, EOFError, OSError, ValueError, TypeError, AttributeError, pickle.UnpicklingError) as error:
        raise ValueError(f"{weights} cannot be loaded with {config_file}: {(str(error) or type(error).__name__).splitlines()[0]}") from None
    return model.eval(), cfg


def temperature_value(text: str) -> float:
    """argparse type for a finite number >= 0."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{value} is outside the allowed range [0, infinity)")
    return value


def main(argv: list[str] | None = None) -> int:
    """Command line of this file; returns 0, or exits with code 2 and one line on bad input."""
    parser = OneLineParser("Continue a prompt with a GPT that gpt_train.py has trained.")
    parser.add_argument("--prompt", default="Mrs. Tamsett looked at the clock", help="text to continue")
    parser.add_argument("--weights", default=str(Path(__file__).resolve().parent / "my-gpt" / "model.pth"), help="from gpt_train.py")
    parser.add_argument("--max_new_tokens", type=int_at_least(0), default=60, help="tokens to add")
    parser.add_argument("--temperature", type=temperature_value, default=0.0, help="0: always the likeliest token")
    parser.add_argument("--top_k", type=int_at_least(1), help="draw among the k likeliest tokens only")
    parser.add_argument("--eos_id", type=int_at_least(0), help="stop before this token id (GPT-2's end of text: 50256)")
    parser.add_argument("--seed", type=int, default=123, help="random seed of the sampling")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    args = parser.parse_args(argv)
    tokenizer = gpt2_tokenizer()
    idx = text_to_token_ids(args.prompt, tokenizer)  # (1, num_tokens)
    if idx.shape[1] == 0:
        parser.error("the prompt is empty")
    try:
        model, cfg = load_trained_gpt(args.weights)
        if idx.shape[1] > cfg["context_length"]:
            raise ValueError(f"the prompt has {idx.shape[1]} tokens, more than the context_length {cfg['context_length']}")
        if args.eos_id is not None and args.eos_id >= cfg["vocab_size"]:
            raise ValueError(f"--eos_id {args.eos_id} is outside the vocabulary 0 to {cfg['vocab_size'] - 1}")
        device = pick_device(args.device)
    except ValueError as error:
        parser.error(str(error))

    print(f"PyTorch {torch.__version__}, device {device}", file=sys.stderr)
    torch.manual_seed(args.seed)
    out = generate(
        model.to(device), idx.to(device), args.max_new_tokens, cfg["context_length"], args.temperature, args.top_k, args.eos_id
    )
    print(token_ids_to_text(out, tokenizer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
