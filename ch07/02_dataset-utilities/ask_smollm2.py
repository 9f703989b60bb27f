"""How instruction-examples-smollm2.json was made: SmolLM2-135M-Instruct, asked for the other voice of all 200 answers.

    python ask_smollm2.py --limit 5 --output try.json      (a try of five entries)

The prompts are those that the notebook sends to a service. Answers are greedy and at most 50 tokens long. Section 5.
"""

import json
import sys
from pathlib import Path

import torch
from instructions import read_list
from llama import generate_text_basic_stream, load_smollm2
from previous_chapters import OneLineParser, int_at_least, pick_device
from second_outputs import build_prompt
from tqdm import tqdm

FOLDER = Path(__file__).resolve().parent


def answer_batch(model, tokenizer, prompts: list[str], device: torch.device, max_new_tokens: int = 50) -> list[str]:
    """Return the model's greedy answers; the shorter prompts are padded at the left, so that all answers begin together."""
    encoded = [tokenizer.encode_chat([{"role": "user", "content": prompt}]) for prompt in prompts]
    longest, pad = max(map(len, encoded)), tokenizer.eos_token_id
    ids = torch.tensor([[pad] * (longest - len(row)) + row for row in encoded], device=device)  # (b, num_tokens)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in encoded], device=device)  # (b, num_tokens)
    steps = list(generate_text_basic_stream(model, ids, max_new_tokens, pad, mask))
    rows = torch.cat(steps, dim=1).tolist() if steps else [[] for _ in prompts]
    return [tokenizer.decode([number for number in row if number != pad]).strip() for row in rows]


def main(argv: list[str] | None = None) -> int:
    """Command line; see the top of the file."""
    parser = OneLineParser("Ask SmolLM2-135M-Instruct for the other voice of each answer.")
    parser.add_argument("--json_file", default=str(FOLDER / "instruction-examples.json"), help="entries with an output")
    parser.add_argument("--output", default=str(FOLDER / "instruction-examples-smollm2.json"), help="file to write")
    parser.add_argument("--limit", type=int_at_least(1), help="ask about the first N entries only")
    parser.add_argument("--batch_size", type=int_at_least(1), default=20, help="prompts answered together")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    args = parser.parse_args(argv)
    try:
        entries = read_list(args.json_file)[: args.limit]
        if not entries or not all(isinstance(entry.get("output"), str) for entry in entries):
            raise ValueError(f"{args.json_file} must be a list of entries that all have an output")
        device = pick_device(args.device)
        model, tokenizer = load_smollm2()
        model.to(device)
        answered = []
        for first in tqdm(range(0, len(entries), args.batch_size), unit="batch", disable=None):
            batch = entries[first : first + args.batch_size]
            answers = answer_batch(model, tokenizer, [build_prompt(entry) for entry in batch], device)
            answered += [{**entry, "output_2": answer} for entry, answer in zip(batch, answers)]
        Path(args.output).write_text(json.dumps(answered, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(f"{len(answered)} entries with output_2 in {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
