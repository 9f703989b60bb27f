"""Chat with SmolLM2-135M in the terminal, offline, in this folder's own code; or with Llama 3.2 from a local folder.

    python chat.py                                       # empty line or Ctrl-D ends, /new forgets the conversation
    python chat.py --prompt "Name three colors." --temperature 0
    python chat.py --size 1B --weights path/to/Llama-3.2-1B-Instruct
"""

import argparse
import sys
import time
from pathlib import Path

import torch
from llama import (
    LLAMA32_CONFIG_1B,
    LLAMA32_CONFIG_3B,
    ChatFormat,
    Llama3Model,
    Llama3ModelFast,
    Llama3Tokenizer,
    generate_text_basic_stream,
    load_smollm2,
    load_weights_into_llama,
)

LLAMA_CONFIGS = {"1B": LLAMA32_CONFIG_1B, "3B": LLAMA32_CONFIG_3B}
CONTEXT = 8192  # tokens of a conversation; Llama 3.2 could take more, at the price of memory


def make_sampler(temperature: float, top_k: int | None, generator: torch.Generator):
    """A function from logits (b, vocab_size) to ids (b, 1): the likeliest at temperature 0, else drawn among the top_k."""

    def choose(logits):
        if temperature == 0:
            return logits.argmax(dim=-1, keepdim=True)
        if top_k is not None and top_k < logits.shape[-1]:
            lowest = logits.topk(top_k, dim=-1).values[:, -1:]  # (b, 1)
            logits = logits.masked_fill(logits < lowest, -torch.inf)
        return torch.multinomial(torch.softmax(logits.float() / temperature, dim=-1), 1, generator=generator)

    return choose


@torch.inference_mode()
def stream_without_cache(model, ids, max_new_tokens, eos_token_id, choose):
    """What `generate_text_basic_stream` yields for one row, computed again from the first token at every step."""
    for _ in range(max_new_tokens):
        next_ids = choose(model(ids, only_last=True)[:, -1])  # (1, 1)
        if int(next_ids) == eos_token_id:
            return
        yield next_ids
        ids = torch.cat([ids, next_ids], dim=1)


class Llama3Chat:
    """Llama 3's tokenizer with the three methods of SmolLM2Tokenizer that a chat needs."""

    def __init__(self, path):
        self.tokenizer = Llama3Tokenizer(path)
        self.format, self.eos_token_id = ChatFormat(self.tokenizer), self.tokenizer.special["<|eot_id|>"]

    def encode_chat(self, messages):
        if messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.format.default_system}, *messages]
        ids = [self.tokenizer.special["<|begin_of_text|>"]]
        for message in messages:
            ids += [*self.format.header(message["role"]), *self.tokenizer.encode(message["content"]), self.eos_token_id]
        return ids + self.format.header("assistant")

    def stream(self, ids):
        shown, seen = "", []
        for number in ids:
            seen.append(number)
            text = self.tokenizer.decode(seen)
            if not text.endswith("\ufffd"):  # a character cut in two waits for its other half
                yield text[len(shown) :]
                shown = text


def load_llama32(size: str, folder, fast: bool):
    """Llama 3.2 from a folder with *.safetensors and tokenizer.model: (model, tokenizer). FileNotFoundError names what is missing."""
    from safetensors.torch import load_file

    folder = Path(folder) if folder else None
    shards = sorted(folder.glob("*.safetensors")) if folder else []
    if not shards:
        raise FileNotFoundError(f"--size {size} needs --weights FOLDER with the *.safetensors of Llama 3.2 {size} (license: llama.com)")
    found = [path for path in (folder / "tokenizer.model", folder / "original" / "tokenizer.model") if path.is_file()]
    tokenizer = Llama3Chat(found[0] if found else folder / "tokenizer.model")
    config = {**LLAMA_CONFIGS[size], "context_length": CONTEXT}
    with torch.device("meta"):
        model = (Llama3ModelFast if fast else Llama3Model)(config)
    model.out_head.weight = model.tok_emb.weight
    model.to_empty(device="cpu").build_rope_tables()
    load_weights_into_llama(model, config, {name: tensor for shard in shards for name, tensor in load_file(shard).items()})
    return model.eval(), tokenizer


