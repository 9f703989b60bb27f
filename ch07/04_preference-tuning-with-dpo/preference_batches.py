"""Pairs of answers as batches: the same prompt before a preferred and a less preferred answer, and masks that say what counts.

dpo_from_scratch.py and gemma_dpo.py train on the batches. dpo-from-scratch.ipynb, section 2, builds all this step by step.
"""

import warnings
from functools import partial
from pathlib import Path

import torch
from instructions import encode_answer, encode_prompt, load_data
from torch.utils.data import DataLoader, Dataset

PAIRS_FILE = Path(__file__).resolve().parent / "instruction-data-with-preference.json"
SIDES = ("chosen", "rejected")


def load_pairs(path: str | Path = PAIRS_FILE) -> list[dict]:
    """Read the entries; ValueError names the first one without one of the five text fields. Section 2."""
    data = load_data(path)
    for number, pair in enumerate(data):
        for side in SIDES:
            if not isinstance(pair.get(side), str):
                raise ValueError(f"{path}: entry {number} has no text field '{side}'")
    return data


def drop_identical(data: list[dict]) -> tuple[list[dict], int]:
    """Return (the pairs whose two answers differ, how many were dropped): equal answers teach nothing. Section 2."""
    kept = [pair for pair in data if pair["chosen"].strip() != pair["rejected"].strip()]
    return kept, len(data) - len(kept)


class PreferenceDataset(Dataset):
    """Each item is a dict of id lists: `prompt`, with response header; `chosen` and `rejected`: prompt, answer, end token. Section 2."""

    def __init__(self, data: list[dict], tokenizer):
        self.data, self.encoded_texts = data, []
        end_id = getattr(tokenizer, "eos_token_id", None) or tokenizer.eot_token  # Gemma's name for it, and GPT-2's
        for pair in data:
            prompt = encode_prompt(pair, tokenizer)
            texts = {side: prompt + encode_answer(pair[side], tokenizer) + [end_id] for side in SIDES}
            self.encoded_texts.append({"prompt": prompt, **texts})

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return self.encoded_texts[index]

    def __len__(self) -> int:
        return len(self.data)


def custom_collate_fn(
    batch: list[dict],
    pad_token_id: int = 50256,
    allowed_max_length: int | None = None,
    mask_prompt_tokens: bool = True,
    device: str | torch.device = "cpu",
) -> dict:
    """Pad all texts of a batch to one length. Section 2.

    Returns `chosen` and `rejected` (b, num_tokens), `chosen_mask` and `rejected_mask`, same shape, true for the ids of the answer
    and its end token (with mask_prompt_tokens=False for the prompt's, too), and `prompt`, a list of tensors. Texts are cut to
    allowed_max_length with a warning: a cut answer has no end. ValueError for an empty batch, or no room for any of an answer.
    """
    if not batch:
        raise ValueError("a batch needs at least one pair")
    longest = max(len(item[side]) for item in batch for side in SIDES)
    length = min(longest, allowed_max_length or longest)
    if length < longest:
        warnings.warn(f"texts of up to {longest} tokens were cut to {length}; their answers have no end", stacklevel=2)
    result = {"prompt": [torch.tensor(item["prompt"], device=device) for item in batch]}
    for side in SIDES:
        rows, masks = [], []
        for item in batch:
            ids, first = item[side][:length], len(item["prompt"])
            if first >= len(ids):
                raise ValueError(f"a prompt of {first} tokens leaves no room for an answer within {length}")
            padding = length - len(ids)
            rows.append(ids + [pad_token_id] * padding)
            masks.append([not mask_prompt_tokens] * first + [True] * (len(ids) - first) + [False] * padding)
        result[side] = torch.tensor(rows, device=device)  # (b, num_tokens)
        result[f"{side}_mask"] = torch.tensor(masks, device=device)  # (b, num_tokens)
    return result


def decode_tokens_from_batch(token_ids: torch.Tensor, tokenizer) -> str:
    """Return the text of a row of ids (num_tokens). Section 2."""
    return tokenizer.decode(token_ids.tolist())


def create_preference_loaders(
    train_data: list[dict], val_data: list[dict], tokenizer, batch_size: int, max_length: int | None = None, device="cpu"
) -> tuple[DataLoader, DataLoader]:
    """Loaders of pairs for training, shuffled and in whole batches, and for validation. Section 2."""
    collate = partial(custom_collate_fn, allowed_max_length=max_length, device=device)
    whole = len(train_data) >= batch_size
    train_loader = DataLoader(PreferenceDataset(train_data, tokenizer), batch_size, shuffle=True, drop_last=whole, collate_fn=collate)
    return train_loader, DataLoader(PreferenceDataset(val_data, tokenizer), batch_size, collate_fn=collate)
