"""Ask your own tuned model in the terminal. Chapter 7, after section 7.7.

    python instruction_chat.py                                # gpt2-mini, as gpt_instruction_finetuning.py or ch07.ipynb saved it
    python instruction_chat.py --model gemma                  # Gemma 3 270M, as gemma_instruction_finetuning.py saved it
    python instruction_chat.py --model smollm2                # SmolLM2-135M-Instruct, tuned by its makers, to compare with
    python instruction_chat.py --prompt "Write the sentence in the past tense. Input: I sing."

An instruction and its input stand in one line, with `Input:` between them; a line that begins with `Input:` gives the last
instruction another input. Your models answer each line by itself, with the prompt they were tuned on; SmolLM2 remembers what
was said until you type /new. An empty line or Ctrl-D ends.
"""

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from gpt_instruction_finetuning import load_tuned_gpt
from instruction_batches import encode_prompt
from llama import Conversation, generate_text_basic_stream, load_smollm2, whole_characters
from previous_chapters import GPTModel, OneLineParser, generate, gpt2_tokenizer, int_at_least, pick_device

HERE = Path(__file__).resolve().parent
MINI_FILES = (HERE / "instruction-model" / "gpt2-mini-sft-standalone.pth", HERE / "gpt2-mini-sft.pth")  # of program and notebook
END_ID = 50256


def to_entry(line: str, last_instruction: str = "") -> dict[str, str]:
    """Return {instruction, input} of a typed line: what stands before and behind the first `Input:` in it.

    Without an instruction before it, the last one counts again. Raises ValueError if there is none at all. Chapter 7, instruction_chat.py.
    """
    mark = re.search(r"(?:^|\s)Input:", line)
    instruction, text = (line[: mark.start()], line[mark.end() :]) if mark else (line, "")
    instruction = instruction.strip() or last_instruction
    if not instruction:
        raise ValueError("an input needs an instruction before it, as in: Write the word in capitals. Input: tide")
    return {"instruction": instruction, "input": text.strip()}


def stream_gpt(model: GPTModel, tokenizer, entry: dict, max_new_tokens: int, cut_mark: str = "") -> Iterator[str]:
    """Yield the greedy answer of a GPT to an entry in pieces of text, and then cut_mark if the answer did not end by itself.

    Raises ValueError if the prompt fills the context. Chapter 7, instruction_chat.py.
    """
    device, context_size = model.pos_emb.weight.device, model.pos_emb.num_embeddings
    prompt = encode_prompt(entry, tokenizer)
    if len(prompt) >= context_size:
        raise ValueError(f"the prompt has {len(prompt)} tokens and leaves no room in the context of {context_size}")
    idx = torch.tensor([prompt], device=device)  # (1, num_tokens)
    shown = ""
    for _ in range(min(max_new_tokens, context_size - len(prompt))):
        longer = generate(model, idx, 1, context_size, eos_id=END_ID)  # one id more, or none at the end
        if longer.shape == idx.shape:
            break
        idx = longer
        text = tokenizer.decode(idx[0, len(prompt) :].tolist())
        if not text.endswith("\ufffd"):  # a character cut in two waits for its other half
            yield text[len(shown) :]
            shown = text
    else:
        if cut_mark:
            yield cut_mark


def stream_gemma(model, tokenizer, entry: dict, max_new_tokens: int) -> Iterator[str]:
    """Yield the greedy answer of Gemma to an entry in pieces of text."""
    prompt = torch.tensor([encode_prompt(entry, tokenizer)], device=model.tok_emb.weight.device)  # (1, num_tokens)
    ids = generate_text_basic_stream(model, prompt, max_new_tokens, tokenizer.eos_token_id)
    yield from tokenizer.stream(int(number) for number in ids)


def load_asker(model_name: str, weights: str | None, max_new_tokens: int, device) -> tuple[Callable, Callable]:
    """Return (function that answers an entry in pieces of text, function that forgets what was said).

    Raises ValueError or OSError in one line if the model is not there.
    """
    if model_name == "smollm2":  # it was tuned on conversations: an entry is one message in its own chat template
        model, tokenizer = load_smollm2()
        conversation = Conversation(model.to(device), tokenizer, max_new_tokens=max_new_tokens)
        return lambda entry: conversation.ask(f"{entry['instruction']}\n\n{entry['input']}".strip()), conversation.forget
    if model_name == "gemma":
        from gemma_instruction_finetuning import load_tuned_gemma  # only here: its weights are optional

        model, tokenizer = load_tuned_gemma(*([weights] if weights else []))
        model.to(device)
        return lambda entry: stream_gemma(model, tokenizer, entry, max_new_tokens), lambda: None
    path = weights or next((path for path in MINI_FILES if path.is_file()), MINI_FILES[0])
    model, _ = load_tuned_gpt(path, device)
    tokenizer = gpt2_tokenizer()
    return lambda entry: stream_gpt(model, tokenizer, entry, max_new_tokens), lambda: None


def show_answer(pieces: Iterator[str]) -> None:
    """Print an answer as it comes, without the white space around it."""
    waiting, printed = "", False
    for piece in pieces:
        waiting += piece if printed else piece.lstrip()
        text = waiting.rstrip()
        if text:
            print(text, end="", flush=True)
            waiting, printed = waiting[len(text) :], True
    print(flush=True)


def talk(ask: Callable, forget: Callable) -> None:
    """Answer typed lines until an empty one or the end of input; /new forgets what was said."""
    instruction = ""
    while line := whole_characters(input("> ")).strip():
        if line == "/new":
            forget()
            continue
        try:
            entry = to_entry(line, instruction)
            instruction = entry["instruction"]
            show_answer(ask(entry))
        except ValueError as error:  # such as a text that is too long: the next one may fit
            print(error, file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    """Command line; returns 0, or exits with code 2 and one line on bad input."""
    parser = OneLineParser("Ask your own tuned model in the terminal.")
    parser.add_argument("--model", choices=("mini", "gemma", "smollm2"), default="mini", help="who answers")
    parser.add_argument("--weights", help="file of the tuned model; None: where the chapter's program saves it (smollm2 has none)")
    parser.add_argument("--prompt", help="answer this and stop; an input may follow behind `Input:`")
    parser.add_argument("--max_new_tokens", type=int_at_least(1), default=100, help="longest answer in tokens")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    args = parser.parse_args(argv)
    if args.prompt is not None and not args.prompt.strip():
        parser.error("--prompt is empty")
    if args.model == "smollm2" and args.weights:
        parser.error("--weights is for mini and gemma: SmolLM2 is not tuned in this chapter")
    try:
        device = pick_device(args.device)
        ask, forget = load_asker(args.model, args.weights, args.max_new_tokens, device)
        if args.prompt is None:
            talk(ask, forget)
        else:
            show_answer(ask(to_entry(whole_characters(args.prompt))))
    except (EOFError, KeyboardInterrupt):
        print()
    except (ValueError, OSError) as error:
        parser.error(" ".join(str(error).split()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
