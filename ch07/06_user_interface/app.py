"""A chat page in the browser for the GPT that chapter 7 has tuned: it shows the answer to each message while it is written.

It adds to chapter 7 what a chat needs: a page, answers that appear piece by piece, and a word about what the model can do.

Run it:  python app.py                                  (the model that gpt_instruction_finetuning.py or ch07.ipynb has tuned)
         python app.py --weights my-model/gpt2-mini-sft-standalone.pth --max_new_tokens 60 --port 8000
"""

import functools
import html
import sys
from collections.abc import Iterator
from pathlib import Path

import gradio as gr
from instructions import RESPONSE_HEADER, extract_response, format_input, load_tuned_gpt, stream_gpt, to_entry
from local_page import known_by, local_theme, port_number, serve
from previous_chapters import GPTModel, OneLineParser, gpt2_tokenizer, int_at_least, pick_device

HERE = Path(__file__).resolve().parent
CHAPTER = HERE.parent / "01_main-chapter-code"
NAMES = [f"{model}-sft{ending}.pth" for model in ("gpt2-mini", "gpt2-medium355M") for ending in ("-standalone", "")]
PLACES = [folder / name for name in NAMES for folder in (CHAPTER / "instruction-model", CHAPTER, HERE)]
LONGEST_ANSWER = 256  # tokens
EXAMPLES = [
    "Rewrite the sentence in the past tense. Input: The train stops at every village.",  # in the training data
    "Rewrite the sentence in the past tense. Input: The pilot feels the cold.",  # with words that are not
    "Write this sentence in the passive voice: The plumber fixed the leaking pipe.",
]
DESCRIPTION = """\
Write an instruction. A text that it is about goes behind `Input:`, as in the first two examples. Each message is a request
by itself: what was said before does not reach the model. An answer has at most {longest} tokens, and prompt and answer
together fit the model's context (256 tokens for `gpt2-mini`); an answer that is cut off says so.

**What to expect of `gpt2-mini`** (12 million parameters): it has learned the form of short tasks, and the words it was tuned
on. With words that it was not tuned on, 7 of 100 answers are right. It knows next to nothing about the world, cannot chat,
and never says that it does not know. Nothing that you write leaves this computer.
"""


def find_weights(named: str | Path | None = None) -> Path:
    """Return the named file, else the first of PLACES that exists, whatever the working folder. ValueError if none does."""
    found = Path(named) if named else next((path for path in PLACES if path.is_file()), None)
    if found is None:
        raise ValueError("no tuned model found; this makes one, in ch07/01_main-chapter-code: python gpt_instruction_finetuning.py")
    return found


@functools.lru_cache(maxsize=1)
def load_once(weights: Path | None, device: str) -> tuple[GPTModel, dict]:
    """Return (tuned model in eval mode, its configuration), read from the disk at the first call only."""
    return load_tuned_gpt(find_weights(weights), pick_device(device))


def get_model_and_tokenizer(weights: str | Path | None = None, device: str = "auto") -> tuple:
    """Return (tokenizer, tuned model in eval mode, its configuration). ValueError without a model, see `load_tuned_gpt`."""
    return gpt2_tokenizer(), *load_once(weights and Path(weights), device)


def respond(
    message: str,
    history: list,
    weights: str | Path | None = None,
    max_new_tokens: int = LONGEST_ANSWER,
    device: str = "auto",
) -> Iterator[str]:
    """Yield the answer to a message, each time as far as it has been written; history, the messages before, is not used.

    The model was tuned on single requests: a prompt with a conversation in it is one that it has never seen.
    """
    if not message.strip():
        yield "The message is empty: write an instruction."
        return
    try:
        entry = to_entry(message)
        tokenizer, model, _ = get_model_and_tokenizer(weights, device)
        prompt, answer = format_input(entry), ""
        for piece in stream_gpt(model, tokenizer, entry, max_new_tokens, cut_mark="\n\n[cut off: no room, or no token, is left]"):
            answer += piece
            yield extract_response(prompt + RESPONSE_HEADER + answer, prompt)
        if not answer:
            yield "[The model ended its answer before the first word.]"
    except ValueError as error:  # such as a prompt beyond the context
        yield f"No answer: {error}."


def build_app(weights: str | Path | None = None, max_new_tokens: int = LONGEST_ANSWER, device: str = "auto") -> gr.ChatInterface:
    """Return the page; nothing is loaded before the first message."""

    def chat(message: str, history: list) -> Iterator[str]:
        for answer in respond(message, history, weights, max_new_tokens, device):
            yield html.escape(answer, quote=False)  # shown as it is: its stars, tags and dollar signs are text

    options = known_by(gr.Chatbot.__init__, type="messages", buttons=[])
    chatbot = gr.Chatbot(label="Conversation", render_markdown=False, height=360, **options)
    return gr.ChatInterface(
        chat,
        chatbot=chatbot,
        examples=EXAMPLES,
        cache_examples=False,
        title="Ask the model that you have tuned",
        description=DESCRIPTION.format(longest=max_new_tokens),
        flagging_mode="never",
        analytics_enabled=False,
        **known_by(gr.ChatInterface.__init__, type="messages", theme=local_theme()),
    )


def main(argv: list[str] | None = None) -> int:
    """Serve the page on this computer until Ctrl-C; exit code 2 and one line without a tuned model or with a port in use."""
    parser = OneLineParser("Chat with the model of chapter 7 in the browser, on this computer.")
    parser.add_argument("--weights", help="tuned model to use (default: that of ../01_main-chapter-code)")
    parser.add_argument("--max_new_tokens", type=int_at_least(1), default=LONGEST_ANSWER, help="longest answer in tokens")
    parser.add_argument("--port", type=port_number, default=7860, help="port of the page, up to 65535")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda", "mps"], default="auto", help="where the model works")
    args = parser.parse_args(argv)
    try:
        get_model_and_tokenizer(args.weights, args.device)  # a wrong file is better known now than at the first message
        app = build_app(args.weights, args.max_new_tokens, args.device)
        address = serve(app, args.port)
    except (ValueError, OSError) as error:
        parser.error(" ".join(str(error).split()))
    print(f"open {address} in a browser; Ctrl-C ends", flush=True)
    app.block_thread()
    return 0


if __name__ == "__main__":
    sys.exit(main())
