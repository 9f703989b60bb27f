"""Instruction data out of nothing: a chat model invents a request, then answers it (Magpie, https://arxiv.org/abs/2406.08464).

llama3-ollama.ipynb explains this file. It speaks Ollama's protocol: to the course's own server, which it starts itself, or to
Ollama.

    python instruction_generation.py --count 5 --output my-pairs.json
    python instruction_generation.py --count 5 --output my-pairs.json --url http://localhost:11434 --model llama3

What comes is also written, line by line, to a log beside the output: after a break the same command goes on.
"""

import contextlib
import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from instructions import CHAT_URL, ask_server
from local_server import create_server
from previous_chapters import OneLineParser, int_at_least, read_text
from tqdm import tqdm

# How a user's turn begins in the chat template of a model, everything before it included: where the model goes on from here, it
# writes what a user would. Ollama itself adds the token that begins a text.
OPENINGS = {
    "smollm2": "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n<|im_start|>user\n",
    "llama3": "<|start_header_id|>user<|end_header_id|>\n\n",
}
INVENT = {"temperature": 0.8, "top_p": 0.9, "num_ctx": 2048, "num_predict": 48}  # a new request each time
ANSWER = {"temperature": 0.0, "num_ctx": 2048, "num_predict": 256}  # the likeliest answer
SEEDS_PER_PAIR = 100  # pair number n takes the seeds from seed + 100 n on, one for each attempt


# ---- asking ----


def query_model(prompt: str, model: str = "llama3", url: str = CHAT_URL, role: str = "user", options: dict | None = None) -> str:
    """Return the answer to one message, at temperature 0 unless options say otherwise; the rest as in chapter 7. Section 2."""
    options = {"seed": 123, **(ANSWER if options is None else options)}  # Ollama ignores them anywhere but in the field `options`
    return ask_server(url, {"model": model, "messages": [{"role": role, "content": prompt}], "options": options}).strip()


def opening_of(model: str) -> str:
    """Return the opening of a user's turn for a model of OPENINGS; ValueError names those. Section 1."""
    found = next((opening for name, opening in OPENINGS.items() if model.startswith(name)), None)
    if found is None:
        raise ValueError(f"the opening of a user's turn is not known for {model!r}, only for {', '.join(OPENINGS)}: add it to OPENINGS")
    return found


def invent_request(seed: int, model: str = "llama3", url: str = CHAT_URL, options: dict | None = None) -> str:
    """Return what the model writes behind the opening of a user's turn, and nothing else. Section 1."""
    options = {**(INVENT if options is None else options), "seed": seed}
    body = {"model": model, "prompt": opening_of(model), "raw": True, "options": options}  # raw: the server adds no template
    return ask_server(url.replace("/api/chat", "/api/generate"), body)


def extract_instruction(text: str | None) -> str | None:
    """Return the first line that is not empty, None if there is none. Section 3."""
    lines = (line.strip() for line in (text or "").splitlines())
    return next((line for line in lines if line), None)


# ---- what is worth keeping ----


def plain(text: str) -> str:
    """Return a text in lower case, letters and digits alone, for comparisons. Section 3."""
    return " ".join("".join(letter if letter.isalnum() else " " for letter in text.lower()).split())


def fault_of_instruction(instruction: str | None, known: set[str]) -> str:
    """Name why a request is not kept, or return "". known: the plain texts of those that are. Section 3."""
    if instruction is None or not plain(instruction):
        return "empty"
    if "<|" in instruction or instruction.startswith(("#", "`", "<", "{")):
        return "no sentence"  # template tokens, code, headings
    if len(instruction.split()) < 3:
        return "too short"
    if not instruction.endswith((".", "?", "!")):
        return "cut off"
    return "repeated" if plain(instruction) in known else ""


def fault_of_output(instruction: str, output: str | None) -> str:
    """Name why an answer is not kept, or return "". Section 3."""
    if output is None or not plain(output):
        return "no answer"
    if output[-1] not in ".?!)]\"'”’`":
        return "answer cut off"  # a model that is tuned on it learns to stop in the middle of a sentence
    words = [word for word in plain(output).split() if not word.isdigit()]
    runs = Counter(zip(words, words[1:], words[2:], words[3:]))  # of four words
    if max(runs.values(), default=0) >= 4:
        return "loop"
    return "parroted" if plain(output) == plain(instruction) else ""


# ---- the loop ----


