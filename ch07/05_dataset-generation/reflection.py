"""Better instruction data by a second look: a model criticizes an entry, then rewrites it (https://arxiv.org/abs/2310.11716).

reflection-gpt4.ipynb explains this file. Any service with OpenAI's protocol will do: the course's own server, which is started
here, Ollama, or OpenAI, whose key stands in OPENAI_API_KEY or in config.json.

    python reflection.py --kind instruction --count 3 --output instruction-reflected.json
    python reflection.py --kind response --count 3 --output response-reflected.json
    python reflection.py --kind response --count 3 --output response-reflected.json --service openai --model gpt-4o-mini

Each reply is also written, as it comes, to a log in the folder build: after a break the same command goes on.
"""

import contextlib
import re
import sys
from collections import Counter
from pathlib import Path

from instruction_generation import save_pairs
from instructions import load_data
from local_server import create_server
from openai import OpenAI, OpenAIError
from previous_chapters import OneLineParser, int_at_least
from second_outputs import collect_answers, connect

SYSTEM = "You edit data on which a language model will be trained to follow instructions. You are exact, and you invent no facts."
SAMPLE_INSTRUCTION, SAMPLE_ANSWER = "write the improved instruction here", "write its answer here"
SAMPLE_BETTER = "write the improved answer here"
SAMPLES = (SAMPLE_INSTRUCTION, SAMPLE_ANSWER, SAMPLE_BETTER)  # what a prompt shows in place of an answer, and some models repeat
MARKER = re.compile(r"\*{0,2}\[{1,2}(New Instruction|New Input|New Answer|Better Answer|End)\]{1,2}\*{0,2}:?\*{0,2}", re.IGNORECASE)


# ---- asking ----


def run_chatgpt(prompt: str, client, model: str = "gpt-4o-mini", system_prompt: str | None = None, max_tokens: int | None = None) -> str:
    """Send one prompt to a service and return its answer, "" if there is none; temperature 0, seed 123. Section 1.

    max_tokens limits the answer; None: the service's own limit.
    """
    system = [{"role": "system", "content": system_prompt}] if system_prompt else []
    limit = {} if max_tokens is None else {"max_tokens": max_tokens}
    messages = [*system, {"role": "user", "content": prompt}]
    reply = client.chat.completions.create(model=model, messages=messages, temperature=0.0, seed=123, **limit)
    return (reply.choices[0].message.content or "").strip()


def fenced(**texts: str) -> str:
    """Return texts with their names, each between lines of dashes that none of them contains. Section 2."""
    fence = "-----"
    while any(fence in text for text in texts.values()):
        fence += "-"
    return "\n\n".join(f"{name.capitalize()}:\n{fence}\n{text}\n{fence}" for name, text in texts.items())


def build_instruction_reflection_prompt_no_input(ins: str, outp: str) -> tuple[str, str]:
    """Return (system, prompt) that asks for a better instruction and its answer. Section 2."""
    prompt = f"""{fenced(instruction=ins, answer=outp)}

Say in one or two sentences what is weak about this instruction: is it vague, too easy, or badly worded? Then write a better
instruction on the same subject, and its answer, in this form:

[New Instruction] {SAMPLE_INSTRUCTION} [End]
[New Answer] {SAMPLE_ANSWER} [End]"""
    return SYSTEM, prompt


def build_response_reflection_prompt_no_input(ins: str, outp: str) -> tuple[str, str]:
    """Return (system, prompt) that asks for a better answer to an instruction. Section 4."""
    return SYSTEM, response_prompt(fenced(instruction=ins, answer=outp))


def build_response_reflection_prompt_with_input(ins: str, inp: str, outp: str) -> tuple[str, str]:
    """Return (system, prompt) that asks for a better answer to an instruction about an input. Section 4."""
    return SYSTEM, response_prompt(fenced(instruction=ins, input=inp, answer=outp))


def response_prompt(entry: str) -> str:
    """Return what both prompts about answers ask. Section 4."""
    return f"""{entry}

Say in one or two sentences what is weak about this answer: is it wrong, unclear, or incomplete? Then write a better answer in
this form:

[Better Answer] {SAMPLE_BETTER} [End]"""


# ---- reading replies ----


def segments(text: str | None, marker: str) -> list[str]:
    """Return what stands behind each `[marker]` up to the next marker of any kind. Section 3.

    Left out are texts without a marker behind them (nobody knows whether they are complete), empty ones, and copies of the
    prompt's sample text.
    """
    parts = MARKER.split(text or "")  # text, marker, text, marker, ..., text
    found = [part.strip() for name, part in zip(parts[1:-2:2], parts[2:-2:2]) if name.lower() == marker.lower()]
    return [part for part in found if part and part.rstrip(".").lower() not in SAMPLES]


def extract_instruction_segment(text: str | None, no_input: bool = True) -> str | None:
    """Return the first new instruction of a reply, None if it holds none. Section 3.

    no_input: the reply must not bring an input of its own; with `[New Input]` in it, the instruction is useless without.
    """
    if no_input and segments(text, "New Input"):
        return None
    return next(iter(segments(text, "New Instruction")), None)


def extract_output_segment(text: str | None, no_input: bool = True) -> str | None:
    """Return the first new answer of a reply, None if it holds none; no_input as for the instruction. Section 3."""
    if no_input and segments(text, "New Input"):
        return None
    return next(iter(segments(text, "New Answer")), None)


def extract_instruction(text: str | None) -> list[str | None]:
    """Return [new instruction, new answer] of a reply, each None where it is missing. Section 3."""
    return [extract_instruction_segment(text), extract_output_segment(text)]


