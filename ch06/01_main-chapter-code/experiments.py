"""What decides how well a small GPT finds spam? Five ways to train, three to six splits each; the notebook draws the log.

    python experiments.py                        # half an hour on one core; writes experiments-log.jsonl
    python experiments.py --seeds 123 --num_epochs 1 --output try.jsonl

No text stands in two parts of a split, and the seed decides split, head and order. Ways: `pretrained` is the chapter's own,
`random` starts without pretraining, `last_column` reads the last position, padding or not, `all_plain` trains on all messages
instead of as many ham as spam, `all_weighted` on all with a weight for each class. Every model is tested on the balanced test
messages and on all of them, about one in nine being spam.
"""

import argparse
import json
import platform
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch
import torch.nn as nn
from gpt_class_finetune import CLASSIFIER_SIZES, add_classification_head, last_token_logits, measuring
from previous_chapters import MODELS_DIR, GPTModel, OneLineParser, adamw, gpt2_tokenizer, int_at_least, load_pretrained_gpt
from spam_data import LABELS, SpamDataset, collate_trimmed, create_balanced_dataset, load_spam_messages, random_split, without_repeats
from torch.utils.data import DataLoader
from tqdm import tqdm

LOG_FILE = Path(__file__).resolve().parent / "experiments-log.jsonl"
SIX, THREE = [123, 124, 125, 126, 127, 128], [123, 124, 125]
WAYS = {"pretrained": SIX, "random": SIX, "last_column": THREE, "all_plain": THREE, "all_weighted": THREE}  # and their seeds
PAD_TOKEN_ID = 50256
NO_TOKEN_ID = -1  # taken for the padding's id, it makes every position count as text: the last column is read
PADDED_LENGTHS = [60, 90, 120, 150, 180, 204]


def split_messages(seed: int, folder: Path) -> dict[str, Path]:
    """Write one split as CSV files and return their paths by name: train, validation and test, balanced and with the rest of the ham.

    Both kinds are split 70 : 10 : 20, and no text stands in two of the parts.
    """
    messages = without_repeats(load_spam_messages()).sample(frac=1, random_state=seed)
    balanced = create_balanced_dataset(messages)
    other_ham = messages.drop(balanced.index)
    files = {}
    for name, part, ham in zip(("train", "validation", "test"), random_split(balanced, 0.7, 0.1), random_split(other_ham, 0.7, 0.1)):
        for kind, frame in (("balanced", part), ("all", pd.concat([part, ham]))):
            files[f"{kind} {name}"] = folder / f"{kind}-{name}.csv"
            frame.assign(Label=frame["Label"].map(LABELS)).to_csv(files[f"{kind} {name}"], index=False)
    return files


def train(model: GPTModel, loader: DataLoader, num_epochs: int, weights: torch.Tensor | None, pad_token_id: int, bar: tqdm) -> None:
    """Train the classifier as the chapter does, with a weight for each class (num_classes) if given."""
    optimizer = adamw(model, CLASSIFIER_SIZES["laptop"]["lr"], 0.1, torch.device("cpu"))
    model.train()
    for _ in range(num_epochs):
        for input_batch, labels in loader:
            optimizer.zero_grad()
            logits = last_token_logits(model, input_batch, pad_token_id)  # (b, num_classes)
            nn.functional.cross_entropy(logits, labels, weight=weights).backward()
            optimizer.step()
            bar.update()


