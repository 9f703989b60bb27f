"""Chapter 5 in one file, decoding: let a GPT write, greedily or by sampling with temperature and top-k.

It adds to chapter 4's greedy loop the two dials with which every LLM is served. The weights come from gpt_train.py, or are
published ones of GPT-2's architecture, which gpt_download.py finds.

Run it:  python gpt_generate.py --weights my-gpt/model.pth --prompt "Nell opened the box" --temperature 0.8 --top_k 40
         python gpt_generate.py --model_size 124M --prompt "The harbor master said"
"""

import argparse
import json
import math
import pickle
import sys
from pathlib import Path

import torch
import torch.nn as nn
from gpt_download import MODELS_DIR, SIZES, download_and_load_gpt2
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
        context = idx[:, -context_size:]  # (b, num_tokens)
        with torch.no_grad():
            logits = model(context)  # (b, num_tokens, vocab_size)
        logits = logits[:, -1].float()  # (b, vocab_size)
        if top_k is not None:
            logits = keep_top_k(logits, top_k)  # (b, vocab_size)
        if temperature > 0:
            probas = softmax_with_temperature(logits, temperature)  # (b, vocab_size)
            next_id = torch.multinomial(probas, num_samples=1)  # (b, 1)
        else:
            next_id = logits.argmax(dim=-1, keepdim=True)  # (b, 1)
        if eos_id is not None:
            finished = finished | (next_id == eos_id)
            if finished.all():
                break
            next_id = next_id.masked_fill(finished, eos_id)  # (b, 1)
        idx = torch.cat([idx, next_id.to(idx.dtype)], dim=1)  # (b, total_tokens)
    return idx


def trim_input_tensor(input_ids_tensor: torch.Tensor, context_len: int, max_new_tokens: int) -> torch.Tensor:
    """Keep the last max(1, context_len - max_new_tokens) columns, so that prompt and answer fit the context. Section 5.3.3."""
    assert max_new_tokens < context_len, f"max_new_tokens {max_new_tokens} must be below context_len {context_len}"
    return input_ids_tensor[:, -max(1, context_len - max_new_tokens) :]


def shape_conflict(left: torch.Tensor | None, right) -> str | None:
    """Say how the shapes of a parameter and of the weights for it differ; None if they agree. Section 5.5."""
    if left is not None and left.shape == right.shape:
        return None
    place = "no such parameter" if left is None else f"shape {tuple(left.shape)}"
    return f"the model has {place}, the weights have shape {tuple(right.shape)}"


def assign(left: torch.Tensor | None, right) -> nn.Parameter:
    """Return the numbers of `right` as a new parameter with the type and device of `left`. ValueError on unequal shapes. Section 5.5."""
    if shape_conflict(left, right):
        raise ValueError(shape_conflict(left, right))
    return nn.Parameter(torch.empty(left.shape, dtype=left.dtype, device=left.device).copy_(torch.as_tensor(right)))


def block_weights(published: dict) -> dict[str, torch.Tensor]:
    """Return GPT-2's numbers for one transformer block under the names of our parameters. Section 5.5."""
    attn, mlp = published["attn"], published["mlp"]
    # c_attn is one wide layer: its first third of columns makes queries, the next keys, the last values.
    query, key, value = torch.as_tensor(attn["c_attn"]["w"]).tensor_split(3, dim=-1)
    query_bias, key_bias, value_bias = torch.as_tensor(attn["c_attn"]["b"]).tensor_split(3, dim=-1)
    return {
        "att.W_query.weight": query.transpose(0, -1),  # GPT-2 stores (d_in, d_out), nn.Linear (d_out, d_in)
        "att.W_query.bias": query_bias,
        "att.W_key.weight": key.transpose(0, -1),
        "att.W_key.bias": key_bias,
        "att.W_value.weight": value.transpose(0, -1),
        "att.W_value.bias": value_bias,
        "att.out_proj.weight": torch.as_tensor(attn["c_proj"]["w"]).transpose(0, -1),
        "att.out_proj.bias": attn["c_proj"]["b"],
        "ff.layers.0.weight": torch.as_tensor(mlp["c_fc"]["w"]).transpose(0, -1),
        "ff.layers.0.bias": mlp["c_fc"]["b"],
        "ff.layers.2.weight": torch.as_tensor(mlp["c_proj"]["w"]).transpose(0, -1),
        "ff.layers.2.bias": mlp["c_proj"]["b"],
        "norm1.scale": published["ln_1"]["g"],
        "norm1.shift": published["ln_1"]["b"],
        "norm2.scale": published["ln_2"]["g"],
        "norm2.shift": published["ln_2"]["b"],
    }


def load_weights_into_gpt(gpt: nn.Module, params: dict) -> None:
    """Give a GPTModel the published weights `params`, as download_and_load_gpt2 returns them. Section 5.5.

    Raises ValueError, naming the parameter and both shapes, for weights that do not match the model, which then stays as it was.
    """
    try:
        weights = {"tok_emb.weight": params["wte"], "pos_emb.weight": params["wpe"]}
        for number, published in enumerate(params["blocks"]):
            for name, array in block_weights(published).items():
                weights[f"trf_blocks.{number}.{name}"] = array
        weights["final_norm.scale"], weights["final_norm.shift"] = params["g"], params["b"]
        weights["out_head.weight"] = params["wte"]  # GPT-2 has no matrix of its own for the head
    except KeyError as error:
        raise ValueError(f"the weights lack {error}") from None
    if len(params["blocks"]) != len(gpt.trf_blocks):
        raise ValueError(f"the model has {len(gpt.trf_blocks)} blocks, the weights have {len(params['blocks'])}")
    ours = gpt.state_dict()
    for name, array in weights.items():  # all is compared before anything is changed
        conflict = shape_conflict(ours.get(name), array)
        if conflict:
            raise ValueError(f"weights do not match the configuration: {name}: {conflict}")
    for name, array in weights.items():
        ours[name].copy_(torch.as_tensor(array))


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


