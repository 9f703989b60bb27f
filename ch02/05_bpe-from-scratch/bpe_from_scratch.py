"""A byte-pair encoder that trains, saves, loads GPT-2's files and gives the same ids as tiktoken.

    from bpe_from_scratch import BPETokenizerSimple

The functions are the steps of the algorithm; `BytePairEncoder` applies merges, `BPETokenizerSimple` also learns and stores them.
"""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import regex
from bpe_files import bytes_to_unicode, read_merges, read_vocab

# GPT-2's pre-tokens: contractions, words, numbers, other signs, whitespace; a run before a word leaves it the last space.
PRE_TOKEN = regex.compile(r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
DEFAULT_SPECIALS = frozenset({"<|endoftext|>"})


def pretokenize_text(text: str) -> list[str]:
    """Split a text with GPT-2's pattern; the pieces joined are the text. Folder 05 of chapter 2."""
    return PRE_TOKEN.findall(text)


def adjacent_pairs(ids: list[int]) -> list[tuple[int, int]]:
    """Return all neighbors in order, overlapping ones too. Folder 05 of chapter 2."""
    return list(zip(ids, ids[1:], strict=False))


def find_freq_pair(token_id_sequences: list[list[int]], mode: str = "most") -> tuple[int, int] | None:
    """Return the most (or "least") frequent pair; of equal ones the pair met first; None without a pair.

    ValueError for another mode. Folder 05 of chapter 2.
    """
    if mode not in ("most", "least"):
        raise ValueError(f'mode must be "most" or "least", not {mode!r}')
    counts = Counter(pair for ids in token_id_sequences for pair in adjacent_pairs(ids))
    choose = max if mode == "most" else min
    return choose(counts, key=counts.get, default=None)


def merge_pair(ids: list[int], pair: tuple[int, int], new_id: int) -> list[int]:
    """Replace `pair` by `new_id`, greedily from the left. Folder 05 of chapter 2."""
    merged, i = [], 0
    while i < len(ids):
        found = tuple(ids[i : i + 2]) == pair
        merged.append(new_id if found else ids[i])
        i += 2 if found else 1
    return merged


def replace_pair(token_id_sequences: list[list[int]], pair_id: tuple[int, int], new_id: int) -> list[list[int]]:
    """Replace the pair in every sequence, greedily from the left. Folder 05 of chapter 2."""
    return [merge_pair(ids, pair_id, new_id) for ids in token_id_sequences]


def learn_by_recounting(words: list[str], num_merges: int) -> dict[tuple[int, int], int]:
    """Return the merges {(id, id): new id} of a text's pre-tokens, all pairs counted again after each. Folder 05 of chapter 2."""
    sequences, merges = [list(word.encode("utf-8")) for word in words], {}
    for new_id in range(256, 256 + num_merges):
        pair = find_freq_pair(sequences)
        if pair is None:
            break
        sequences = replace_pair(sequences, pair, new_id)
        merges[pair] = new_id
    return merges


def change_counts(counts: Counter, places: dict, ids: list[int], number: int, times: int) -> None:
    """Add the pairs of word `number` to the counts, or take them away (negative `times`). Folder 05 of chapter 2."""
    for pair in adjacent_pairs(ids):
        counts[pair] += times
        if times > 0:
            places.setdefault(pair, set()).add(number)
        else:
            places[pair].discard(number)
        if not counts[pair]:
            del counts[pair]


def first_place(pair: tuple[int, int], places: dict, sequences: list[list[int]]) -> tuple[int, int]:
    """Return (word, position) where the pair is met first in the text. Folder 05 of chapter 2."""
    number = min(places[pair])
    return number, adjacent_pairs(sequences[number]).index(pair)


def learn_merges(words: list[str], num_merges: int) -> dict[tuple[int, int], int]:
    """Return what `learn_by_recounting` returns; after a merge only the words with that pair are counted again.

    Folder 05 of chapter 2.
    """
    distinct = Counter(words)  # keeps the order in which the words were met: it decides ties
    sequences, times = [list(word.encode("utf-8")) for word in distinct], list(distinct.values())
    counts, places, merges = Counter(), {}, {}  # places: pair -> numbers of the words that contain it
    for number, ids in enumerate(sequences):
        change_counts(counts, places, ids, number, times[number])
    for new_id in range(256, 256 + num_merges):
        if not counts:
            break
        most = max(counts.values())
        tied = [pair for pair, count in counts.items() if count == most]
        pair = tied[0] if len(tied) == 1 else min(tied, key=lambda pair: first_place(pair, places, sequences))
        for number in list(places[pair]):
            change_counts(counts, places, sequences[number], number, -times[number])
            sequences[number] = merge_pair(sequences[number], pair, new_id)
            change_counts(counts, places, sequences[number], number, times[number])
        merges[pair] = new_id
    return merges


def apply_merges(ids: list[int], merges: dict[tuple[int, int], int]) -> list[int]:
    """Encode: of the pairs that can be merged, always the one learned first, until none is left. Folder 05 of chapter 2."""
    while known := [pair for pair in adjacent_pairs(ids) if pair in merges]:
        pair = min(known, key=merges.get)  # new ids grow with the rank
        ids = merge_pair(ids, pair, merges[pair])
    return ids


def split_specials(text: str, specials: set[str]) -> list[str]:
    """Cut a text before and after each special token; TypeError for anything but a string. Folder 05 of chapter 2."""
    if not isinstance(text, str):
        raise TypeError(f"text must be a string, not {type(text).__name__}")
    if not specials:
        return [text]
    longest_first = sorted(specials, key=len, reverse=True)
    return regex.split("(" + "|".join(map(regex.escape, longest_first)) + ")", text)


def training_words(text: str, vocab_size: int, specials: set[str]) -> list[str]:
    """Return the pre-tokens of a text without its special tokens.

    ValueError if vocab_size cannot hold the bytes and the specials, or a special is empty. Folder 05 of chapter 2.
    """
    if vocab_size < 256 + len(specials):
        raise ValueError(f"vocab_size must be at least {256 + len(specials)} (256 bytes and the specials), not {vocab_size}")
    if "" in specials:
        raise ValueError("a special token cannot be empty")
    parts = [part for part in split_specials(text, specials) if part not in specials]
    return [word for part in parts for word in pretokenize_text(part)]


def build_vocab(merges: dict[tuple[int, int], int], specials: set[str]) -> dict[int, str]:
    """Return {id: token}: 256 bytes, merges in the order learned, specials sorted. Folder 05 of chapter 2."""
    vocab = dict(sorted(bytes_to_unicode().items()))
    for (left, right), new_id in merges.items():
        vocab[new_id] = vocab[left] + vocab[right]
    return vocab | {len(vocab) + number: token for number, token in enumerate(sorted(specials))}


class BytePairEncoder:
    """Applies merges. `vocab` {id: token}, `inverse_vocab` {token: id}, `bpe_merges` {(id, id): new id} in rank order.

    Folder 05 of chapter 2.
    """

    def __init__(self):
        self.byte_chars = bytes_to_unicode()
        self.char_bytes = {char: byte for byte, char in self.byte_chars.items()}
        self.set_state(build_vocab({}, set()), {}, set())

    def set_state(self, vocab: dict[int, str], merges: dict[tuple[int, int], int], specials: set[str]) -> None:
        inverse = {token: token_id for token_id, token in vocab.items()}
        if len(inverse) != len(vocab):
            raise ValueError("two ids of the vocabulary stand for the same token")
        self.vocab, self.inverse_vocab, self.bpe_merges, self.special_tokens = vocab, inverse, merges, specials
        self.known = {}  # the ids of the pre-tokens seen so far

    def tokenize_with_bpe(self, token: str) -> list[int]:
        """Return the ids of one pre-token."""
        if token not in self.known:
            self.known[token] = apply_merges([self.inverse_vocab[self.byte_chars[b]] for b in token.encode("utf-8")], self.bpe_merges)
        return list(self.known[token])

    def encode(self, text: str, allowed_special=None) -> list[int]:
        """Return the ids; a special token in the text that is not allowed is a ValueError."""
        ids = []
        for part in split_specials(text, self.special_tokens):
            if part not in self.special_tokens:
                for word in pretokenize_text(part):
                    ids += self.tokenize_with_bpe(word)
            elif part in (allowed_special or ()):
                ids.append(self.inverse_vocab[part])
            else:
                raise ValueError(f"the text contains {part}; allow it with allowed_special={{{part!r}}}")
        return ids

    def decode(self, token_ids: list[int]) -> str:
        """Return the text; bytes that are no valid UTF-8 become U+FFFD; an unknown id is a ValueError."""
        data = bytearray()
        for token_id in token_ids:
            if token_id not in self.vocab:
                raise ValueError(f"the vocabulary has no id {token_id}")
            token = self.vocab[token_id]
            data += token.encode("utf-8") if token in self.special_tokens else bytes(self.char_bytes[char] for char in token)
        return data.decode("utf-8", errors="replace")


class BPETokenizerSimple(BytePairEncoder):
    """Learns merges from a text, saves them, and loads its own files or GPT-2's. Folder 05 of chapter 2."""

    pretokenize_text = staticmethod(pretokenize_text)
    find_freq_pair = staticmethod(find_freq_pair)
    replace_pair = staticmethod(replace_pair)

    def train_with(self, learn: Callable, text: str, vocab_size: int, specials: set[str]) -> None:
        merges = learn(training_words(text, vocab_size, specials), vocab_size - 256 - len(specials))
        self.set_state(build_vocab(merges, specials), merges, specials)

    def train(self, text: str, vocab_size: int, allowed_special=DEFAULT_SPECIALS) -> None:
        """Learn the merges of a text; what was learned before is forgotten."""
        self.train_with(learn_merges, text, vocab_size, set(allowed_special))

    def train_by_recounting(self, text: str, vocab_size: int, allowed_special=DEFAULT_SPECIALS) -> None:
        """The same by the plain method: slow, and the reference for `train`."""
        self.train_with(learn_by_recounting, text, vocab_size, set(allowed_special))

    def get_special_token_id(self, token: str) -> int:
        if token not in self.special_tokens:
            raise ValueError(f"{token!r} is not a special token of this vocabulary")
        return self.inverse_vocab[token]

    def load_vocab_and_merges_from_openai(self, vocab_path: str | Path, bpe_merges_path: str | Path) -> None:
        """Load GPT-2's `encoder.json` and `vocab.bpe`; ValueError if they are not GPT-2's sizes."""
        vocab = read_vocab(vocab_path, tokens_first=True)
        merges = read_merges(bpe_merges_path, vocab)
        found = f"{len(vocab)} entries, {len(merges)} merges, {vocab[len(vocab) - 1]} = {len(vocab) - 1}"
        expected = "50257 entries, 50000 merges, <|endoftext|> = 50256"
        if found != expected:
            raise ValueError(f"{vocab_path}, {bpe_merges_path}: {found}, but GPT-2 has {expected}")
        self.set_state(vocab, merges, {"<|endoftext|>"})

    def save_vocab_and_merges(self, vocab_path: str | Path, bpe_merges_path: str | Path) -> None:
        """Write the vocabulary (JSON, one `id: token` a line) and the merges (in the form of `vocab.bpe`)."""
        lines = [f"{self.vocab[left]} {self.vocab[right]}" for left, right in self.bpe_merges]
        Path(vocab_path).write_text(json.dumps(self.vocab, ensure_ascii=False, indent=0), encoding="utf-8")
        Path(bpe_merges_path).write_text("\n".join(["#version: 0.2", *lines, ""]), encoding="utf-8")

    def load_vocab_and_merges(self, vocab_path: str | Path, bpe_merges_path: str | Path) -> None:
        """Load what `save_vocab_and_merges` wrote; ValueError if the two files do not belong together."""
        vocab = read_vocab(vocab_path)
        merges = read_merges(bpe_merges_path, vocab)
        specials = [vocab[token_id] for token_id in range(256 + len(merges), len(vocab))]
        if specials != sorted(specials):  # some of them are tokens whose merges are missing
            raise ValueError(f"{bpe_merges_path} has {len(merges)} merges, too few for {vocab_path}")
        self.set_state(vocab, merges, set(specials))