def extract_response(text: str | None) -> list[str]:
    """Return all better answers of a reply, in order. Section 4."""
    return segments(text, "Better Answer")


# ---- the two passes ----


def better_instruction(entry: dict, reply: str) -> dict | None:
    """Return the entry with a new instruction and its answer, None if either is missing: they belong together. Section 3."""
    instruction, output = extract_instruction(reply)
    return None if instruction is None or output is None else {**entry, "instruction": instruction, "output": output}


def better_response(entry: dict, reply: str) -> dict | None:
    """Return the entry with the first better answer of a reply, None if there is none. Section 4."""
    answers = extract_response(reply)
    return {**entry, "output": answers[0]} if answers else None


def reflect(entries: list[dict], requests: list, rewrite, client, model: str, log_file, max_tokens: int | None) -> list[dict]:
    """Return the entries, each rewritten after its request (system, prompt), or as it was; a request of None is not sent. Section 4.

    Prints which entries stayed as they were, because a model that keeps no markers must not go unnoticed.
    """
    systems = {prompt: system for system, prompt in filter(None, requests)}
    log_file = log_file or Path("build") / f"reflection-{model.replace(':', '-').replace('/', '-')}.jsonl"
    replies = collect_answers(list(systems), lambda prompt: run_chatgpt(prompt, client, model, systems[prompt], max_tokens), log_file)
    reply_to = dict(zip(systems, replies))
    rewritten = [rewrite(entry, reply_to[request[1]]) if request else None for entry, request in zip(entries, requests)]
    kept = [number for number, (request, new) in enumerate(zip(requests, rewritten)) if request and new is None]
    print(f"{len(kept)} of {len(systems)} replies could not be used; their entries stay as they were: {kept}")
    return [dict(new or entry) for entry, new in zip(entries, rewritten)]


def reflect_instructions(
    json_data: list[dict], client, model: str = "gpt-4o-mini", log_file: str | Path | None = None, max_tokens: int | None = None
) -> list[dict]:
    """Return the entries, those without an input with a better instruction and its answer where a reply holds both. Section 3.

    Every reply is written to log_file (None: build/reflection-MODEL.jsonl) when it comes, and none is paid for twice.
    """
    requests = [
        None if entry.get("input") else build_instruction_reflection_prompt_no_input(entry["instruction"], entry["output"])
        for entry in json_data
    ]
    return reflect(json_data, requests, better_instruction, client, model, log_file, max_tokens)


def reflect_responses(
    json_data: list[dict], client, model: str = "gpt-4o-mini", log_file: str | Path | None = None, max_tokens: int | None = None
) -> list[dict]:
    """Return the entries with better answers where a reply holds one; the log as in `reflect_instructions`. Section 4."""
    requests = [
        build_response_reflection_prompt_with_input(entry["instruction"], entry["input"], entry["output"])
        if entry.get("input")
        else build_response_reflection_prompt_no_input(entry["instruction"], entry["output"])
        for entry in json_data
    ]
    return reflect(json_data, requests, better_response, client, model, log_file, max_tokens)


def verdict(reply: str, kind: str) -> str:
    """Say what became of the markers in a reply of a kind, instruction or response. Section 5."""
    wanted = ("New Instruction", "New Answer") if kind == "instruction" else ("Better Answer",)
    if all(segments(reply, marker) for marker in wanted):
        return "usable"
    present = [f"[{marker.lower()}]" in reply.lower() for marker in wanted]
    if not any(present):
        return "no marker"
    if any(sample in reply.lower() for sample in SAMPLES):
        return "sample text repeated"
    return "a marker is missing" if not all(present) else "no end, or empty"


# ---- command line ----


@contextlib.contextmanager
def client_of(service: str):
    """Give a client of openai's package: for the course's own server, which runs until the `with` ends, Ollama, or OpenAI."""
    if service != "course":
        yield connect(service)
        return
    with create_server(port=0) as server:
        yield OpenAI(base_url=f"{server.start()}/v1", api_key="none", timeout=600, max_retries=0)


def main(argv: list[str] | None = None) -> int:
    """Command line; returns 0, or exits with code 2 and one line on bad input."""
    parser = OneLineParser("Let a model rewrite instructions, or answers, of the course's data.")
    parser.add_argument("--kind", choices=("instruction", "response"), required=True, help="what is to be improved")
    parser.add_argument("--count", type=int_at_least(1), default=3, help="entries; --kind instruction takes those without an input")
    parser.add_argument("--output", required=True, help="JSON file to write")
    parser.add_argument("--service", choices=("course", "ollama", "openai"), default="course", help="who rewrites")
    parser.add_argument("--model", default="smollm2:135m", help="its model")
    parser.add_argument("--max_tokens", type=int_at_least(1), default=400, help="longest reply")
    parser.add_argument("--log_file", help="replies as they come; None: build/reflection-MODEL.jsonl")
    args = parser.parse_args(argv)
    try:
        entries = [entry for entry in load_data() if args.kind == "response" or not entry["input"]][: args.count]
        pass_over = reflect_instructions if args.kind == "instruction" else reflect_responses
        with client_of(args.service) as client:
            reflected = pass_over(entries, client, args.model, args.log_file, args.max_tokens)
        save_pairs(reflected, args.output)
    except (ValueError, OSError, OpenAIError) as error:
        parser.error(" ".join(str(error).split()))
    except KeyboardInterrupt:
        parser.exit(130, "stopped; the same command asks for what is missing\n")
    changed = Counter(before != after for before, after in zip(entries, reflected))
    print(f"{changed[True]} of {len(entries)} entries are rewritten in {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
