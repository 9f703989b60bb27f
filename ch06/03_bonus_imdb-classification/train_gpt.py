"""Fine-tune a GPT to tell whether a film review is good or bad: gpt2-mini, or a GPT-2 whose weights are at hand.

Chapter 6 in short: a new head with two outputs, read at the text's last real token, so that padding changes nothing.

Run it:  python download_prepare_dataset.py
         python train_gpt.py --trainable_layers all
"""

import argparse
import sys
from pathlib import Path

import torch
import torch.nn as nn
from classifier import add_classification_head, collate_trimmed, encode_message
from download_prepare_dataset import PARTS, part_file, read_labeled_texts
from previous_chapters import (
    MODELS_DIR,
    SIZES,
    GPTModel,
    OneLineParser,
    config_of,
    find_mini,
    gpt2_tokenizer,
    load_pretrained_gpt,
    pick_device,
    read_settings,
    size_name,
)
from text_training import NUM_CLASSES, POSITIONS, add_training_options, fine_tune
from torch.utils.data import Dataset


class IMDbDataset(Dataset):
    """Texts of a CSV file with columns text and label (0 or 1): item i is (token ids (max_length), label ()), int64.

    Texts are cut or padded with pad_token_id to max_length, by default that of the longest. ValueError for a max_length below 1.
    """

    def __init__(self, csv_file: str | Path, tokenizer, max_length: int | None = None, pad_token_id: int = 50256):
        if max_length is not None and max_length < 1:
            raise ValueError(f"max_length must be at least 1, got {max_length}")
        self.data = read_labeled_texts(csv_file)
        self.labels = self.data["label"].tolist()
        self.encoded_texts = [encode_message(text, tokenizer, max_length) for text in self.data["text"]]
        self.max_length = max_length or max(1, max(len(ids) for ids in self.encoded_texts))
        self.pad_token_id = pad_token_id

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        ids = self.encoded_texts[index]
        padded = ids + [self.pad_token_id] * (self.max_length - len(ids))
        return torch.tensor(padded), torch.tensor(self.labels[index])

    def __len__(self) -> int:
        return len(self.data)


def instantiate_model(choose_model: str, load_weights: bool, models_dir: str | Path = MODELS_DIR) -> GPTModel:
    """Return a GPT with a new head of two classes and every layer trainable: "mini", "124M", ..., or "gpt2-small (124M)".

    Without load_weights all its weights are random. Raises ValueError or OSError, in one line, for weights that are not to be had.
    """
    if load_weights:
        model, _ = load_pretrained_gpt({}, choose_model, models_dir)
    else:
        size = size_name(choose_model)
        settings = read_settings(find_mini(models_dir) / "config.json") if size == "mini" else SIZES[size]
        model = GPTModel({"drop_rate": 0.0, **config_of(settings)})
    add_classification_head(model, NUM_CLASSES)
    choose_trainable(model, "all")
    return model


def choose_trainable(model: nn.Module, trainable_layers: str) -> None:
    """Let "all" layers train, or the "last_block" with the final norm and the head, or the "last_layer", the head alone."""
    parts = {"all": [model], "last_block": [model.trf_blocks[-1], model.final_norm, model.out_head], "last_layer": [model.out_head]}
    model.requires_grad_(False)
    for part in parts[trainable_layers]:
        part.requires_grad_(True)


def main(argv: list[str] | None = None) -> int:
    """Command line; returns 0, or exits with code 2 and one line on bad input."""
    parser = OneLineParser("Fine-tune a GPT on film reviews.")
    parser.add_argument("--dataset", choices=["reviews", "imdb"], default="reviews", help="which CSV files of data_dir")
    parser.add_argument("--model_size", choices=["mini", *SIZES], default="mini", help="mini: the course's own gpt2-mini")
    parser.add_argument("--weights", choices=["pretrained", "random"], default="pretrained", help="weights to start from")
    parser.add_argument("--trainable_layers", choices=["all", "last_block", "last_layer"], default="last_block", help="what is trained")
    parser.add_argument("--trainable_token_pos", choices=POSITIONS, default="flexible", help="read here; flexible: the last real token")
    parser.add_argument("--average_embeddings", action="store_true", help="read the mean over all real tokens instead")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=False, help="compile the model first; meant for a GPU")
    parser.add_argument("--models_dir", type=Path, default=MODELS_DIR, help="folder of downloaded weights")
    add_training_options(parser)
    settings = vars(parser.parse_args(argv))
    settings["learning_rate"] = settings["learning_rate"] or (5e-4 if settings["model_size"] == "mini" else 5e-5)
    reading = {"trainable_token_pos": POSITIONS[settings["trainable_token_pos"]], "average_embeddings": settings["average_embeddings"]}
    try:
        device = pick_device(settings["device"])
        files = [part_file(settings["dataset"], part, settings["data_dir"]) for part in PARTS]
        torch.manual_seed(settings["seed"])
        model = instantiate_model(settings["model_size"], settings["weights"] == "pretrained", settings["models_dir"]).to(device)
        choose_trainable(model, settings["trainable_layers"])
        if settings["context_length"] > model.pos_emb.num_embeddings:
            raise ValueError(f"--context_length {settings['context_length']} is above the model's {model.pos_emb.num_embeddings}")
        datasets = [IMDbDataset(path, gpt2_tokenizer(), settings["context_length"]) for path in files]
        # Read at the last column, the model sees the padding: then every text keeps it, so that its neighbors change nothing.
        collate = None if reading["trainable_token_pos"] == -1 and not settings["average_embeddings"] else collate_trimmed
        if settings["compile"]:
            model = torch.compile(model)
        fine_tune(model, datasets, collate, device, settings, reading)
    except (ValueError, OSError) as error:
        parser.error(" ".join(str(error).split()))
    except KeyboardInterrupt:
        parser.exit(130, "stopped; nothing is kept of an unfinished training\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
