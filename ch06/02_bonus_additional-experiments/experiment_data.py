"""Messages for additional_experiments.py: chapter 6's split, also for other seeds, with and without padding.

It adds to chapter 6's spam_data.py a seed for the split, texts that keep their own length, and batches without useless columns.
"""

from pathlib import Path

import pandas as pd
from classifier import (
    LABELS,
    collate_trimmed,
    create_balanced_dataset,
    download_and_unzip_spam_data,
    encode_message,
    parse_messages,
)
from classifier import SpamDataset as PaddedSpamDataset
from previous_chapters import gpt2_tokenizer
from torch.utils.data import DataLoader
from unmasked_gpt import PAD_TOKEN_ID


def download_and_unzip(url: str | list, zip_path: str | Path, extract_to: str | Path, new_file_path: str | Path) -> None:
    """Fetch the full SMS Spam Collection (5,574 messages) as new_file_path, unless that exists. Errors as in section 6.2."""
    download_and_unzip_spam_data(url, zip_path, extract_to, new_file_path)


def random_split(df: pd.DataFrame, train_frac: float, val_frac: float, seed: int = 123) -> tuple[pd.DataFrame, ...]:
    """Shuffle the rows and cut them into training, validation and test rows. Seed 123 gives chapter 6's split."""
    if not (0 < train_frac < 1 and 0 < val_frac < 1 and train_frac + val_frac < 1):
        raise ValueError(f"fractions must lie between 0 and 1 and leave something, got {train_frac} and {val_frac}")
    shuffled = df.sample(frac=1, random_state=seed).reset_index(drop=True)
    train_end = int(len(df) * train_frac)
    val_end = train_end + int(len(df) * val_frac)
    return shuffled[:train_end], shuffled[train_end:val_end], shuffled[val_end:]


def create_dataset_csvs(new_file_path: str | Path, output_dir: str | Path = ".", seed: int = 123) -> None:
    """Balance and split a tab-separated file of messages into train.csv, validation.csv and test.csv in output_dir.

    Files from before are replaced: nobody knows which messages are in them.
    """
    balanced = create_balanced_dataset(parse_messages(Path(new_file_path).read_text(encoding="utf-8")))
    balanced["Label"] = balanced["Label"].map(LABELS)
    Path(output_dir).mkdir(parents=True, exist_ok=True)
    for name, part in zip(("train", "validation", "test"), random_split(balanced, 0.7, 0.1, seed)):
        part.to_csv(Path(output_dir) / f"{name}.csv", index=False)


class SpamDataset(PaddedSpamDataset):
    """Chapter 6's data set; with no_padding, texts keep their own lengths (still cut at max_length) and need a batch size of 1.

    `num_cut` is the number of texts that were longer than max_length.
    """

    def __init__(self, csv_file, tokenizer, max_length: int | None = None, pad_token_id: int = PAD_TOKEN_ID, no_padding: bool = False):
        super().__init__(csv_file, tokenizer, max_length, pad_token_id)
        own_lengths = [encode_message(text, tokenizer) for text in self.data["Text"]]
        self.num_cut = sum(len(ids) > self.max_length for ids in own_lengths)
        if no_padding:
            self.encoded_texts = [ids[: self.max_length] or [pad_token_id] for ids in own_lengths]


def text_length_limit(context_length: str | int, longest_text: int, model_context: int) -> int:
    """Turn --context_length into a number of tokens. ValueError for more than the model can take."""
    if context_length == "longest_training_example":
        return min(longest_text, model_context)
    if context_length == "model_context_length":
        return model_context
    if context_length > model_context:
        raise ValueError(f"--context_length {context_length} is more than the model's context of {model_context} tokens")
    return context_length


def create_loaders(folder: Path, max_length: int, batch_size: int, no_padding: bool = False, trim: bool = False) -> list[DataLoader]:
    """Return the loaders of train.csv (shuffled, whole batches only), validation.csv and test.csv.

    `trim` drops the columns that are padding in all texts of a batch. ValueError for a training set smaller than a batch.
    """
    names, tokenizer = ["train", "validation", "test"], gpt2_tokenizer()
    datasets = [SpamDataset(folder / f"{name}.csv", tokenizer, max_length, no_padding=no_padding) for name in names]
    if len(datasets[0]) < batch_size:
        raise ValueError(f"{len(datasets[0])} training messages are fewer than batch_size {batch_size}")
    collate = collate_trimmed if trim else None
    training = DataLoader(datasets[0], batch_size, shuffle=True, drop_last=True, collate_fn=collate)
    return [training, *(DataLoader(part, batch_size, collate_fn=collate) for part in datasets[1:])]


def without_repeats(test: pd.DataFrame, train: pd.DataFrame) -> list[int]:
    """Return the row numbers of test messages that are not in the training set, not even with other capitals or spaces."""
    known = {" ".join(text.lower().split()) for text in train["Text"]}
    return [row for row, text in enumerate(test["Text"]) if " ".join(text.lower().split()) not in known]
