"""SmolLM2's tokenizer, rebuilt from the metadata of its GGUF file: byte-level BPE, one rule for digits, a chat template.

Imported by gguf_reader.py, which offers it under its own name. Chapter 2 explains BPE; this adds what a chat model needs:
control tokens that no user text can forge, and decoding that survives a character cut in two.
"""

import codecs
import heapq

import regex

CONTROL_TOKEN = 3  # in the list tokenizer.ggml.token_type
DIGIT = regex.compile(r"\p{N}")  # SmolLM2 gives each digit a piece of its own, before GPT-2's pattern applies
# GPT-2's pattern: contractions, then words, numbers and signs, each with the space before it, then other white space.
GPT2_PATTERN = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
DEFAULT_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
ROLES = ("system", "user", "assistant", "tool")


def check_text(text) -> str:
    """`text` itself. TypeError if it is no string, ValueError for half of a surrogate pair, which is no character of any text."""
    if not isinstance(text, str):
        raise TypeError(f"a tokenizer needs a string, not {type(text).__name__}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"character {error.start} is {text[error.start]!r}, half of a surrogate pair and no character") from None
    return text


def byte_characters() -> list[str]:
    """Byte -> the printable character that stands for it in the vocabulary (256 strings), as in GPT-2.

    Printable Latin-1 characters stand for themselves, the others for the characters from code 256 on.
    """
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def split_digits(text: str) -> list[str]:
    """"in 1848 or" -> ["in ", "1", "8", "4", "8", " or"]: each numeric character alone, the text between them whole."""
    pieces, start = [], 0
    for match in DIGIT.finditer(text):
        pieces += [text[start : match.start()], match.group()]
        start = match.end()
    return [piece for piece in [*pieces, text[start:]] if piece]


class SmolLM2Tokenizer:
    """Text to token ids and back.

    metadata: the dictionary that `read_gguf` returns. Raises ValueError if it describes another kind of tokenizer, or half of one.
    """

    NEEDED = ("tokens", "merges", "token_type", "bos_token_id", "eos_token_id", "unknown_token_id")

    def __init__(self, metadata):
        kind = (metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre"))
        if kind != ("gpt2", "smollm"):
            raise ValueError(f"this file's tokenizer is {kind[0]} with rule {kind[1]}; SmolLM2's is gpt2 with rule smollm")
        missing = [name for name in self.NEEDED if f"tokenizer.ggml.{name}" not in metadata]
        if missing:
            raise ValueError(f"this file's tokenizer lacks {', '.join(missing)}")
        self.tokens, merges, kinds, *control = (metadata[f"tokenizer.ggml.{name}"] for name in self.NEEDED)
        if not all(isinstance(part, list) for part in (self.tokens, merges, kinds)) or len(kinds) != len(self.tokens):
            raise ValueError("this file's tokenizer has no list of tokens with a type for each, or no list of merges")
        if not all(isinstance(text, str) for text in self.tokens + merges) or "<|endoftext|>" not in self.tokens:
            raise ValueError("this file's tokenizer has tokens or merges that are no text, or no <|endoftext|>")
        if not all(type(number) is int and 0 <= number < len(self.tokens) for number in control):
            raise ValueError(f"this file's tokenizer has control tokens outside its {len(self.tokens):,} tokens: {control}")
        self.ids = {token: number for number, token in enumerate(self.tokens)}
        self.ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(merges)}
        self.special = {token: number for number, token in enumerate(self.tokens) if kinds[number] == CONTROL_TOKEN}
        self.special_pattern = regex.compile("(" + "|".join(map(regex.escape, sorted(self.special, key=len, reverse=True))) + ")")
        # <|im_start|>, which begins each message and not each text; <|im_end|>; what stands for bytes such as 4, never seen in training
        self.bos_token_id, self.eos_token_id, self.unk_token_id = control
        self.stop_ids = (self.eos_token_id, self.ids["<|endoftext|>"])  # an answer ends at either
        self.character_of_byte = byte_characters()
        self.byte_of_character = {character: byte for byte, character in enumerate(self.character_of_byte)}
        self.known_pieces = {}  # piece -> ids: most words of a text come again

    def merge(self, piece: str) -> list[int]:
        """One piece of text -> ids: its bytes, joined pair by pair; a byte that is not in the vocabulary is the unknown token."""
        ids = self.known_pieces.get(piece)
        if ids is None:
            parts = self.join_pairs([self.character_of_byte[byte] for byte in piece.encode("utf-8")])
            ids = [self.ids.get(part, self.unk_token_id) for part in parts]
            if len(self.known_pieces) > 100_000:
                self.known_pieces.clear()
            if len(piece) <= 100:  # longer ones are no words, and would fill the memory of a server
                self.known_pieces[piece] = ids
        return ids

    def join_pairs(self, parts: list[str]) -> list[str]:
        """Join neighbors, always the pair that training learned first, leftmost first among equals.

        The heap holds every pair that can be joined, so that a word of 100,000 letters takes a second and not an hour.
        """
        before, after = list(range(-1, len(parts) - 1)), list(range(1, len(parts) + 1))  # each part's neighbors
        heap = [(self.ranks[pair], i, pair) for i, pair in enumerate(zip(parts, parts[1:], strict=False)) if pair in self.ranks]
        heapq.heapify(heap)
        while heap:
            _, i, pair = heapq.heappop(heap)
            j = after[i]
            if j == len(parts) or (parts[i], parts[j]) != pair:
                continue  # one of the two has been joined with another neighbor since
            parts[i], parts[j], after[i] = parts[i] + parts[j], "", after[j]
            if after[i] < len(parts):
                before[after[i]] = i
            for left, right in ((before[i], i), (i, after[i])):
                if left >= 0 and right < len(parts) and (parts[left], parts[right]) in self.ranks:
                    new = (parts[left], parts[right])
                    heapq.heappush(heap, (self.ranks[new], left, new))
        return [part for part in parts if part]

    def encode(self, text: str, allowed_special: str | None = None) -> list[int]:
        """Text -> ids. Control tokens in `text` are ordinary characters unless `allowed_special` is "all".

        TypeError if `text` is no string, ValueError if it holds half of a surrogate pair.
        """
        check_text(text)
        if allowed_special == "all":
            ids = []
            for part in self.special_pattern.split(text):
                ids += [self.special[part]] if part in self.special else self.encode(part)
            return ids
        return [number for part in split_digits(text) for piece in GPT2_PATTERN.findall(part) for number in self.merge(piece)]

    def decode_bytes(self, ids) -> bytes:
        """Ids -> UTF-8, control tokens by their names; IndexError for an id outside the vocabulary."""
        out = []
        for number in map(int, ids):
            if not 0 <= number < len(self.tokens):
                raise IndexError(f"token id {number} is outside the vocabulary of {len(self.tokens):,}")
            token = self.tokens[number]
            out.append(token.encode() if token in self.special else bytes(self.byte_of_character[c] for c in token))
        return b"".join(out)

    def decode(self, ids) -> str:
        """Ids -> text; bytes that are no whole character become the replacement character."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def stream(self, ids):
        """Yield the text of ids one after the other, a character cut in two only when it is whole."""
        whole = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for number in ids:
            yield whole.decode(self.decode_bytes([number]))
        yield whole.decode(b"", final=True)

    def apply_chat_template(self, messages, add_generation_prompt: bool = True) -> str:
        """Messages ({"role": ..., "content": ...}) -> the text that the model was tuned on, as the file's template has it.

        Without a system message at the start, SmolLM2's own is put there. For ids use `encode_chat`, in which a message
        that contains control tokens cannot end its own turn. Raises ValueError for an empty list, a message without role or
        content, or an unknown role, and TypeError for content that is no string, such as None.
        """
        turns = [f"<|im_start|>{body}<|im_end|>\n" for body in self._bodies(messages)]
        return "".join(turns) + ("<|im_start|>assistant\n" if add_generation_prompt else "")

    def encode_chat(self, messages, add_generation_prompt: bool = True) -> list[int]:
        """The ids of `apply_chat_template`, with whatever a message contains taken as plain text."""
        ids = []
        for body in self._bodies(messages):
            ids += [self.bos_token_id, *self.encode(body), self.eos_token_id, *self.encode("\n")]
        return ids + ([self.bos_token_id, *self.encode("assistant\n")] if add_generation_prompt else [])

    def _bodies(self, messages):
        if not messages:
            raise ValueError("a chat needs at least one message")
        for message in messages:
            if not isinstance(message, dict) or not {"role", "content"} <= set(message):
                raise ValueError(f"a message is a dictionary with role and content, not {repr(message)[:60]}")
            if message["role"] not in ROLES:
                raise ValueError(f"unknown role {message['role']!r}; known: {', '.join(ROLES)}")
            check_text(message["content"])
        if messages[0]["role"] != "system":
            messages = [{"role": "system", "content": DEFAULT_SYSTEM}, *messages]
        return [f"{message['role']}\n{message['content']}" for message in messages]
