"""A page in the browser on which a pretrained GPT continues what you write, token by token; app_orig.py and app_own.py serve it.

The page holds each visitor's text and sends it along with every message. So the program keeps nothing between two messages,
and two visitors cannot disturb each other.
"""

import codecs
import html
import os
from collections.abc import Callable, Iterator

import gradio as gr
import torch
from local_page import known_by, local_theme, port_number, serve
from previous_chapters import GPTModel, OneLineParser, gpt2_tokenizer, int_at_least, keep_top_k, softmax_with_temperature

END_OF_TEXT = 50256
AT_ONCE = 4  # answers that are written side by side; further ones wait
LONGEST = 500  # tokens, whatever the slider says
DESCRIPTION = """\
**{name}** has {parameters:,} parameters and reads at most {context} tokens. It has read texts and nothing else: it
*continues* what you write, and does not know that it is being asked. With "go on with the text above", your message is
appended to the whole conversation. Nothing that you write leaves this computer.
"""


def stream_tokens(
    model: GPTModel, ids: list[int], max_new_tokens: int, context_size: int, temperature: float, top_k: int | None, seed: int | None
) -> Iterator[int]:
    """Yield the ids that continue `ids`, one at a time, until max_new_tokens or the end-of-text token.

    Draws with a generator of its own, so that answers that are written side by side do not change each other.
    """
    generator = torch.Generator()
    generator.manual_seed(seed) if seed is not None else generator.seed()
    device = next(model.parameters()).device
    text = torch.tensor([ids], device=device)  # (1, num_tokens)
    for _ in range(max_new_tokens):
        with torch.no_grad():
            logits = model(text[:, -context_size:])[:, -1].float().cpu()  # (1, vocab_size)
        if top_k is not None:
            logits = keep_top_k(logits, top_k)  # (1, vocab_size)
        if temperature > 0:
            next_id = torch.multinomial(softmax_with_temperature(logits, temperature), 1, generator=generator)  # (1, 1)
        else:
            next_id = logits.argmax(dim=-1, keepdim=True)  # (1, 1)
        if next_id.item() == END_OF_TEXT:
            return
        yield next_id.item()
        text = torch.cat([text, next_id.to(device)], dim=1)  # (1, total_tokens)


def conversation_text(history: list) -> str:
    """The messages of a conversation, as gradio 5 and 6 give them, joined as they stand: to a base model all is one text."""
    parts = []
    for message in history:
        content = message["content"]
        texts = [content] if isinstance(content, str) else [part["text"] for part in content if part.get("type") == "text"]
        parts += [html.unescape(text) for text in texts] if message["role"] == "assistant" else texts  # as `build_app` escaped them
    return "".join(parts)


def respond(
    message: str, history: list, max_new_tokens: int = 50, temperature: float = 0.0, top_k: int = 1, go_on: bool = False,
    *, loaded: tuple, seed: int | None = None,
) -> Iterator[str]:  # fmt: skip
    """Yield the continuation of a message, each time as far as it has been written; the message is not repeated.

    loaded: (tokenizer, model in eval mode, its configuration). With go_on, what was said before stands in front of the message.
    Bad input is answered with one line in place of a continuation.
    """
    tokenizer, model, config = loaded
    if not message.strip():
        yield "[The message is empty: write the beginning of a text.]"
        return
    text = conversation_text(history) + message if go_on else message
    ids = tokenizer.encode(text, disallowed_special=())
    room = config["context_length"]
    if len(ids) > room and not go_on:
        yield f"[The message has {len(ids)} tokens, more than the {room} that the model can read: shorten it.]"
        return
    decoder, written = codecs.getincrementaldecoder("utf-8")("replace"), ""
    tokens = stream_tokens(model, ids[-room:], min(max_new_tokens, LONGEST), room, temperature, top_k or None, seed)
    for token in tokens:
        written += decoder.decode(tokenizer.decode_single_token_bytes(token))
        yield written
    written += decoder.decode(b"", final=True)
    yield written if written.strip() else "[The model sees the end of the text here.]"


