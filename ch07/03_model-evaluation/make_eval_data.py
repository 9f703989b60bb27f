"""How eval-example-data.json was made: one model asked twice, before and after fine-tuning on the chapter's training data.

The stored file was made with the first edition of that data; this program reads the data as it is now.

    python make_eval_data.py                      # 25 minutes on 2 slow cores, less on a GPU
    python make_eval_data.py --limit 8 --output try.json --log try.jsonl

Model 2 is SmolLM2-135M-Instruct as published. Model 1 is the same model after its upper 15 blocks were trained on the 935
training entries of instruction-data.json, so it has never seen the 100 test entries that both answer here. Answers are
greedy and at most 50 tokens long; seeds are fixed.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from instructions import DATA_FILE
from llama import generate_text_basic_stream, load_smollm2
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
TRAIN, TEST = slice(0, 935), slice(935, 1035)  # the chapter's split: training entries, and the first 100 of the test entries
IGNORE = -100


def question(entry: dict) -> list[dict]:
    """The chat message that asks for an entry's output."""
    return [{"role": "user", "content": entry["instruction"] + ("\n\n" + entry["input"] if entry["input"] else "")}]


def encode(entry: dict, tokenizer) -> tuple[list[int], list[int]]:
    """(inputs, targets) of one training entry, shifted by one; targets of the question are IGNORE."""
    prompt = tokenizer.encode_chat(question(entry))
    answer = [*tokenizer.encode(entry["output"]), tokenizer.eos_token_id]
    ids = prompt + answer
    return ids[:-1], [IGNORE] * (len(prompt) - 1) + answer


def make_batches(entries, tokenizer, batch_size, generator):
    """One epoch: batches of entries of similar length, in random order, padded at the right: pairs of (b, num_tokens)."""
    encoded = sorted((encode(entry, tokenizer) for entry in entries), key=lambda pair: len(pair[0]))
    groups = [encoded[i : i + batch_size] for i in range(0, len(encoded), batch_size)]
    for i in torch.randperm(len(groups), generator=generator).tolist():
        longest = max(len(inputs) for inputs, _ in groups[i])
        inputs = torch.tensor([pair[0] + [0] * (longest - len(pair[0])) for pair in groups[i]])  # (b, num_tokens)
        targets = torch.tensor([pair[1] + [IGNORE] * (longest - len(pair[1])) for pair in groups[i]])  # (b, num_tokens)
        yield inputs, targets


def fine_tune(model, tokenizer, entries, args, device):
    """Train the upper 15 blocks and the final norm on the answers; returns one dict a step (step, loss, seconds)."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    trained = [*model.trf_blocks[-15:], model.final_norm]
    parameters = [parameter for part in trained for parameter in part.requires_grad_(True).parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=args.lr, weight_decay=0.01)
    generator, log, started = torch.Generator().manual_seed(args.seed), [], time.perf_counter()
    num_steps = args.epochs * -(-len(entries) // args.batch_size)
    with tqdm(total=num_steps, unit="step", disable=None) as bar:
        for _ in range(args.epochs):
            for inputs, targets in make_batches(entries, tokenizer, args.batch_size, generator):
                rate = args.lr * min(1.0, (len(log) + 1) / 20) * (1 - len(log) / num_steps)  # short warm-up, then down to 0
                optimizer.param_groups[0]["lr"] = rate
                loss = F.cross_entropy(model(inputs.to(device)).flatten(0, 1), targets.to(device).flatten(), ignore_index=IGNORE)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                optimizer.zero_grad()
                log.append({"step": len(log) + 1, "loss": round(loss.item(), 4), "seconds": round(time.perf_counter() - started, 1)})
                bar.set_postfix(loss=log[-1]["loss"])
                bar.update()
    return log


def answer_all(model, tokenizer, entries, device, batch_size=20, max_new_tokens=50) -> list[str]:
    """Greedy answers to all entries, in batches padded at the left."""
    answers, pad = [], tokenizer.eos_token_id
    for i in range(0, len(entries), batch_size):
        prompts = [tokenizer.encode_chat(question(entry)) for entry in entries[i : i + batch_size]]
        longest = max(map(len, prompts))
        ids = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in prompts], device=device)  # (b, num_tokens)
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
        steps = list(generate_text_basic_stream(model, ids, max_new_tokens, tokenizer.eos_token_id, mask))
        rows = torch.cat(steps, dim=1).tolist() if steps else [[]] * len(prompts)
        answers += [tokenizer.decode([number for number in row if number != pad]).strip() for row in rows]
    return answers


def build_parser():
    parser = argparse.ArgumentParser(description="Answers of a weak and a stronger model to 100 test entries.", allow_abbrev=False)
    parser.add_argument("--epochs", type=int, default=3, help="passes over the training entries (default: %(default)s)")
    parser.add_argument("--batch_size", type=int, default=8, help="entries in a batch (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=2e-4, help="highest learning rate (default: %(default)s)")
    parser.add_argument("--limit", type=int, help="train on and answer only so many entries (for a try)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--seed", type=int, default=123)
    parser.add_argument("--output", type=Path, default=HERE / "eval-example-data.json")
    parser.add_argument("--log", type=Path, default=HERE / "eval-example-data-log.jsonl")
    return parser


def main(argv=None) -> None:
    """Ask, fine-tune, ask again, and save both sets of answers."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if min(args.epochs, args.batch_size, 1 if args.limit is None else args.limit) < 1 or args.lr <= 0:
        parser.exit(2, "make_eval_data.py: error: --epochs, --batch_size, --limit and --lr must be above 0\n")
    try:
        data = json.loads(DATA_FILE.read_text(encoding="utf-8"))
        model, tokenizer = load_smollm2()
    except (OSError, ValueError) as error:
        parser.exit(2, f"make_eval_data.py: error: {error}\n")
    torch.manual_seed(args.seed)
    device = torch.device("cuda" if args.device != "cpu" and torch.cuda.is_available() else "cpu")
    model.to(device)
    train, test = data[TRAIN][: args.limit], data[TEST][: args.limit]
    before = answer_all(model, tokenizer, test, device)
    log = fine_tune(model, tokenizer, train, args, device)
    after = answer_all(model, tokenizer, test, device)
    results = [
        {**entry, "model 1 response": stronger, "model 2 response": weaker}
        for entry, stronger, weaker in zip(test, after, before, strict=True)
    ]
    args.output.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    args.log.write_text("".join(json.dumps(line) + "\n" for line in log), encoding="utf-8")
    print(f"{len(results)} entries in {args.output}, last losses {[line['loss'] for line in log[-3:]]}")


if __name__ == "__main__":
    sys.exit(main())
