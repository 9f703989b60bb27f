"""Token shards: a corpus tokenized once, stored as plain 16-bit numbers, read through memory maps.

Every GPT-2 id is below 65,536, so two bytes hold it; 100 million tokens are a file of 200 MB. A memory-mapped file is not
read at the start: the operating system brings in the pages that a batch touches. `index.json` lists the shards with their
tokens and SHA-256, so that a run can tell whether its data is still the same.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from corpus_files import read_document
from ngrams import ngram_hashes, ngram_set
from previous_chapters import likely_encoding
from torch.utils.data import DataLoader, Dataset, Sampler

SEPARATOR = "<|endoftext|>"
TOKENS_PER_SHARD = 50_000_000
CLEAN_NGRAM = 13  # words; a training document that shares one run of so many with held-out text is left out


def documents_of(path: str | Path) -> Iterator[str]:
    """Yield the documents of a file: the "text" of each line of a .jsonl file, else the parts between <|endoftext|>.

    ValueError names a file that cannot be used and why, and the line that is not a JSON object with a text.
    """
    path = Path(path)
    try:
        if path.suffix == ".jsonl":
            with path.open(encoding="utf-8-sig") as lines:
                for number, line in enumerate(lines, start=1):
                    try:
                        document = json.loads(line)["text"]
                    except (ValueError, KeyError, TypeError):
                        raise ValueError(f"{path}, line {number} is not a JSON object with a text") from None
                    yield document
        else:
            try:
                text = read_document(path)
            except ValueError as problem:
                raise ValueError(f"{path}: {problem}") from None
            yield from text.split(SEPARATOR)
    except UnicodeDecodeError:
        raise ValueError(f"{path}: probably {likely_encoding(path.read_bytes())}, not UTF-8: save it as UTF-8") from None
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None


def is_held_out(number: int, val_share: float) -> bool:
    """Tell whether document `number` of a file is for validation: every k-th one, k = 1 / val_share, from k / 2 on."""
    every = round(1 / val_share) if val_share else 0
    return every > 0 and number % every == every // 2


class ShardWriter:
    """Writes the shards of one split: `train_00000.bin`, `train_00001.bin`, ...; a file gets its name when it is complete."""

    def __init__(self, folder: Path, name: str, split: str, source: str, tokens_per_shard: int):
        self.folder, self.name, self.labels, self.limit = folder, name, {"split": split, "source": source}, tokens_per_shard
        self.finished, self.file = [], None

    def add(self, token_ids: list[int]) -> None:
        """Append a document with its end-of-text; a document is never cut in two."""
        if self.file is None:
            self.file = (self.folder / f"{self.name}.tmp").open("wb")
            self.tokens, self.documents, self.digest = 0, 0, hashlib.sha256()
        data = np.asarray(token_ids, dtype="<u2").tobytes()
        self.file.write(data)
        self.digest.update(data)
        self.tokens, self.documents = self.tokens + len(token_ids), self.documents + 1
        if self.tokens >= self.limit:
            self.close()

    def close(self) -> list[dict]:
        """Finish the open shard; returns the entries of all shards for the index."""
        if self.file is not None:
            self.file.close()
            name = f"{self.name}_{len(self.finished):05d}.bin"
            os.replace(self.file.name, self.folder / name)
            sizes = {"tokens": self.tokens, "documents": self.documents, "sha256": self.digest.hexdigest()}
            self.finished.append({"file": name, **self.labels, **sizes})
            self.file = None
        return self.finished


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def write_shards(
    file_paths, target_dir, tokenizer, *, val_share: float = 0.0, excluded=(), tokens_per_shard: int = TOKENS_PER_SHARD, after_file=None
) -> dict:
    """Tokenize files into uint16 shards with <|endoftext|> after each document; writes and returns the index.

    val_share: this share of each file's documents goes to shards of its own, one set per file, for validation. excluded:
    texts that must not be trained on. A training document that shares a run of 13 words with an excluded text or with a
    validation document is left out and counted. ValueError if no token is left. `after_file(number)` is called after each.
    """
    target, paths = Path(target_dir), [Path(path) for path in file_paths]
    target.mkdir(parents=True, exist_ok=True)
    (target / "index.json").unlink(missing_ok=True)  # while this runs, the old index would describe files that change
    held_out = (text for path in paths for i, text in enumerate(documents_of(path)) if is_held_out(i, val_share))
    unwanted = ngram_set([*excluded, *held_out], CLEAN_NGRAM)
    train, shards, sources = ShardWriter(target, "train", "train", "all", tokens_per_shard), [], []
    for number, path in enumerate(paths, start=1):
        source = path.name.split(".")[0]
        val = ShardWriter(target, f"val_{source}", "val", source, tokens_per_shard)
        counts = {"documents": 0, "tokens": 0, "empty": 0, "overlapping": 0}
        for i, text in enumerate(documents_of(path)):
            held = is_held_out(i, val_share)
            if not text.strip():
                counts["empty"] += 1
            elif not held and any(gram in unwanted for gram in ngram_hashes(text, CLEAN_NGRAM)):
                counts["overlapping"] += 1
            else:
                token_ids = [*tokenizer.encode(text.strip(), disallowed_special=()), tokenizer.eot_token]
                (val if held else train).add(token_ids)
                counts["documents"], counts["tokens"] = counts["documents"] + 1, counts["tokens"] + len(token_ids)
        shards += val.close()
        sources.append({"file": path.name, "sha256": file_sha256(path), **counts})
        if after_file:
            after_file(number)
    shards = train.close() + shards
    if not train.finished:
        raise ValueError(f"no text to train on is left in {len(paths)} files")
    index = {"vocab_size": tokenizer.n_vocab, "end_of_text": tokenizer.eot_token, "shards": shards, "sources": sources}
    temporary = target / "index.json.tmp"
    temporary.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, target / "index.json")
    return index


def read_index(folder: Path) -> dict:
    """Return the index of a folder of shards; ValueError if it is damaged or a shard is missing or has another size."""
    path = Path(folder) / "index.json"
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        for shard in index["shards"]:
            file = path.parent / shard["file"]
            size = file.stat().st_size if file.is_file() else None
            if size != 2 * shard["tokens"]:
                there = "is missing" if size is None else f"has {size:,} bytes, not {2 * shard['tokens']:,}"
                raise ValueError(f"{file} {there}; write the shards again with prepare_dataset.py")
    except (KeyError, TypeError, json.JSONDecodeError, OSError):
        raise ValueError(f"{path} is damaged or no index of token shards") from None
    return index


def tokens_in(shard_paths, vocab_size: int) -> torch.Tensor:
    """Return (vocab_size) bool: true for each token id that occurs in these shards. ValueError for an id beyond the vocabulary."""
    found = torch.zeros(vocab_size, dtype=torch.bool)
    for path in shard_paths:
        ids = np.unique(np.memmap(path, dtype="<u2", mode="r"))
        if ids[-1] >= vocab_size:
            raise ValueError(f"{path} holds token {ids[-1]}, beyond the {vocab_size:,} of the vocabulary")
        found[torch.from_numpy(ids.astype(np.int64))] = True
    return found


class TokenWindows(Dataset):
    """Windows of several shards: item i is (input, target), each (max_length,) int64, the target moved on by one token.

    `part` = (from, to) takes that share of each shard's windows, such as (0.0, 0.9). ValueError if there is no window.
    """

    def __init__(self, shard_paths, max_length: int, stride: int | None = None, part: tuple[float, float] = (0.0, 1.0)):
        self.max_length, stride = max_length, stride or max_length
        self.shards = [np.memmap(path, dtype="<u2", mode="r") for path in shard_paths]
        self.starts = []  # (shard, first token) of each window, as one array per shard
        for number, tokens in enumerate(self.shards):
            windows = max(0, (len(tokens) - max_length - 1) // stride + 1)
            first, last = int(part[0] * windows), int(part[1] * windows)
            starts = np.arange(first, last, dtype=np.int64) * stride
            self.starts.append(np.stack([np.full_like(starts, number), starts], axis=1))
        self.starts = np.concatenate(self.starts) if self.starts else np.empty((0, 2), dtype=np.int64)
        if not len(self.starts):
            total = sum(len(tokens) for tokens in self.shards)
            raise ValueError(f"{total:,} tokens in {len(self.shards)} shards give no window of {max_length} tokens and its target here")

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        shard, start = self.starts[index]
        window = torch.from_numpy(self.shards[shard][start : start + self.max_length + 1].astype(np.int64))
        return window[:-1], window[1:]


class RankBatches(Sampler):
    """The order of the training windows: shuffled anew each epoch, whole batches only, from any position on.

    The order depends on seed and epoch alone, so two numbers say where a run stands. Of each global batch of
    world * batch_size windows, process `rank` takes its own batch_size: together they see what one process would see.
    """

    def __init__(self, num_windows: int, batch_size: int, seed: int, rank: int = 0, world: int = 1):
        self.num_windows, self.batch_size, self.seed, self.rank, self.world = num_windows, batch_size, seed, rank, world
        self.epoch = self.first_batch = 0
        if not len(self):
            raise ValueError(f"{num_windows} training windows are fewer than one batch of {batch_size * world}")

    def go_to(self, epoch: int, batch: int) -> None:
        """Let the next iteration begin at this batch of this epoch."""
        self.epoch, self.first_batch = epoch, batch

    def __len__(self) -> int:
        return self.num_windows // (self.batch_size * self.world)

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.num_windows, generator=generator)
        for batch in range(self.first_batch, len(self)):
            start = (batch * self.world + self.rank) * self.batch_size
            yield order[start : start + self.batch_size].tolist()


def create_shard_dataloaders(
    shard_paths, batch_size, max_length, stride=None, *, val_paths=None, train_ratio=0.90, seed=123, rank=0, world=1, num_workers=0
) -> tuple[DataLoader, dict[str, DataLoader]]:
    """Return (training loader, {name: validation loader}) over memory-mapped shards.

    val_paths: {name: [shards]}; without it the last 1 - train_ratio of each training shard's windows is kept for validation
    under the name "val". Each process passes its own rank and gets its own share of the training windows.
    """
    own = {"num_workers": num_workers, "generator": torch.Generator()}  # a generator of its own: reading draws no global numbers
    part = (0.0, 1.0) if val_paths else (0.0, train_ratio)
    train = TokenWindows(shard_paths, max_length, stride, part)
    train_loader = DataLoader(train, batch_sampler=RankBatches(len(train), batch_size, seed, rank, world), **own)
    if val_paths:
        val = {name: TokenWindows(paths, max_length) for name, paths in val_paths.items()}
    else:
        val = {"val": TokenWindows(shard_paths, max_length, stride, (train_ratio, 1.0))}
    return train_loader, {name: DataLoader(windows, batch_size=batch_size, **own) for name, windows in val.items()}
