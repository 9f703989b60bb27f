"""Two ideas that might teach gpt2-mini a rule, tried: set the equal rows of its embedding apart, and practice copying.

37,066 of its 50,257 token embeddings are one and the same row, because no text that it was trained on has these tokens. So it
cannot tell them from each other. `apart` moves them with random numbers before the tuning; `copying` adds tasks like "Repeat
these words: ..." over words that it has met. Section 7.7.6 of ch07.ipynb reads the log.

Run it:  python tuning_experiments.py --way apart_and_copying --log tuning-experiments-log.jsonl
"""

import json
import random
import re
import sys

import torch
from gpt_instruction_finetuning import INSTRUCTION_SIZES, TEST_CONFIG, answer_entries, train_on_answers
from instruction_batches import create_loaders, split_data
from instruction_data_checks import GROUPS, load_data, load_verifiable_test, question_of, verify, well_formed
from previous_chapters import (
    MODELS_DIR,
    GPTModel,
    OneLineParser,
    adamw,
    gpt2_tokenizer,
    int_at_least,
    load_pretrained_gpt,
    pick_device,
)
from tqdm import tqdm

WAYS = ("plain", "apart", "copying", "apart_and_copying")
REQUESTS = ("Repeat these words: {}", "Copy this text: {}", 'Write "{}" once more.')


def unmet_tokens(model: GPTModel) -> torch.Tensor:
    """Return for each token (vocab_size) whether its embedding is the one that the most tokens share. Section 7.7.6."""
    table = model.tok_emb.weight.data  # (vocab_size, emb_dim)
    rows, counts = torch.unique(table, dim=0, return_counts=True)  # (num_different, emb_dim), (num_different)
    return (table == rows[counts.argmax()]).all(dim=1)  # (vocab_size)


def set_apart(model: GPTModel, unmet: torch.Tensor, scale: float = 1.0) -> None:
    """Add random numbers, with `scale` times the spread of the met rows, to the unmet rows of the input. Section 7.7.6."""
    table = model.tok_emb.weight.data  # (vocab_size, emb_dim)
    noise = torch.randn(int(unmet.sum()), table.shape[1])  # (num_unmet, emb_dim)
    table[unmet] += scale * table[~unmet].std() * noise.to(table.device)


def copying_tasks(unmet: torch.Tensor, tokenizer, count: int, seed: int) -> list[dict]:
    """Return `count` entries that ask to repeat one to four words, each a single token that the model has met. Section 7.7.6."""
    words = [tokenizer.decode([token_id]) for token_id in (~unmet).nonzero().flatten().tolist()]
    words, draw, entries = [word.strip() for word in words if re.fullmatch(" [a-z]{3,9}", word)], random.Random(seed), []
    for number in range(count):
        text = " ".join(draw.sample(words, draw.randint(1, 4)))
        entries.append({"instruction": REQUESTS[number % len(REQUESTS)].format(text), "input": "", "output": text})
    return entries


def marks(questions: list[dict], answers: list[str], ended: list[bool]) -> dict[str, dict]:
    """Return for each group, and for its questions of met tokens alone: how many there are, ended, well formed, right. Section 7.7.6."""
    rows = {}
    for question, answer, over in zip(questions, answers, ended):
        right = verify(question["check"], answer, question_of(question))
        for name in (question["group"], *([f"{question['group']}, met"] if question["known"] else [])):
            counts = rows.setdefault(name, {"of": 0, "ended": 0, "well_formed": 0, "right": 0})
            counts["of"] += 1
            counts["ended"] += over
            counts["well_formed"] += over and well_formed(question["check"], answer)
            counts["right"] += right
    return {name: rows[name] for name in sorted(rows, key=lambda name: GROUPS.index(name.split(",")[0]))}


def run(way: str, settings: dict) -> dict:
    """Tune once and return what the log keeps. Section 7.7.6."""
    size, tokenizer, device = INSTRUCTION_SIZES["laptop"], gpt2_tokenizer(), pick_device(settings["device"])
    train_data, _, val_data = split_data(load_data())
    questions, epochs = load_verifiable_test(), settings["num_epochs"] or size["num_epochs"]
    torch.manual_seed(settings["seed"])
    if settings["test_mode"]:
        model, cfg, train_data, val_data, questions = GPTModel(TEST_CONFIG), TEST_CONFIG, train_data[:8], val_data[:8], questions[::60]
        model.tok_emb.weight.data[100:] = model.tok_emb.weight.data[100]
    else:
        model, cfg = load_pretrained_gpt({}, size["choose_model"], settings["models_dir"])
    unmet = unmet_tokens(model)
    if way.startswith("apart"):
        set_apart(model, unmet)
    if way.endswith("copying"):
        train_data = train_data + copying_tasks(unmet, tokenizer, 8 if settings["test_mode"] else settings["copies"], settings["seed"])
    model.to(device)
    torch.manual_seed(settings["seed"])
    loaders = create_loaders(train_data, val_data, tokenizer, 8, cfg["context_length"], device)
    updates = epochs * len(loaders[0])
    with tqdm(total=updates, desc=way, unit="updates", mininterval=1, file=sys.stderr) as bar:
        train_losses, *_ = train_on_answers(
            model, *loaders, adamw(model, size["lr"], 0.1, device), epochs, max(1, updates // 4), 5, bar.update
        )
    answers, ended = answer_entries(model, questions, tokenizer, device, 4 if settings["test_mode"] else 60)
    return {
        "way": way, "seed": settings["seed"], "num_epochs": epochs, "learning_rate": size["lr"], "entries": len(train_data),
        "updates": updates, "train_loss": round(train_losses[-1], 3), "marks": marks(questions, answers, ended),
    }  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Command line; returns 0, or exits with code 2 and one line on bad input."""
    parser = OneLineParser("Try to teach gpt2-mini a rule: tell its unmet tokens apart, practice copying.")
    parser.add_argument("--way", choices=WAYS, required=True, help="plain is what the chapter does")
    parser.add_argument("--test_mode", action="store_true", help="a tiny random model and few entries, to see that all runs")
    parser.add_argument("--num_epochs", type=int_at_least(1), help="passes over the training entries; as in the chapter if not given")
    parser.add_argument("--copies", type=int_at_least(1), default=400, help="copying tasks")
    parser.add_argument("--log", help="JSON lines file to which the result is added")
    parser.add_argument("--models_dir", default=str(MODELS_DIR), help="folder of downloaded weights")
    parser.add_argument("--seed", type=int, default=123, help="random seed")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    settings = vars(parser.parse_args(argv))
    try:
        line = json.dumps(run(settings["way"], settings))
        if settings["log"]:
            with open(settings["log"], "a", encoding="utf-8") as file:
                file.write(line + "\n")
    except (ValueError, OSError) as error:
        parser.error(" ".join(str(error).split()))
    print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
