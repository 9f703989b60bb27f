"""A page in the browser: type a message, read how probable it is that it is spam.

It adds to chapter 6 what stands around every model in use: a form, a server, and answers to empty and to very long messages.

Run it:  python app.py                                          (the classifier that gpt_class_finetune.py has trained)
         python app.py --checkpoint my-classifier/review_classifier.pth --port 8000
"""

import functools
import sys
import threading
from pathlib import Path

import gradio as gr
import torch.nn as nn
from classifier import load_classifier, spam_probability
from local_page import known_by, local_theme, port_number, serve
from previous_chapters import OneLineParser, gpt2_tokenizer, pick_device

HERE = Path(__file__).resolve().parent
PLACES = (HERE.parent / "01_main-chapter-code" / "spam-classifier" / "review_classifier.pth", HERE / "review_classifier.pth")
EXAMPLES = [
    "Are we still on for lunch tomorrow? I can be there at one.",
    "You have won a free prize! Call 09061701 to claim it.",
]
LOCK = threading.Lock()  # the server answers in several threads; the model works for one of them at a time


def find_checkpoint(named: str | Path | None = None) -> Path:
    """Return the named classifier, else the first that lies at one of PLACES, whatever the working folder. ValueError if none does."""
    found = Path(named) if named else next((path for path in PLACES if path.is_file()), None)
    if found is None:
        raise ValueError("no trained classifier found; this makes one, in ch06/01_main-chapter-code: python gpt_class_finetune.py")
    return found


@functools.lru_cache(maxsize=1)
def load_once(checkpoint: Path | None, device: str) -> nn.Module:
    """Return the classifier, read from the disk at the first call only, with the attribute max_length: its texts were cut to it."""
    model, max_length = load_classifier(find_checkpoint(checkpoint), pick_device(device))
    model.max_length = max_length
    return model


def get_model_and_tokenizer(checkpoint: str | Path | None = None, device: str = "auto") -> tuple:
    """Return (tokenizer, classifier in eval mode). ValueError without a classifier, see `load_classifier`."""
    return gpt2_tokenizer(), load_once(checkpoint and Path(checkpoint), device)


def classify(text: str, checkpoint: str | Path | None = None, device: str = "auto") -> dict[str, float]:
    """Return {"spam": p, "not spam": 1 - p} for a message, of which at most model.max_length tokens are read."""
    with LOCK:
        tokenizer, model = get_model_and_tokenizer(checkpoint, device)
        probability = spam_probability(text, model, tokenizer, model.tok_emb.weight.device, model.max_length)
    return {"spam": probability, "not spam": 1 - probability}


def note_on_length(text: str, checkpoint: str | Path | None = None, device: str = "auto") -> str:
    """Say in one line how much of a too long message was read; nothing for any other."""
    tokenizer, model = get_model_and_tokenizer(checkpoint, device)
    num_tokens = len(tokenizer.encode(text, disallowed_special=()))
    if num_tokens <= model.max_length:
        return ""
    return f"The message has {num_tokens:,} tokens. Only the first {model.max_length:,} were read: the model was trained on no more."


def build_app(checkpoint: str | Path | None = None, device: str = "auto") -> gr.Interface:
    """Return the form; nothing is loaded before the first message."""

    def answer(text: str) -> tuple[dict | None, str]:
        if not text.strip():
            return None, "The message is empty: type one first."
        return classify(text, checkpoint, device), note_on_length(text, checkpoint, device)

    app = gr.Interface(
        answer,
        gr.Textbox(label="Message", lines=4, max_lines=12),
        [gr.Label(label="Probability"), gr.Markdown(elem_id="note")],
        examples=[[text] for text in EXAMPLES],
        cache_examples=False,
        title="Is this message spam?",
        description="A GPT of this course, fine-tuned in chapter 6, reads the message and answers. Nothing leaves this computer.",
        submit_btn="Classify",
        flagging_mode="never",
        analytics_enabled=False,
        api_name="classify",
        **known_by(gr.Interface.__init__, theme=local_theme()),
    )
    with app:  # in the browser: an answer must not stay beside a message that it does not belong to
        app.input_components[0].change(None, None, app.output_components, js="() => [{label: '', confidences: []}, '']")
    return app


def main(argv: list[str] | None = None) -> int:
    """Serve the page on this computer until Ctrl-C; exit code 2 and one line without a classifier or with a port in use."""
    parser = OneLineParser("Classify messages as spam or not in the browser, on this computer.")
    parser.add_argument("--checkpoint", help="review_classifier.pth to use (default: that of ../01_main-chapter-code)")
    parser.add_argument("--port", type=port_number, default=7860, help="port of the page, up to 65535")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda", "mps"], default="auto", help="where the model works")
    args = parser.parse_args(argv)
    try:
        get_model_and_tokenizer(args.checkpoint, args.device)  # a wrong file is better known now than at the first message
        app = build_app(args.checkpoint, args.device)
        address = serve(app, args.port)
    except (ValueError, OSError) as error:
        parser.error(" ".join(str(error).split()))
    print(f"open {address} in a browser; Ctrl-C ends", flush=True)
    app.block_thread()
    return 0


if __name__ == "__main__":
    sys.exit(main())
