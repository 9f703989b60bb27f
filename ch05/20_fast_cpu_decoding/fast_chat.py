"""Chat with SmolLM2-135M in the terminal, written by one compiled step a token.

    python fast_chat.py                                            # /new forgets the conversation, an empty line or Ctrl-D ends
    python fast_chat.py --prompt "Name three colors." --weights file
    python fast_chat.py --prompt "Name three colors." --weights pytorch     # the same without compiled steps

Behind each answer stands what it took. The first answer on a machine compiles the step, which takes some seconds; the machine
code is kept. Without numba, PyTorch answers, and one line says so.
"""

import sys

import torch
from fast_decode import FORMS, FastModel, file_blocks, numba
from llama import Conversation, converse, find_smollm2, load_smollm2, make_sampler, read_gguf, show_answer, whole_characters
from previous_chapters import OneLineParser, int_at_least


def load_fast(weights: str, threads: int):
    """(the model in the wanted form, its tokenizer); PyTorch's where that is wanted or numba is missing."""
    model, tokenizer = load_smollm2()
    if weights != "pytorch" and numba is None:
        print("numba is missing (python -m pip install numba), so PyTorch answers, more slowly", file=sys.stderr)
    if weights == "pytorch" or numba is None:
        return model, tokenizer
    if weights in ("file", "file_rounded"):
        weights = file_blocks(*read_gguf(find_smollm2()), rounded=weights == "file_rounded")
    fast = FastModel(model, weights, threads)
    fast.read_token(0, fast.new_cache())  # compiles the step, or loads its machine code
    return fast, tokenizer


def build_parser() -> OneLineParser:
    parser = OneLineParser("Chat with SmolLM2-135M in the terminal, by compiled steps.")
    parser.add_argument("--weights", choices=(*FORMS, "file", "file_rounded", "pytorch"), default="int8",
                        help="file: the 4-bit blocks as they are; file_rounded: and the vector in 8 bits")  # fmt: skip
    parser.add_argument("--threads", type=int_at_least(1), default=1, help="cores of the compiled step")
    parser.add_argument("--system", help="system message, if not the model's own")
    parser.add_argument("--prompt", help="answer this once and stop")
    parser.add_argument("--max_new_tokens", type=int_at_least(1), default=256, help="longest answer in tokens")
    parser.add_argument("--temperature", type=float, default=0.3, help="0: always the likeliest token")
    parser.add_argument("--top_k", type=int, default=40, help="draw among this many likeliest tokens")
    parser.add_argument("--seed", type=int, default=123, help="of the random draws")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Load the model and chat until the user ends it; returns 0, or exits with code 2 and one line on bad input."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.prompt is not None and not args.prompt.strip():
        parser.error("--prompt is empty")
    try:
        choose = make_sampler(args.temperature, args.top_k, generator=torch.Generator().manual_seed(args.seed))
        model, tokenizer = load_fast(args.weights, args.threads)
        system = whole_characters(args.system) if args.system else None
        conversation = Conversation(model, tokenizer, choose, args.max_new_tokens, system)
        if isinstance(model, FastModel):
            conversation.cache = model.new_cache()
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