def config_of(settings: dict) -> dict:
    """Return what the published settings of a GPT-2 fix of a GPTModel's configuration: the sizes, and biases in the projections."""
    ours = {"n_vocab": "vocab_size", "n_ctx": "context_length", "n_embd": "emb_dim", "n_head": "n_heads", "n_layer": "n_layers"}
    return {**{ours[key]: value for key, value in settings.items()}, "qkv_bias": True}


def load_pretrained_gpt(
    gpt_config: dict, model_size: str, models_dir: str | Path = MODELS_DIR, offline: bool = False
) -> tuple[GPTModel, dict]:
    """Return (GPT with published weights in eval mode, its configuration). Section 5.5.

    What `gpt_config` leaves out is taken from the weights; ValueError, naming the keys, where it contradicts them.
    """
    settings, params = download_and_load_gpt2(model_size, models_dir, offline=offline)
    fixed = config_of(settings)
    differing = [f"{key} is {value} there, {gpt_config[key]} here" for key, value in fixed.items() if gpt_config.get(key, value) != value]
    if differing:
        raise ValueError(f"the weights of {model_size} do not match the configuration: {'; '.join(differing)}")
    cfg = {"drop_rate": 0.0, **gpt_config, **fixed}
    model = GPTModel(cfg)
    load_weights_into_gpt(model, params)
    return model.eval(), cfg


def write(model: GPTModel, cfg: dict, prompt: str, device: str | torch.device, max_new_tokens: int = 60, **sampling) -> str:
    """Print PyTorch's version, the device and the continued prompt, and return the text; `sampling` goes to generate.

    Raises ValueError for an empty prompt, one longer than the context, an eos_id outside the vocabulary.
    """
    tokenizer = gpt2_tokenizer()
    idx = text_to_token_ids(prompt, tokenizer)  # (1, num_tokens)
    if idx.shape[1] == 0:
        raise ValueError("the prompt is empty")
    if idx.shape[1] > cfg["context_length"]:
        raise ValueError(f"the prompt has {idx.shape[1]} tokens, more than the context_length {cfg['context_length']}")
    if (sampling.get("eos_id") or 0) >= cfg["vocab_size"]:
        raise ValueError(f"--eos_id {sampling['eos_id']} is outside the vocabulary 0 to {cfg['vocab_size'] - 1}")
    print(f"PyTorch {torch.__version__}, device {device}", file=sys.stderr)
    out = generate(model.to(device), idx.to(device), max_new_tokens, cfg["context_length"], **sampling)
    text = token_ids_to_text(out, tokenizer)
    print(text)
    return text


def main(gpt_config: dict, input_prompt: str, model_size: str, device: str | torch.device, seed: int = 123, **options) -> str:
    """Let a pretrained GPT ("mini", "124M", ..., or "gpt2-small (124M)") continue a prompt; prints and returns the text.

    `gpt_config` may be empty or hold what the weights must agree with. `options`: models_dir and offline for finding the weights,
    the rest for `write`. Raises ValueError or OSError, in one line, for weights that are not to be had and input it cannot use.
    """
    finding = {key: options.pop(key) for key in ("models_dir", "offline") if key in options}
    model, cfg = load_pretrained_gpt(gpt_config, model_size, **finding)
    torch.manual_seed(seed)
    return write(model, cfg, input_prompt, device, **options)


def command_line(argv: list[str] | None = None) -> int:
    """Parse the options and let the chosen model write; returns 0, or exits with code 2 and one line on bad input."""
    parser = OneLineParser("Continue a prompt with a pretrained GPT, or with one that gpt_train.py has trained.")
    parser.add_argument("--prompt", default="Mrs. Tamsett looked at the clock", help="text to continue")
    parser.add_argument("--model_size", default="mini", help=f"pretrained weights: mini (of this course), {', '.join(SIZES)}")
    parser.add_argument("--weights", help="instead of --model_size: a model.pth from gpt_train.py")
    parser.add_argument("--models_dir", default=str(MODELS_DIR), help="folder of downloaded weights")
    parser.add_argument("--offline", action="store_true", help="use what is on the disk, download nothing")
    parser.add_argument("--max_new_tokens", type=int_at_least(0), default=60, help="tokens to add")
    parser.add_argument("--temperature", type=temperature_value, default=0.0, help="0: always the likeliest token")
    parser.add_argument("--top_k", type=int_at_least(1), help="draw among the k likeliest tokens only")
    parser.add_argument("--eos_id", type=int_at_least(0), help="stop before this token id (GPT-2's end of text: 50256)")
    parser.add_argument("--seed", type=int, default=123, help="random seed of the sampling")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    args = parser.parse_args(argv)
    how = {key: getattr(args, key) for key in ("max_new_tokens", "temperature", "top_k", "eos_id")}
    try:
        if not args.prompt:
            raise ValueError("the prompt is empty")
        device = pick_device(args.device)
        if args.weights:
            model, cfg = load_trained_gpt(args.weights)
            torch.manual_seed(args.seed)
            write(model, cfg, args.prompt, device, **how)
        else:
            main({}, args.prompt, args.model_size, device, args.seed, models_dir=args.models_dir, offline=args.offline, **how)
    except (ValueError, OSError) as error:
        parser.error(" ".join(str(error).split()))
    except KeyboardInterrupt:
        parser.exit(130, "stopped; a download goes on with the same command\n")
    return 0


if __name__ == "__main__":
    sys.exit(command_line())