def answer(model, tokenizer, messages, args, choose):
    """Yield the text of one answer, piece by piece; the oldest turns are left out where the conversation grows too long."""
    context = model.cfg["context_length"] - args.max_new_tokens
    messages = list(messages)
    while len(ids := tokenizer.encode_chat(messages)) > context:
        first = 1 if messages[0]["role"] == "system" else 0
        if len(messages) - first <= 1:
            raise ValueError(f"the message has {len(ids):,} tokens; with {args.max_new_tokens} for the answer, {context:,} fit")
        del messages[first : first + 2]  # a question and its answer
    ids = torch.tensor([ids])
    if args.cache == "on":
        stream = generate_text_basic_stream(model, ids, args.max_new_tokens, tokenizer.eos_token_id, choose=choose)
    else:
        stream = stream_without_cache(model, ids, args.max_new_tokens, tokenizer.eos_token_id, choose)
    yield from tokenizer.stream(int(number) for number in stream)


def build_parser():
    parser = argparse.ArgumentParser(description="Chat with SmolLM2-135M or Llama 3.2 in the terminal.", allow_abbrev=False)
    parser.add_argument("--size", choices=("135M", "1B", "3B"), default="135M", help="135M: SmolLM2, offline (default)")
    parser.add_argument("--weights", help="folder of Llama 3.2's files, for 1B and 3B")
    parser.add_argument("--variant", choices=("fast", "plain"), default="fast", help="plain: the code to read (default: %(default)s)")
    parser.add_argument("--cache", choices=("on", "off"), default="on", help="keep earlier keys and values (default: %(default)s)")
    parser.add_argument("--compile", action="store_true", help="compile the model with torch.compile first")
    parser.add_argument("--system", help="system message (default: the model's own)")
    parser.add_argument("--prompt", help="answer this once and stop")
    parser.add_argument("--max_new_tokens", type=int, default=256, help="longest answer in tokens (default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=0.3, help="0: always the likeliest token (default: %(default)s)")
    parser.add_argument("--top_k", type=int, default=40, help="draw among this many likeliest tokens (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=123, help="of the random draws (default: %(default)s)")
    return parser


def check(args, parser) -> None:
    """One line and exit code 2 for settings that make no sense."""
    for wrong, message in (
        (args.temperature < 0, f"--temperature is {args.temperature}; it must be 0 or more"),
        (args.top_k < 1, f"--top_k is {args.top_k}; it must be at least 1"),
        (not 1 <= args.max_new_tokens < CONTEXT, f"--max_new_tokens is {args.max_new_tokens}; it must be from 1 to {CONTEXT - 1}"),
        (args.prompt is not None and not args.prompt.strip(), "--prompt is empty"),
    ):
        if wrong:
            parser.exit(2, f"chat.py: error: {message}\n")


def converse(model, tokenizer, args, choose) -> None:
    """Ask, answer, remember, until an empty line or the end of input."""
    start = [{"role": "system", "content": args.system}] if args.system else []
    messages = list(start)
    while (line := args.prompt) is not None or (line := input("> ").strip()):
        if line == "/new":
            messages = list(start)
            continue
        messages.append({"role": "user", "content": line})
        pieces, started = [], time.perf_counter()
        for piece in answer(model, tokenizer, messages, args, choose):
            print(piece, end="", flush=True)
            pieces.append(piece)
        print(f"\n[{len(pieces) / (time.perf_counter() - started):.1f} tokens/s]", file=sys.stderr)
        messages.append({"role": "assistant", "content": "".join(pieces)})
        if args.prompt is not None:
            return


def main(argv=None) -> None:
    """Load a model and chat until the user ends it."""
    parser = build_parser()
    args = parser.parse_args(argv)
    check(args, parser)
    try:
        fast = args.variant == "fast"
        model, tokenizer = load_smollm2(fast=fast) if args.size == "135M" else load_llama32(args.size, args.weights, fast)
        if args.compile:
            model.forward = torch.compile(model.forward, dynamic=True)
        converse(model, tokenizer, args, make_sampler(args.temperature, args.top_k, torch.Generator().manual_seed(args.seed)))
    except (EOFError, KeyboardInterrupt):
        print()
    except (OSError, ValueError) as error:
        parser.exit(2, f"chat.py: error: {error}\n")


if __name__ == "__main__":
    sys.exit(main())
