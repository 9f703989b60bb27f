"""Fine-tune a model of the BERT family to tell whether a film review is good or bad, through the library transformers.

The default is all-MiniLM-L6-v2, which arrives by pip. The others are models of the Hugging Face hub: --download fetches them.

A BERT reads a text from both sides, so its first token, [CLS], can say something about all of it: AutoModelForSequenceClassification
puts the classifier there (--pooling cls). MiniLM was made to be read as the mean over all tokens (--pooling mean).

Run it:  python download_prepare_dataset.py
         python train_bert_hf.py
"""

import sys
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn as nn
from download_prepare_dataset import PARTS, part_file, read_labeled_texts
from minilm import minilm_folder
from previous_chapters import OneLineParser, pick_device
from text_training import NUM_CLASSES, add_training_options, fine_tune
from torch.utils.data import Dataset

HUB_MODELS = [
    "distilbert-base-uncased",
    "bert-base-uncased",
    "FacebookAI/roberta-large",
    "microsoft/deberta-v3-base",
    "answerdotai/ModernBERT-base",
    "answerdotai/ModernBERT-large",
]


class IMDbDataset(Dataset):
    """Texts of a CSV file for a BERT: item i is (token ids (max_length), attention mask (max_length), label ()), int64.

    Texts are cut or padded, with the tokenizer's own padding, to max_length, by default that of the longest. The mask is 1 for a
    token and 0 for padding; without use_attention_mask it is 1 everywhere, and the model takes padding for text.
    Raises ValueError for a max_length below 1, and for a pad_token_id that is not the tokenizer's.
    """

    def __init__(
        self,
        csv_file: str | Path,
        tokenizer,
        max_length: int | None = None,
        pad_token_id: int | None = None,
        use_attention_mask: bool = True,
    ):
        if max_length is not None and max_length < 1:
            raise ValueError(f"max_length must be at least 1, got {max_length}")
        if pad_token_id not in (None, tokenizer.pad_token_id):
            raise ValueError(f"the tokenizer pads with id {tokenizer.pad_token_id}, not with {pad_token_id}")
        self.data = read_labeled_texts(csv_file)
        self.labels = self.data["label"].tolist()
        texts = self.data["text"].tolist()
        self.encoded_texts = tokenizer(texts, truncation=max_length is not None, max_length=max_length, padding=False)["input_ids"]
        self.max_length = max_length or max(len(ids) for ids in self.encoded_texts)
        self.pad_token_id, self.use_attention_mask = tokenizer.pad_token_id, use_attention_mask

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        ids = self.encoded_texts[index]
        padding = self.max_length - len(ids)
        mask = [1] * len(ids) + [0 if self.use_attention_mask else 1] * padding
        return torch.tensor(ids + [self.pad_token_id] * padding), torch.tensor(mask), torch.tensor(self.labels[index])

    def __len__(self) -> int:
        return len(self.data)


def make_batch(items: list) -> tuple[dict, torch.Tensor]:
    """Return ({"input_ids", "attention_mask"}, labels) of data set items; columns that the mask hides in every row are cut off."""
    ids, masks, labels = (torch.stack(column) for column in zip(*items))
    longest = int(masks.sum(dim=1).max())
    return {"input_ids": ids[:, :longest], "attention_mask": masks[:, :longest]}, labels


class MeanPooledClassifier(nn.Module):
    """An encoder with a linear head on the mean of its outputs over the tokens that the mask shows."""

    def __init__(self, encoder: nn.Module, num_classes: int = NUM_CLASSES):
        super().__init__()
        self.base_model, self.config = encoder, encoder.config
        if getattr(encoder, "pooler", None) is not None:
            encoder.pooler = None  # it reads [CLS], which nothing asks for here
        self.classifier = nn.Linear(encoder.config.hidden_size, num_classes)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SimpleNamespace:
        hidden = self.base_model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state  # (b, num_tokens, emb_dim)
        shown = attention_mask[:, :, None].to(hidden.dtype)  # (b, num_tokens, 1)
        mean = (hidden * shown).sum(dim=1) / shown.sum(dim=1)  # (b, emb_dim)
        return SimpleNamespace(logits=self.classifier(mean))


