"""A page on which a GPT with published weights continues what you write: gpt2-mini, or the real GPT-2 where its files are.

Run it:  python app_orig.py
         python app_orig.py --model 124M --port 8000
"""

import sys

from chat_page import page_parser, run
from previous_chapters import MODELS_DIR, gpt2_tokenizer, load_pretrained_gpt, pick_device


def get_model_and_tokenizer(model: str = "mini", device: str = "cpu", models_dir=MODELS_DIR) -> tuple:
    """Return (tokenizer, model in eval mode, its configuration). ValueError or OSError, in one line, for weights that are missing."""
    gpt, config = load_pretrained_gpt({}, model, models_dir)
    return gpt2_tokenizer(), gpt.to(pick_device(device)), config


def main(argv: list[str] | None = None) -> int:
    """Command line of this file; returns 0, or exits with code 2 and one line on bad input."""
    parser = page_parser("Let a GPT with published weights continue what you write, on a page in the browser.")
    parser.add_argument("--model", default="mini", help="mini, 124M, 355M, 774M or 1558M")
    parser.add_argument("--models_dir", default=str(MODELS_DIR), help="folder of the weights of GPT-2")
    args = parser.parse_args(argv)
    return run(parser, args, f"GPT-2 ({args.model})", lambda: get_model_and_tokenizer(args.model, args.device, args.models_dir))


if __name__ == "__main__":
    sys.exit(main())
