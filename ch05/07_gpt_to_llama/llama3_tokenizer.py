"""Llama 3's tokenizer from its `tokenizer.model` file, and its chat format; llama.py offers both under its own name.

The file comes with the weights, after accepting Meta's license. Each line holds one token: its bytes in base64, its rank.
"""

import base64
import binascii
from pathlib import Path

import tiktoken
from smollm2_tokenizer import check_text

# Words with one sign or space before them, numbers in groups of up to three digits, signs, line ends, other white space.
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_SPECIALS = {
    "<|begin_of_text|>": 128000, "<|end_of_text|>": 128001, "<|start_header_id|>": 128006, "<|end_header_id|>": 128007,
    "<|eot_id|>": 128009,
}
LLAMA3_RANKS, LLAMA3_VOCABULARY = 128_000, 128_256  # learned tokens; with the 256 control tokens above them


def read_ranks(model_path) -> dict[bytes, int]:
    """Token bytes -> rank; FileNotFoundError if the file is missing, ValueError if a line is not a new token and a rank of
    its own below 128,000, or a single byte is missing (then some text would have no ids)."""
    path = Path(model_path)
    if not path.is_file():
        raise FileNotFoundError(f"no tokenizer file at {path}; it comes with the weights of Llama 3")
    ranks = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            token, rank = line.split()
            token, rank = base64.b64decode(token, validate=True), int(rank)
        except (ValueError, binascii.Error) as error:
            raise ValueError(f"{path}, line {number} is not a token in base64 and its rank") from error
        if token in ranks or not 0 <= rank < LLAMA3_RANKS:
            raise ValueError(f"{path}, line {number}: the token was there before, or its rank {rank} is not below {LLAMA3_RANKS:,}")
        ranks[token] = rank
    if not ranks:
        raise ValueError(f"{path} is empty")
    if len(set(ranks.values())) < len(ranks) or any(bytes([byte]) not in ranks for byte in range(256)):
        raise ValueError(f"{path}: two tokens share a rank, or one of the 256 single bytes is missing")
    return ranks


class Llama3Tokenizer:
    """Text to ids and back as in Llama 3: byte-level BPE with 128,000 ranks and 256 control tokens above them."""

    stop_ids = (128001, 128008, 128009)  # an answer ends at end of text, end of message (a tool is called), end of turn

    def __init__(self, model_path):
        taken = set(LLAMA3_SPECIALS.values())
        free = [number for number in range(128_002, LLAMA3_VOCABULARY) if number not in taken]
        reserved = {f"<|reserved_{number - 128_002}|>": number for number in free}
        self.special = {**LLAMA3_SPECIALS, **reserved}
        self.model = tiktoken.Encoding(
            name=Path(model_path).name, pat_str=LLAMA3_PATTERN, mergeable_ranks=read_ranks(model_path), special_tokens=self.special
        )

    def encode(self, text, bos=False, eos=False, **kwargs):
        """Text -> ids, with begin and end of text on demand. Control tokens in `text` are plain text unless kwargs say
        otherwise (tiktoken's allowed_special and disallowed_special). TypeError and ValueError as in `check_text`."""
        check_text(text)
        kwargs = {"disallowed_special": (), **{key: value for key, value in kwargs.items() if value is not None}}
        ids = self.model.encode(text, **kwargs)
        return [self.special["<|begin_of_text|>"]] * bos + ids + [self.special["<|end_of_text|>"]] * eos

    def decode(self, ids):
        """Ids -> text; IndexError for an id that no token has."""
        try:
            return self.model.decode(list(ids))
        except (KeyError, OverflowError) as error:
            raise IndexError(f"the ids hold one that no token has: {error}") from error


class ChatFormat:
    """Wraps a question as Llama 3 was tuned on it: a header with the role, two line ends, the message, <|eot_id|>.

    White space around a message is removed, as the published template does. Llama 3.1 and 3.2 were tuned with two lines
    before the system message ("Cutting Knowledge Date: ...", "Today Date: ..."); pass them as part of it where they matter.
    """

    def __init__(self, tokenizer, *, default_system="You are a helpful assistant."):
        self.tokenizer, self.default_system, self.stop_ids = tokenizer, default_system, tokenizer.stop_ids

    def header(self, role):
        special = self.tokenizer.special
        return [special["<|start_header_id|>"], *self.tokenizer.encode(role), special["<|end_header_id|>"], *self.tokenizer.encode("\n\n")]

    def encode(self, user_message, system_message=None, allowed_special=None):
        """The ids of a conversation of one question, up to the place where the assistant's answer begins.

        Without a system message the default one is taken. TypeError for a message that is no string.
        """
        special, ids = self.tokenizer.special, [self.tokenizer.special["<|begin_of_text|>"]]
        for role, text in (("system", self.default_system if system_message is None else system_message), ("user", user_message)):
            text = check_text(text).strip()
            ids += [*self.header(role), *self.tokenizer.encode(text, allowed_special=allowed_special), special["<|eot_id|>"]]
        return ids + self.header("assistant")

    def decode(self, ids):
        """Ids -> text, control tokens by their names."""
        return self.tokenizer.decode(ids)


def clean_text(text, header_end="assistant<|end_header_id|>\n\n"):
    """The answer alone: what follows the last assistant header, or the whole text if there is none."""
    return text.rsplit(header_end, 1)[-1]