def load_bert(name: str, pooling: str = "cls", download: bool = False) -> tuple:
    """Return (tokenizer, classifier with a new head of two classes): "minilm", an id of the hub, or a folder.

    Without `download` only what is on this machine is used. Raises ValueError or OSError, in one line, if it is not there.
    """
    from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, logging

    logging.set_verbosity_error()  # it would warn that the head is new, which is the point
    logging.disable_progress_bar()
    if name != "minilm" and name not in HUB_MODELS and not Path(name).is_dir():
        raise ValueError(f"unknown model {name}: neither a folder nor one of minilm, {', '.join(HUB_MODELS)}")
    place = minilm_folder() if name == "minilm" else name
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=not download)
        if pooling == "mean":
            model = MeanPooledClassifier(AutoModel.from_pretrained(place, local_files_only=not download))
        else:
            model = AutoModelForSequenceClassification.from_pretrained(place, num_labels=NUM_CLASSES, local_files_only=not download)
    except Exception as error:  # the library raises many kinds, some with a page of text
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        advice = "" if download or name not in HUB_MODELS else "; it is not on this machine, --download fetches it"
        raise ValueError(f"cannot load {name}{advice}: {reason}") from None
    return tokenizer, model.float()  # some models are stored in half precision


def choose_trainable(model: nn.Module, trainable_layers: str) -> None:
    """Let "all" layers train, or the "last_layer" alone: all that stands on top of the encoder, its pooler included."""
    model.requires_grad_(True)
    if trainable_layers == "last_layer":
        model.base_model.requires_grad_(False)
        pooler = getattr(model.base_model, "pooler", None)
        if pooler is not None:
            pooler.requires_grad_(True)


def add_bert_options(parser: OneLineParser, num_epochs: int = 1) -> None:
    """Add the options of the scripts that train a model of the BERT family."""
    parser.add_argument("--model", default="minilm", help=f"minilm, which arrives by pip; or {', '.join(HUB_MODELS)}; or a folder")
    parser.add_argument("--download", action="store_true", help="fetch a model of the Hugging Face hub that is not on this machine")
    parser.add_argument("--trainable_layers", choices=["all", "last_layer"], default="all", help="last_layer: what is above the encoder")
    parser.add_argument("--pooling", choices=["cls", "mean"], default="cls", help="classify the first token, or the mean over all")
    parser.add_argument("--use_attention_mask", choices=["true", "false"], default="true", help="false: padding is read like text")
    add_training_options(parser, num_epochs)


def train_on_files(files: list[Path], settings: dict) -> dict:
    """Fine-tune as the options say on the CSV files of training, validation and test; returns what it reached."""
    device = pick_device(settings["device"])
    torch.manual_seed(settings["seed"])  # the head's first weights
    tokenizer, model = load_bert(settings["model"], settings["pooling"], settings["download"])
    limit = min(model.config.max_position_embeddings, tokenizer.model_max_length)
    if settings["context_length"] > limit:
        raise ValueError(f"--context_length {settings['context_length']} is above the model's {limit}")
    choose_trainable(model, settings["trainable_layers"])
    settings["learning_rate"] = settings["learning_rate"] or (5e-5 if settings["model"] == "minilm" else 5e-6)
    use_mask = settings["use_attention_mask"] == "true"
    datasets = [IMDbDataset(path, tokenizer, settings["context_length"], use_attention_mask=use_mask) for path in files]
    return fine_tune(model.to(device), datasets, make_batch, device, settings, {})


def main(argv: list[str] | None = None) -> int:
    """Command line; returns 0, or exits with code 2 and one line on bad input."""
    parser = OneLineParser("Fine-tune a model of the BERT family on film reviews.")
    parser.add_argument("--dataset", choices=["reviews", "imdb"], default="reviews", help="which CSV files of data_dir")
    add_bert_options(parser)
    settings = vars(parser.parse_args(argv))
    try:
        train_on_files([part_file(settings["dataset"], part, settings["data_dir"]) for part in PARTS], settings)
    except (ValueError, OSError) as error:
        parser.error(" ".join(str(error).split()))
    except KeyboardInterrupt:
        parser.exit(130, "stopped; nothing is kept of an unfinished training\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