def generate_pair(
    number: int, invent: Callable[[int], str], answer: Callable[[str], str], known: set[str], seed: int = 123, attempts: int = 3
) -> dict:
    """Return {"number", "instruction", "output", "faults"}, without the middle two if no attempt was good enough. Section 4.

    A bad request costs no answer: it is thrown away before the model is asked.
    """
    faults = []
    for attempt in range(attempts):
        instruction = extract_instruction(invent(seed + SEEDS_PER_PAIR * number + attempt))
        fault = fault_of_instruction(instruction, known)
        if not fault:
            output = (answer(instruction) or "").strip()
            fault = fault_of_output(instruction, output)
        if not fault:
            return {"number": number, "instruction": instruction, "output": output, "faults": faults}
        faults.append(fault)
    return {"number": number, "faults": faults}


def read_log(log_file: str | Path) -> list[dict]:
    """Return the lines of a log in order, one that was cut off in the middle left out. Section 4."""
    lines = []
    if Path(log_file).exists():
        for line in read_text(log_file).splitlines():
            with contextlib.suppress(ValueError):
                if isinstance(row := json.loads(line), dict) and row.get("number") == len(lines):
                    lines.append(row)
    return lines


def generate_pairs(
    count: int, invent: Callable, answer: Callable, log_file: str | Path, seed: int = 123, attempts: int = 3
) -> tuple[list[dict], Counter]:
    """Return (pairs with instruction and output, faults found on the way), count numbers in all. Section 4.

    Each number is written to log_file at once, and those of that file are not made again: call it again after a break. The
    pairs are those of a run without a break. A number that fails in all attempts is skipped, and counted as "skipped".
    """
    rows = read_log(log_file)[:count]
    known = {plain(row["instruction"]) for row in rows if "instruction" in row}
    Path(log_file).parent.mkdir(parents=True, exist_ok=True)
    with Path(log_file).open("a", encoding="utf-8") as log:
        log.write("\n" if log.tell() else "")  # a line that was cut off ends here
        for number in tqdm(range(len(rows), count), desc="generating", unit="pair", initial=len(rows), total=count, disable=None):
            row = generate_pair(number, invent, answer, known, seed, attempts)
            log.write(json.dumps(row, ensure_ascii=False) + "\n")
            log.flush()
            rows.append(row)
            known |= {plain(row["instruction"])} if "instruction" in row else set()
    pairs = [{"instruction": row["instruction"], "output": row["output"]} for row in rows if "instruction" in row]
    faults = Counter(fault for row in rows for fault in row["faults"])
    return pairs, faults + Counter(skipped=count - len(pairs))


def save_pairs(pairs: list[dict], path: str | Path) -> None:
    """Write pairs as a JSON list, whole or not at all. Section 4."""
    part = Path(path).with_name(f"{Path(path).name}.part")
    part.write_text(json.dumps(pairs, indent=1, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")
    part.replace(path)


# ---- command line ----


@contextlib.contextmanager
def server_at(url: str | None):
    """Give the address for `query_model`: that of the server at url, else of the course's own, which runs until the `with` ends."""
    if url is not None:
        yield url.rstrip("/").removesuffix("/api/chat") + "/api/chat"
        return
    with create_server(port=0) as server:
        yield f"{server.start()}/api/chat"


def main(argv: list[str] | None = None) -> int:
    """Command line; returns 0, or exits with code 2 and one line on bad input."""
    parser = OneLineParser("Let a chat model invent requests and answer them.")
    parser.add_argument("--count", type=int_at_least(1), default=5, help="how many pairs to try for")
    parser.add_argument("--output", required=True, help="JSON file of the pairs; a log ending in .log.jsonl lies beside it")
    parser.add_argument("--url", help="address of Ollama, such as http://localhost:11434; None: the course's server, started here")
    parser.add_argument("--model", default="smollm2:135m", help="the model that invents and answers")
    parser.add_argument("--attempts", type=int_at_least(1), default=3, help="tries for each pair")
    parser.add_argument("--seed", type=int, default=123, help="random seed")
    args = parser.parse_args(argv)
    made_with = f"{args.model.replace(':', '-').replace('/', '-')}-{args.seed}"  # what another model or seed makes goes elsewhere
    log_file = Path(args.output).with_suffix(f".{made_with}.log.jsonl")
    try:
        opening_of(args.model)
        with server_at(args.url) as url:
            how = (lambda seed: invent_request(seed, args.model, url), lambda text: query_model(text, args.model, url))
            pairs, faults = generate_pairs(args.count, *how, log_file, args.seed, args.attempts)
        if not pairs:
            raise ValueError(f"no pair is worth keeping: {dict(faults)}; {log_file} has the details")
        save_pairs(pairs, args.output)
    except (ValueError, OSError) as error:
        parser.error(" ".join(str(error).split()))
    except KeyboardInterrupt:
        parser.exit(130, f"stopped; the same command goes on from {log_file}\n")
    print(f"{len(pairs)} pairs in {args.output}; thrown away on the way: {dict(faults)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