def spam_probabilities(model: GPTModel, dataset: SpamDataset, pad_token_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the probability of spam (num_texts) and the labels (num_texts)."""
    trimmed = None if pad_token_id == NO_TOKEN_ID else collate_trimmed
    probabilities, labels = [], []
    with measuring(model):
        for input_batch, batch_labels in DataLoader(dataset, batch_size=32, collate_fn=trimmed):
            logits = last_token_logits(model, input_batch, pad_token_id)  # (b, num_classes)
            probabilities.append(torch.softmax(logits, dim=-1)[:, 1])
            labels.append(batch_labels)
    return torch.cat(probabilities), torch.cat(labels)


def measure(model: GPTModel, dataset: SpamDataset, pad_token_id: int = PAD_TOKEN_ID) -> dict:
    """Return the four counts of the confusion table at the threshold 0.5, and the accuracy."""
    probabilities, labels = spam_probabilities(model, dataset, pad_token_id)  # (num_texts), (num_texts)
    called_spam = probabilities > 0.5
    counts = {
        "spam_found": int((called_spam & (labels == 1)).sum()),
        "spam_missed": int((~called_spam & (labels == 1)).sum()),
        "ham_lost": int((called_spam & (labels == 0)).sum()),
        "ham_kept": int((~called_spam & (labels == 0)).sum()),
    }
    return {**counts, "accuracy": round((counts["spam_found"] + counts["ham_kept"]) / len(labels), 4)}


def run(way: str, seed: int, num_epochs: int, folder: Path) -> dict:
    """Train one way on one split and return what the log keeps of it."""
    files, tokenizer = split_messages(seed, folder), gpt2_tokenizer()
    torch.manual_seed(seed)
    model, gpt_config = load_pretrained_gpt({}, CLASSIFIER_SIZES["laptop"]["choose_model"], MODELS_DIR)
    if way == "random":
        model = GPTModel(gpt_config)
    torch.manual_seed(seed)
    add_classification_head(model)
    pad_token_id = NO_TOKEN_ID if way == "last_column" else PAD_TOKEN_ID
    training_file = files["all train" if way.startswith("all") else "balanced train"]
    max_length = min(SpamDataset(training_file, tokenizer).max_length, gpt_config["context_length"])
    data = {name: SpamDataset(path, tokenizer, max_length) for name, path in files.items()}
    training_set = data["all train" if way.startswith("all") else "balanced train"]
    counts = torch.bincount(torch.tensor(training_set.labels)).float()  # (num_classes)
    weights = counts.sum() / (len(counts) * counts) if way == "all_weighted" else None  # the rarer class counts more
    untrained = measure(model, data["balanced test"], pad_token_id)["accuracy"]
    loader = DataLoader(training_set, 8, shuffle=True, drop_last=True, collate_fn=None if way == "last_column" else collate_trimmed)
    start = time.perf_counter()
    with tqdm(total=num_epochs * len(loader), desc=f"{way} {seed}", mininterval=1) as bar:
        train(model, loader, num_epochs, weights, pad_token_id, bar)
    seconds = round(time.perf_counter() - start, 1)
    result = {"way": way, "seed": seed, "num_epochs": num_epochs, "training_texts": len(training_set), "max_length": max_length}
    result |= {"seconds": seconds, "untrained_accuracy": untrained}
    result |= {name: measure(model, data[name], pad_token_id) for name in ("balanced validation", "balanced test", "all test")}
    if way in ("pretrained", "last_column"):
        padded = {length: SpamDataset(files["balanced test"], tokenizer, length) for length in PADDED_LENGTHS}
        result["accuracy_by_padded_length"] = {n: measure(model, dataset, pad_token_id)["accuracy"] for n, dataset in padded.items()}
    return result


def main(argv: list[str] | None = None) -> int:
    """Command line; returns 0, or exits with code 2 and one line on bad input."""
    parser = OneLineParser("Train a spam classifier in five ways, each on several splits, and log what comes out.")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="ways to train")
    parser.add_argument("--seeds", type=int, nargs="+", help="one run for each; None: six for pretrained and random, three for the others")
    parser.add_argument("--num_epochs", type=int_at_least(1), default=5, help="passes over the training messages")
    parser.add_argument("--output", default=str(LOG_FILE), help="log; runs that stand in it are not repeated")
    parser.add_argument("--start_again", action=argparse.BooleanOptionalAction, default=False, help="empty the log first")
    args = parser.parse_args(argv)
    log = Path(args.output)
    try:
        lines = [] if args.start_again or not log.exists() else [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
        if not lines:
            machine = {"python": platform.python_version(), "torch": torch.__version__, "threads": torch.get_num_threads()}
            lines = [{**machine, "pandas": pd.__version__, "cpu_capability": torch.backends.cpu.get_cpu_capability()}]
            log.write_text(json.dumps(lines[0]) + "\n", encoding="utf-8")
        done = {(line["way"], line["seed"]) for line in lines[1:]}
        for way in args.ways:
            for seed in args.seeds or WAYS[way]:
                if (way, seed) not in done:
                    with tempfile.TemporaryDirectory() as folder:
                        result = run(way, seed, args.num_epochs, Path(folder))
                    with log.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(result) + "\n")
                    print(f"{way} {seed}: accuracy {result['balanced test']['accuracy']:.1%} on balanced test messages")
    except (ValueError, OSError) as error:
        parser.error(" ".join(str(error).split()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
