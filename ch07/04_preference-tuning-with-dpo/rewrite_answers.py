"""Pairs by rewriting: a language model puts a right answer into a more polite or a ruder form, and a program looks at what came back.

create-preference-data-ollama.ipynb explains this file and asks a small model for a few rewrites. Any server that speaks Ollama's
protocol will do: Ollama itself, or local_server.py of this folder.

    ollama pull llama3.1:70b                                    # once: 39 GB
    python rewrite_answers.py --output my-pairs.json            # Ollama on this machine, where OLLAMA_HOST says, or at --url
    python rewrite_answers.py --model llama3.2 --limit 20 --output try.json
"""

import json
import random
import re
import sys
from collections import Counter
from pathlib import Path

from instructions import DATA_FILE, default_url, load_data, query_model, question_of
from preference_batches import SIDES
from previous_chapters import OneLineParser, int_at_least, positive_float
from tone import MOST_ADDED, right_in_any_tone, with_checks
from tqdm import tqdm

MANNERS = {"polite": "more polite and friendly", "impolite": "ruder and more impatient"}


def rewrite_prompt(entry: dict, manner: str) -> str:
    """Return the request to put the answer to an entry into another manner, "polite" or "impolite". Section 2."""
    return (
        f"Below are a question and a correct answer. Rewrite the answer so that it is slightly {MANNERS[manner]}. "
        "Keep its facts, numbers, and quotations. Add one short sentence at most. Reply with the new answer and nothing else.\n\n"
        f"Question: {question_of(entry)}\n\nAnswer: {entry['output']}"
    )


def toss_manners(number: int, seed: int = 123) -> list[str]:
    """Return polite or impolite for each entry, all of them tossed at once: asking again, or in another order, changes none. Section 2."""
    coin = random.Random(seed)
    return [coin.choice(list(MANNERS)) for _ in range(number)]


def as_pair(entry: dict, manner: str, rewrite: str) -> dict:
    """Return a new entry with `chosen` and `rejected`: a polite rewrite is chosen over the output, an impolite one rejected. Section 2."""
    better, worse = (rewrite, entry["output"]) if manner == "polite" else (entry["output"], rewrite)
    return {**entry, **dict(zip(SIDES, (better, worse)))}


def generate_model_responses(
    json_data: list[dict], model: str = "llama3.1:70b", url: str | None = None, seed: int = 123, timeout: float = 600
) -> list[dict]:
    """Return the entries as pairs, each with a rewrite that the model of an Ollama server gave; json_data stays as it is. Section 2.

    Raises what query_model raises: OSError or ValueError with one line that says what to do.
    """
    pairs, address = [], url or default_url()
    for entry, manner in zip(tqdm(json_data, desc="rewriting", unit="answers", disable=None), toss_manners(len(json_data), seed)):
        rewrite = query_model(rewrite_prompt(entry, manner), model, address, timeout).strip()
        pairs.append(as_pair(entry, manner, rewrite))
    return pairs


def fault_of(pair: dict) -> str:
    """Name what is wrong with the rewrite in a pair by the rules that this course's own pairs keep, or return "". Section 3.

    An entry that carries its `check` is also verified: does an accepted answer stand in the rewrite?
    """
    output, rewrite = pair["output"], pair["chosen"] if pair["rejected"] == pair["output"] else pair["rejected"]
    numbers = [Counter(re.findall(r"\d+(?:[.,:]\d+)*", text)) for text in (output, rewrite)]
    if not rewrite:
        return "empty"
    if " ".join(rewrite.casefold().split()) == " ".join(output.casefold().split()):
        return "copy"
    if numbers[0] - numbers[1]:
        return "lost number"
    if len(rewrite.split()) - len(output.split()) > MOST_ADDED:
        return "rambles"
    if pair.get("check") and not right_in_any_tone(pair["check"], rewrite, question_of(pair)):
        return "lost answer"
    return ""


def main(argv: list[str] | None = None) -> int:
    """Command line; returns 0, or exits with code 2 and one line on bad input."""
    parser = OneLineParser("Let a language model write a more polite or a ruder form of each answer.")
    parser.add_argument("--data", default=str(DATA_FILE), help="JSON list of entries with instruction, input and output")
    parser.add_argument("--model", default="llama3.1:70b", help="the model that rewrites")
    parser.add_argument("--url", help="where it listens; None: Ollama on this machine, or where OLLAMA_HOST says")
    parser.add_argument("--limit", type=int_at_least(1), help="rewrite the first N answers only; None: all")
    parser.add_argument("--seed", type=int, default=123, help="of the coin: polite or impolite")
    parser.add_argument("--timeout", type=positive_float, default=600, help="seconds to wait for one answer: large models are slow")
    parser.add_argument("--output", required=True, help="JSON file for the pairs")
    args = parser.parse_args(argv)
    try:
        if Path(args.output).exists():
            raise ValueError(f"{args.output} exists: name another file")
        data = load_data(args.data)
        entries = (with_checks(data) if Path(args.data) == DATA_FILE else data)[: args.limit]
        pairs = generate_model_responses(entries, args.model, args.url, args.seed, args.timeout)
        faults = Counter(fault_of(pair) or "nothing found" for pair in pairs)
        kept = [{key: value for key, value in pair.items() if key != "check"} for pair in pairs]
        Path(args.output).write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")
    except (ValueError, OSError) as error:
        parser.error(" ".join(str(error).split()))
    except KeyboardInterrupt:
        parser.exit(130, "stopped; nothing is written\n")
    print(f"{len(pairs)} pairs in {args.output}; what a program found: {', '.join(f'{name} {count}' for name, count in faults.items())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
