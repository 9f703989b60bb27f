"""A page on which the GPT that you have pretrained continues what you write.

Run it:  python app_own.py                     (the model that gpt_train.py has written)
         python app_own.py --model my-run/model.pth
"""

import sys
from pathlib import Path

from chat_page import page_parser, run
from previous_chapters import gpt2_tokenizer, load_trained_gpt, pick_device

HERE = Path(__file__).resolve().parent
CHAPTER = HERE.parent / "01_main-chapter-code"
PLACES = [CHAPTER / "my-gpt" / "model.pth", CHAPTER / "model.pth", HERE / "model.pth"]


def find_model(named: str | Path | None = None) -> Path:
    """Return the named file, else the first of PLACES that exists, whatever the working folder. ValueError if there is none."""
    found = Path(named) if named else next((path for path in PLACES if path.is_file()), PLACES[0])
    if not found.is_file():
        raise ValueError(f"{found} does not exist; this writes it, in ch05/01_main-chapter-code: python gpt_train.py")
    return found


def get_model_and_tokenizer(model: str | Path | None = None, device: str = "cpu") -> tuple:
    """Return (tokenizer, model in eval mode, its configuration). ValueError, in one line, for a file that is missing or damaged."""
    gpt, config = load_trained_gpt(find_model(model))
    return gpt2_tokenizer(), gpt.to(pick_device(device)), config


def main(argv: list[str] | None = None) -> int:
    """Command line of this file; returns 0, or exits with code 2 and one line on bad input."""
    parser = page_parser("Let the GPT that you have pretrained continue what you write, on a page in the browser.")
    parser.add_argument("--model", help="model.pth of a training, with its config.json beside it")
    args = parser.parse_args(argv)
    return run(parser, args, "Your own GPT", lambda: get_model_and_tokenizer(args.model, args.device))


if __name__ == "__main__":
    sys.exit(main())