def build_app(name: str, load: Callable[[], tuple]) -> gr.ChatInterface:
    """Return the page for the model that load() gives: (tokenizer, model in eval mode, its configuration)."""
    loaded = load()

    def chat(message, history, max_new_tokens, temperature, top_k, go_on):
        for answer in respond(message, history, max_new_tokens, temperature, top_k, go_on, loaded=loaded):
            yield html.escape(answer, quote=False)  # shown as it is: its stars and tags are text

    settings = [
        gr.Slider(1, LONGEST, value=50, step=1, label="Length in tokens"),
        gr.Slider(0, 2, value=0.0, step=0.1, label="Temperature (0: always the likeliest token)"),
        gr.Slider(0, 100, value=1, step=1, label="Top-k: choose among so many tokens (0: among all)"),
        gr.Checkbox(label="Go on with the text above"),
    ]
    gpt = loaded[1]
    tied = torch.equal(gpt.tok_emb.weight, gpt.out_head.weight)  # GPT-2's two tables are one, counted once
    count = sum(parameter.numel() for parameter in gpt.parameters()) - tied * gpt.out_head.weight.numel()
    return gr.ChatInterface(
        chat,
        chatbot=gr.Chatbot(label="Text", render_markdown=False, height=420, **known_by(gr.Chatbot.__init__, type="messages", buttons=[])),
        additional_inputs=settings,
        title="Let it go on",
        description=DESCRIPTION.format(name=name, parameters=count, context=loaded[2]["context_length"]),
        concurrency_limit=AT_ONCE,
        flagging_mode="never",
        analytics_enabled=False,
        **known_by(gr.ChatInterface.__init__, type="messages", theme=local_theme()),
    )


def selftest() -> str:
    """Let a tiny random model continue a word, without a page, and return what it wrote: does the program run at all?"""
    torch.manual_seed(123)
    sizes = {"vocab_size": 50257, "context_length": 16, "emb_dim": 8, "n_heads": 2, "n_layers": 1, "drop_rate": 0.0, "qkv_bias": False}
    *_, last = respond("Hello", [], 5, loaded=(gpt2_tokenizer(), GPTModel(sizes).eval(), sizes))
    return last


def page_parser(description: str) -> OneLineParser:
    """Options that both programs have; where the page is served may also stand in gradio's environment variables."""
    parser = OneLineParser(description)
    parser.add_argument("--host", default=os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"), help="address that the page is served at")
    parser.add_argument("--port", type=port_number, default=os.environ.get("GRADIO_SERVER_PORT", "7860"), help="its port")
    parser.add_argument("--password", help="what visitors must enter, with the name reader; needed with another --host")
    parser.add_argument("--threads", type=int_at_least(1), help="processor cores to use (default: all)")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda", "mps"], default="auto", help="where the model works")
    parser.add_argument("--selftest", action="store_true", help="let a tiny random model write five tokens, and end")
    return parser


def run(parser: OneLineParser, args, name: str, load: Callable[[], tuple]) -> int:
    """Serve the page until Ctrl-C; returns 0, or exits with code 2 and one line without a model or with a port in use."""
    if args.selftest:
        print(f"a tiny random model continues 'Hello' with {selftest()!r}")
        return 0
    if args.host not in ("127.0.0.1", "localhost", "::1") and not args.password:
        parser.error(f"--host {args.host} lets other computers in: add --password")
    if args.threads:
        torch.set_num_threads(args.threads)
    options = {"auth": ("reader", args.password)} if args.password else {}
    try:
        app = build_app(name, load)
        address = serve(app, args.port, args.host, **options)
    except (ValueError, OSError) as error:
        parser.error(" ".join(str(error).split()))
    print(f"open {address} in a browser; Ctrl-C ends", flush=True)
    app.block_thread()
    return 0
