"""From entries with instruction, input and output to batches: prompts, ids, padding, targets that count the answers alone.

Chapter 7, sections 7.2 to 7.4. gpt_instruction_finetuning.py trains on the batches; any tokenizer with `encode` will do.
"""

import json
import warnings
from functools import partial
from pathlib import Path

import torch
from previous_chapters import download_file, read_text
from torch.utils.data import DataLoader, Dataset

PREAMBLE = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
RESPONSE_HEADER = "\n\n### Response:\n"


def download_and_load_file(file_path: str | Path, url: str) -> list[dict]:
    """Return the parsed JSON list of file_path, fetched from url only if the file is missing. Section 7.2.

    Raises ValueError or OSError in one line for a file that is no such list, or cannot be had.
    """
    if not Path(file_path).exists():
        download_file(url, file_path)
    data = json.loads(read_text(file_path))
    if not isinstance(data, list):
        raise ValueError(f"{file_path} holds a {type(data).__name__}, not a list of entries")
    return data


def format_input(entry: dict) -> str:
    """Return the prompt of an entry in the style of Stanford Alpaca, without the response header. Section 7.2.

    Raises ValueError naming the field and the entry if instruction or input is missing.
    """
    for field in ("instruction", "input"):
        if field not in entry:
            raise ValueError(f"no field {field!r} in the entry {entry}")
    prompt = f"{PREAMBLE}\n\n### Instruction:\n{entry['instruction']}"
    return prompt + (f"\n\n### Input:\n{entry['input']}" if entry["input"] else "")


def encode_text(text: str, tokenizer) -> list[int]:
    """Return the ids of a text; the characters <|endoftext|> in it are text like any other. Section 7.3.1."""
    return getattr(tokenizer, "encode_ordinary", tokenizer.encode)(text)  # Gemma's `encode` is of that kind


def encode_prompt(entry: dict, tokenizer) -> list[int]:
    """Return the ids after which the answer begins, in training and in use: prompt and response header. Section 7.3.1."""
    return encode_text(format_input(entry) + RESPONSE_HEADER, tokenizer)


def encode_answer(text: str, tokenizer) -> list[int]:
    """Return the ids of an answer, without a token for the beginning of a text. Section 7.3.1."""
    ids = encode_text(text, tokenizer)
    return ids[1:] if getattr(tokenizer, "adds_bos", False) else ids  # GPT-2's tokenizer adds none, Gemma's does


class InstructionDataset(Dataset):
    """Each item is the list of ids of a prompt, the response header, and the answer. Section 7.3.1.

    Prompt and answer are encoded one after the other, so the ids of the prompt are those that the model will get in use.
    """

    def __init__(self, data: list[dict], tokenizer):
        self.data = data
        prompts = [encode_prompt(entry, tokenizer) for entry in data]
        self.prompt_lengths = [len(prompt) for prompt in prompts]
        self.encoded_texts = [prompt + encode_answer(entry["output"], tokenizer) for prompt, entry in zip(prompts, data)]

    def __getitem__(self, index: int) -> list[int]:
        return self.encoded_texts[index]

    def __len__(self) -> int:
        return len(self.data)


class InstructionDatasetWithMasking(InstructionDataset):
    """Each item is (number of ids before the answer, list of ids). Section 7.3.5."""

    def __getitem__(self, index: int) -> tuple[int, list[int]]:
        return self.prompt_lengths[index], self.encoded_texts[index]


def custom_collate_draft_1(batch: list[list[int]], pad_token_id: int = 50256, device: str | torch.device = "cpu") -> torch.Tensor:
    """Pad lists of ids to the longest of the batch: inputs (b, num_tokens). Section 7.3.2."""
    longest = max(len(item) for item in batch)
    rows = [item + [pad_token_id] * (longest - len(item)) for item in batch]
    return torch.tensor(rows).to(device)  # (b, num_tokens)


def custom_collate_draft_2(
    batch: list[list[int]], pad_token_id: int = 50256, device: str | torch.device = "cpu"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad, and shift: inputs and targets (b, num_tokens), every target being the next id. Section 7.3.3."""
    ended = [item + [pad_token_id] for item in batch]  # the answer ends with an end token
    rows = custom_collate_draft_1(ended, pad_token_id, device)  # (b, num_ids): one more than there are inputs
    return rows[:, :-1], rows[:, 1:].clone()  # a copy: whoever masks targets must not change inputs


def custom_collate_fn(
    batch: list[list[int]],
    pad_token_id: int = 50256,
    ignore_index: int = -100,
    allowed_max_length: int | None = None,
    device: str | torch.device = "cpu",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets (b, num_tokens); of the padding in a target row all but the first id is ignore_index. Section 7.3.4.

    Longer rows are cut to allowed_max_length, with a warning, because a text that is cut does not learn where to end.
    Raises ValueError for an empty batch.
    """
    if not batch:
        raise ValueError("a batch needs at least one text")
    inputs, targets = custom_collate_draft_2(batch, pad_token_id)  # (b, num_tokens) each
    for row, item in enumerate(batch):
        targets[row, len(item) :] = ignore_index  # target number len(item) - 1 is the end token: it stays
    if allowed_max_length is not None and inputs.shape[1] > allowed_max_length:
        cut = sum(len(item) > allowed_max_length for item in batch)
        warnings.warn(f"{cut} of {len(batch)} texts were cut to {allowed_max_length} tokens and have no end", stacklevel=2)
        inputs, targets = inputs[:, :allowed_max_length], targets[:, :allowed_max_length]  # (b, allowed_max_length) each
    return inputs.to(device), targets.to(device)


def custom_collate_with_masking_fn(
    batch: list[tuple[int, list[int]]],
    pad_token_id: int = 50256,
    ignore_index: int = -100,
    allowed_max_length: int | None = None,
    device: str | torch.device = "cpu",
) -> tuple[torch.Tensor, torch.Tensor]:
    """As custom_collate_fn, and the targets of the prompt are ignore_index, too: what counts is the answer and its end. Section 7.3.5."""
    texts = [ids for _, ids in batch]
    inputs, targets = custom_collate_fn(texts, pad_token_id, ignore_index, allowed_max_length)  # (b, num_tokens) each
    for row, (prompt_length, _) in enumerate(batch):
        targets[row, : prompt_length - 1] = ignore_index  # the last id of the prompt predicts the first of the answer
    return inputs.to(device), targets.to(device)


def split_data(data: list) -> tuple[list, list, list]:
    """Cut a list by position into 85 % for training, 10 % for the test, and the rest for validation. Section 7.2.

    Raises ValueError if a part would be empty.
    """
    train, test = len(data) * 85 // 100, len(data) * 10 // 100
    parts = data[:train], data[train : train + test], data[train + test :]
    if not all(parts):
        raise ValueError(f"{len(data)} entries are too few to train, to test and to validate on")
    return parts


def create_loaders(
    train_data: list[dict], val_data: list[dict], tokenizer, batch_size: int, max_length: int, device: str | torch.device = "cpu"
) -> tuple[DataLoader, DataLoader]:
    """Loaders of (inputs, targets) for training, shuffled and in whole batches, and for validation. Section 7.4."""
    collate = partial(custom_collate_with_masking_fn, allowed_max_length=max_length, device=device)
    whole = len(train_data) >= batch_size
    train = InstructionDatasetWithMasking(train_data, tokenizer)
    val = InstructionDatasetWithMasking(val_data, tokenizer)
    train_loader = DataLoader(train, batch_size, shuffle=True, drop_last=whole, collate_fn=collate)
    return train_loader, DataLoader(val, batch_size, collate_fn=collate)
