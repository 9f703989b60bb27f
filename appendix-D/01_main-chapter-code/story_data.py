"""The course's story with a vocabulary of its own, so that a training of appendix D takes seconds instead of a minute.

GPT-2's tokenizer knows 50,257 tokens, the story needs 1,083 of them. A model with these alone has tables 46 times
smaller and learns the same text; only its losses cannot be compared with those of chapter 5, where 50,257 tokens compete.
"""

from collections.abc import Iterable

from previous_chapters import STORY_CONFIG, STORY_FILE, GPTDatasetV1, read_text
from torch.utils.data import DataLoader

END_OF_TEXT = "<|endoftext|>"
# Chapter 5's story model at half its width; vocab_size is for the caller to fill in.
SMALL_CONFIG = {**STORY_CONFIG, "emb_dim": 128}


class SmallVocabulary:
    """GPT-2's tokenizer with new ids 0, 1, 2, ... for those tokens alone that some texts use, and the end-of-text token."""

    def __init__(self, tokenizer, texts: Iterable[str]):
        self.tokenizer = tokenizer
        used = [tokenizer.encode(text, allowed_special={END_OF_TEXT}) for text in (*texts, END_OF_TEXT)]
        self.old_ids = sorted(set().union(*used))
        self.new_ids = {old: new for new, old in enumerate(self.old_ids)}

    def encode(self, text: str, allowed_special: set[str] = frozenset()) -> list[int]:
        """Return new ids; ValueError for a token that the texts do not have."""
        old_ids = self.tokenizer.encode(text, allowed_special=allowed_special)
        missing = [old for old in old_ids if old not in self.new_ids]
        if missing:
            raise ValueError(f"the story has no token {self.tokenizer.decode(missing[:1])!r}, which is in {text!r}")
        return [self.new_ids[old] for old in old_ids]

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode([self.old_ids[new] for new in ids])


def split_story() -> tuple[str, str]:
    """Return the first 90 % of the story's characters, for training, and the rest, for validation."""
    text = read_text(STORY_FILE)
    split = int(0.9 * len(text))
    return text[:split], text[split:]


def create_loaders(parts: tuple[str, str], tokenizer, context_length: int, batch_size: int) -> tuple[DataLoader, DataLoader]:
    """Return (train_loader, val_loader) over the two texts: windows that do not overlap; shuffled, whole batches for training."""
    train_set, val_set = (GPTDatasetV1(part, tokenizer, context_length, stride=context_length) for part in parts)
    return DataLoader(train_set, batch_size, shuffle=True, drop_last=True), DataLoader(val_set, batch_size)
