"""A byte-pair encoder that trains, saves, loads GPT-2's files and gives the same ids as tiktoken."""

import json
import urllib.request
from collections import Counter
from pathlib import Path

import regex

# GPT-2's pre-tokens: contractions, words, numbers, other signs, whitespace; a run before a word leaves it the last space.
PRE_TOKEN = regex.compile(r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
END_OF_TEXT = frozenset({"<|endoftext|>"})


def bytes_to_unicode() -> dict[int, str]:
    """Return a printable character for each of the 256 byte values, as GPT-2's vocabulary files write them."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    table = {byte: chr(byte) for byte in printable}
    hidden = [byte for byte in range(256) if byte not in table]
    return table | {byte: chr(256 + number) for number, byte in enumerate(hidden)}


def adjacent_pairs(ids: list[int]) -> list[tuple[int, int]]:
    """Return all neighbors in order, overlapping ones too."""
    return list(zip(ids, ids[1:], strict=False))


def merge_pair(ids: list[int], pair: tuple[int, int], new_id: int) -> list[int]:
    """Replace `pair` by `new_id`, greedily from the left."""
    merged, i = [], 0
    while i < len(ids):
        found = tuple(ids[i : i + 2]) == pair
        merged.append(new_id if found else ids[i])
        i += 2 if found else 1
    return merged


class BPETokenizerSimple:
    """Byte-level BPE: `vocab` {id: token}, `inverse_vocab` {token: id}, `bpe_merges` {(id, id): new id} in rank order."""

    def __init__(self):
        self.byte_chars = bytes_to_unicode()
        self.char_bytes = {char: byte for byte, char in self.byte_chars.items()}
        self.finish_training({}, set())

    def set_state(self, vocab: dict[int, str], merges: dict[tuple[int, int], int], specials: set[str]) -> None:
        self.vocab, self.bpe_merges, self.special_tokens = vocab, merges, specials
        self.inverse_vocab = {token: token_id for token_id, token in vocab.items()}
        if len(self.inverse_vocab) != len(vocab):
            raise ValueError("two ids of the vocabulary stand for the same token")
        self.known = {}  # ids of the pre-tokens already seen

    @staticmethod
    def pretokenize_text(text: str) -> list[str]:
        """Split a text with GPT-2's pattern; the pieces joined are the text."""
        return PRE_TOKEN.findall(text)

    @staticmethod
    def find_freq_pair(token_id_sequences: list[list[int]], mode: str = "most") -> tuple[int, int] | None:
        """Return the most (or "least") frequent pair; of equal ones the pair met first; None without a pair."""
        if mode not in ("most", "least"):
            raise ValueError(f'mode must be "most" or "least", not {mode!r}')
        counts = Counter(pair for ids in token_id_sequences for pair in adjacent_pairs(ids))
        choose = max if mode == "most" else min
        return choose(counts, key=counts.get, default=None)

    @staticmethod
    def replace_pair(token_id_sequences: list[list[int]], pair_id: tuple[int, int], new_id: int) -> list[list[int]]:
        """Replace the pair in every sequence, greedily from the left."""
        return [merge_pair(ids, pair_id, new_id) for ids in token_id_sequences]

    def split_specials(self, text: str, specials: set[str]) -> list[str]:
        if not isinstance(text, str):
            raise TypeError(f"text must be a string, not {type(text).__name__}")
        if not specials:
            return [text]
        longest_first = sorted(specials, key=len, reverse=True)
        return regex.split("(" + "|".join(map(regex.escape, longest_first)) + ")", text)

    def training_words(self, text: str, vocab_size: int, specials: set[str]) -> list[str]:
        """Return the pre-tokens of a training text, specials cut out; ValueError if the vocabulary cannot hold the bytes."""
        if vocab_size < 256 + len(specials):
            raise ValueError(f"vocab_size must be at least {256 + len(specials)} (256 bytes and the specials), not {vocab_size}")
        if "" in specials:
            raise ValueError("a special token cannot be empty")
        parts = [part for part in self.split_specials(text, specials) if part not in specials]
        return [word for part in parts for word in self.pretokenize_text(part)]

    def finish_training(self, merges: dict[tuple[int, int], int], specials: set[str]) -> None:
        vocab = {byte: self.byte_chars[byte] for byte in range(256)}
        for (left, right), new_id in merges.items():
            vocab[new_id] = vocab[left] + vocab[right]
        for token in sorted(specials):
            vocab[len(vocab)] = token
        self.set_state(vocab, merges, set(specials))

    def train_by_recounting(self, text: str, vocab_size: int, allowed_special=END_OF_TEXT) -> None:
        """Learn merges by counting all pairs again after each merge: slow, and the reference for `train`."""
        specials = set(allowed_special)
        sequences = [list(word.encode("utf-8")) for word in self.training_words(text, vocab_size, specials)]
        merges = {}
        for new_id in range(256, vocab_size - len(specials)):
            pair = self.find_freq_pair(sequences)
            if pair is None:
                break
            sequences = self.replace_pair(sequences, pair, new_id)
            merges[pair] = new_id
        self.finish_training(merges, specials)

    def train(self, text: str, vocab_size: int, allowed_special=END_OF_TEXT) -> None:
        """Learn the same merges, but after each merge recount only the distinct words that contain the pair."""
        specials = set(allowed_special)
        words = Counter(self.training_words(text, vocab_size, specials))  # in the order of the text: decides ties
        sequences, times = [list(word.encode("utf-8")) for word in words], list(words.values())
        counts, places = Counter(), {}
        for number, ids in enumerate(sequences):
            for pair in adjacent_pairs(ids):
                counts[pair] += times[number]
                places.setdefault(pair, set()).add(number)
        merges = {}
        for new_id in range(256, vocab_size - len(specials)):
            if not counts:
                break
            most = max(counts.values())
            tied = [pair for pair, count in counts.items() if count == most]
            pair = tied[0] if len(tied) == 1 else min(tied, key=lambda pair: first_place(pair, places, sequences))
            merges[pair] = new_id
            for number in list(places[pair]):
                change_counts(counts, places, sequences[number], number, -times[number])
                sequences[number] = merge_pair(sequences[number], pair, new_id)
                change_counts(counts, places, sequences[number], number, times[number])
        self.finish_training(merges, specials)

    def tokenize_with_bpe(self, token: str) -> list[int]:
        """Encode one pre-token: of its known pairs always merge the one of lowest rank, until none is left."""
        ids = [self.inverse_vocab[self.byte_chars[byte]] for byte in token.encode("utf-8")]
        while known := [pair for pair in adjacent_pairs(ids) if pair in self.bpe_merges]:
            pair = min(known, key=self.bpe_merges.get)
            ids = merge_pair(ids, pair, self.bpe_merges[pair])
        return ids

    def encode(self, text: str, allowed_special=None) -> list[int]:
        """Return the ids; a special token in the text that is not allowed is a ValueError."""
        allowed, ids = set(allowed_special or ()), []
        for part in self.split_specials(text, self.special_tokens):
            if part in self.special_tokens:
                if part not in allowed:
                    raise ValueError(f"the text contains {part}; allow it with allowed_special={{{part!r}}}")
                ids.append(self.inverse_vocab[part])
                continue
            for word in self.pretokenize_text(part):
                if word not in self.known:
                    self.known[word] = self.tokenize_with_bpe(word)
                ids.extend(self.known[word])
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

    def get_special_token_id(self, token: str) -> int:
        if token not in self.special_tokens:
            raise ValueError(f"{token!r} is not a special token of this vocabulary")
        return self.inverse_vocab[token]

    def take_files(self, vocab: dict[int, str], bpe_merges_path) -> None:
        """Set the state from a vocabulary and a merges file; ValueError where the two do not agree."""
        ids, merges = {token: token_id for token_id, token in vocab.items()}, {}
        lines = Path(bpe_merges_path).read_text(encoding="utf-8").split("\n")
        for rank, line in enumerate(line for line in lines if line and not line.startswith("#version")):
            left, _, right = line.partition(" ")
            if left not in ids or right not in ids or ids.get(left + right) != 256 + rank:
                raise ValueError(f"{bpe_merges_path}: merge {rank} ({line!r}) does not fit the vocabulary")
            merges[ids[left], ids[right]] = 256 + rank
        specials = {token for token_id, token in vocab.items() if token_id >= 256 + len(merges)}
        if set(self.char_bytes) - set(ids):
            raise ValueError("the vocabulary lacks some of the 256 bytes")
        self.set_state(vocab, merges, specials)

    def load_vocab_and_merges_from_openai(self, vocab_path, bpe_merges_path) -> None:
        """Load GPT-2's `encoder.json` and `vocab.bpe`; ValueError if they are not GPT-2's sizes."""
        encoder = json.loads(Path(vocab_path).read_text(encoding="utf-8"))
        if len(encoder) != 50257 or encoder.get("<|endoftext|>") != 50256:
            raise ValueError(f"{vocab_path}: expected 50257 entries and <|endoftext|> = 50256, found {len(encoder)} entries")
        fresh = BPETokenizerSimple()
        fresh.take_files({token_id: token for token, token_id in encoder.items()}, bpe_merges_path)
        if len(fresh.bpe_merges) != 50000:
            raise ValueError(f"{bpe_merges_path}: expected 50000 merges, found {len(fresh.bpe_merges)}")
        self.set_state(fresh.vocab, fresh.bpe_merges, fresh.special_tokens)

    def save_vocab_and_merges(self, vocab_path, bpe_merges_path) -> None:
        """Write the vocabulary (JSON, one `id: token` a line) and the merges (in the form of `vocab.bpe`)."""
        Path(vocab_path).write_text(json.dumps(self.vocab, ensure_ascii=False, indent=0), encoding="utf-8")
        lines = [f"{self.vocab[left]} {self.vocab[right]}" for left, right in self.bpe_merges]
        Path(bpe_merges_path).write_text("\n".join(["#version: 0.2", *lines, ""]), encoding="utf-8")

    def load_vocab_and_merges(self, vocab_path, bpe_merges_path) -> None:
        """Load what `save_vocab_and_merges` wrote."""
        vocab = json.loads(Path(vocab_path).read_text(encoding="utf-8"))
        self.take_files({int(token_id): token for token_id, token in vocab.items()}, bpe_merges_path)


def first_place(pair: tuple[int, int], places: dict, sequences: list[list[int]]) -> tuple[int, int]:
    """Return (word, position) where the pair is met first in the text."""
    number = min(places[pair])
    return number, adjacent_pairs(sequences[number]).index(pair)


def change_counts(counts: Counter, places: dict, ids: list[int], number: int, times: int) -> None:
    """Add a word's pairs to the counts, or take them away (negative `times`)."""
    for pair in adjacent_pairs(ids):
        counts[pair] += times
        if times > 0:
            places.setdefault(pair, set()).add(number)
        else:
            places[pair].discard(number)
        if not counts[pair]:
            del counts[pair]


def download_file_if_absent(url: str, filename: str, search_dirs: list) -> Path:
    """Return the first `search_dir/filename` that exists; else download it into `search_dirs[0]`."""
    if not search_dirs:
        raise ValueError("search_dirs is empty")
    for folder in map(Path, search_dirs):
        if (folder / filename).is_file():
            print(f"found {filename}, nothing to download")
            return folder / filename
    target = Path(search_dirs[0]) / filename
    with urllib.request.urlopen(url, timeout=60) as answer:  # an OSError names what failed
        data = answer.read()
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)
    return target
