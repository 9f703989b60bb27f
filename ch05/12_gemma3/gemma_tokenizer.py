"""Gemma's tokenizer, rebuilt from the pieces and scores in its GGUF file: SentencePiece BPE.

Chapter 2 explains GPT-2's BPE: cut the text into words, turn each into bytes, join pairs of neighbors in the order in which
training learned the pairs. SentencePiece differs in four points, and this module shows each of them:

1. No words are cut first: the whole text is one sequence, and a space is a character like any other, written U+2581.
2. It starts from characters, not bytes. Only a character without a piece of its own falls back to its UTF-8 bytes, <0xE2>.
3. No list of merges: each piece has a score, and of all neighbors that form a piece the pair with the best score is joined.
4. Some pieces (runs of spaces, tabs and line ends, HTML tags) are cut out whole before any joining.

    from gemma_files import find_gemma3
    from gemma_tokenizer import GemmaTokenizer

    tokenizer = GemmaTokenizer(find_gemma3())
    tokenizer.encode("Hello world")  # [2, 9259, 1902]

The method: Kudo and Richardson 2018, https://arxiv.org/abs/1808.06226.
"""

import codecs
import heapq

import regex
from llama import read_gguf

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # in the list tokenizer.ggml.token_type; 6, bytes, go by their names
SPACE = "\u2581"  # stands for the space inside the vocabulary
NEEDED = ("tokens", "scores", "token_type", "bos_token_id", "eos_token_id", "unknown_token_id")
TURN_START, TURN_END = "<start_of_turn>", "<end_of_turn>"
ROLES = {"user": "user", "assistant": "model", "model": "model"}
BYTE_NAME = regex.compile(r"<0x[0-9A-F]{2}>")


def any_of(pieces):
    """A pattern that matches any of the pieces, the longest first; one group, so that `split` keeps what it matched."""
    longest_first = sorted(pieces, key=len, reverse=True)
    return regex.compile("(" + ("|".join(map(regex.escape, longest_first)) or "(?!)") + ")")  # (?!) matches nothing


def without_surrogates(text: str) -> str:
    """Surrogate pairs become the character they mean, lone ones the replacement character: both have no UTF-8."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class GemmaTokenizer:
    """Text to token ids and back.

    tokenizer_file_path: a GGUF file. Raises FileNotFoundError, and ValueError if its tokenizer is of another kind.
    """

    def __init__(self, tokenizer_file_path):
        self._build(read_gguf(tokenizer_file_path)[0])

    @classmethod
    def from_metadata(cls, metadata):
        """The same from the dictionary that `read_gguf` has returned already."""
        tokenizer = cls.__new__(cls)
        tokenizer._build(metadata)
        return tokenizer

    def _build(self, metadata):
        def entry(name, default=None):
            return metadata.get(f"tokenizer.ggml.{name}", default)

        if entry("model") != "llama" or entry("add_space_prefix", True):
            raise ValueError(f"this file's tokenizer is {entry('model')!r}, not the SentencePiece without a space in front that Gemma has")
        if any(entry(name) is None for name in NEEDED) or len({len(entry(name)) for name in NEEDED[:3]}) > 1:
            raise ValueError("this file's tokenizer is damaged: " + ", ".join(NEEDED[:3]) + " must be of one length, special ids known")
        self.pieces = [piece.replace(" ", SPACE) for piece in entry("tokens")]
        scores, kinds = entry("scores"), entry("token_type")
        self.ids = {piece: number for number, piece in enumerate(self.pieces)}
        self.scores = {piece: score for piece, score, kind in zip(self.pieces, scores, kinds, strict=True) if kind == NORMAL}
        self.special = {piece: number for piece, number in self.ids.items() if kinds[number] == CONTROL}
        self.special_pattern = any_of(self.special)
        self.whole_pattern = any_of([piece for piece, number in self.ids.items() if kinds[number] == USER_DEFINED])
        self.bos_token_id, self.eos_token_id = entry("bos_token_id"), entry("eos_token_id")
        self.unknown_token_id, self.adds_bos = entry("unknown_token_id"), entry("add_bos_token", True)
        self.id_of_byte = [self.ids.get(f"<0x{byte:02X}>", self.unknown_token_id) for byte in range(256)]
        self.byte_of_id = {number: byte for byte, number in enumerate(self.id_of_byte) if number != self.unknown_token_id}

    def merge(self, text: str) -> list[str]:
        """Characters -> pieces: again and again, join the two neighbors whose joined piece has the best score.

        A heap yields the best pair at once, so n characters take about n log n steps. parts[i] is the piece that begins at
        character i, None once it was joined to the one before; before[i] and after[i] are the places of its neighbors.
        """
        parts, end = list(text), len(text)
        before, after = list(range(-1, end - 1)), list(range(1, end + 1))
        heap = []

        def offer(i):  # the pair that begins at i, if it forms a piece; ties go to the left
            if i >= 0 and after[i] < end:
                joined = parts[i] + parts[after[i]]
                if joined in self.scores:
                    heapq.heappush(heap, (-self.scores[joined], i, joined))

        for i in range(end):
            offer(i)
        while heap:
            _, i, joined = heapq.heappop(heap)
            if parts[i] is None or after[i] == end or parts[i] + parts[after[i]] != joined:
                continue  # out of date: one of the two was joined to another neighbor in the meantime
            gone = after[i]
            parts[i], parts[gone], after[i] = joined, None, after[gone]
            if after[i] < end:
                before[after[i]] = i
            offer(before[i])
            offer(i)
        return [part for part in parts if part is not None]

    def encode(self, text: str, bos: bool | None = None, allowed_special: str | None = None) -> list[int]:
        """Text -> ids. bos: begin with <bos>; None does what the file says, and Gemma's says yes.

        Control tokens in `text` are ordinary characters unless `allowed_special` is "all". TypeError if `text` is no str.
        """
        if not isinstance(text, str):
            raise TypeError(f"a tokenizer needs text, not {type(text).__name__}")
        ids = [self.bos_token_id] if (self.adds_bos if bos is None else bos) else []
        text = without_surrogates(text).replace(" ", SPACE)
        for part in self.special_pattern.split(text) if allowed_special == "all" else [text]:
            ids += [self.special[part]] if allowed_special == "all" and part in self.special else self._encode_plain(part)
        return ids

    def _encode_plain(self, text: str) -> list[int]:
        ids = []
        for number, part in enumerate(self.whole_pattern.split(text)):
            for piece in [part] if number % 2 else self.merge(part):  # odd ones are what the pattern matched
                ids += [self.ids[piece]] if piece in self.scores or number % 2 else [self.id_of_byte[byte] for byte in piece.encode()]
        return ids

    def decode_bytes(self, ids, skip_special_tokens: bool = True) -> bytes:
        """Ids -> UTF-8; IndexError for an id outside the vocabulary."""
        out = []
        for number in map(int, ids):
            if not 0 <= number < len(self.pieces):
                raise IndexError(f"token id {number} is outside the vocabulary of {len(self.pieces):,}")
            piece = self.pieces[number]
            if number in self.byte_of_id:
                out.append(bytes([self.byte_of_id[number]]))
            elif not (skip_special_tokens and piece in self.special):
                out.append(piece.replace(SPACE, " ").encode())
        return b"".join(out)

    def decode(self, ids, skip_special_tokens: bool = True) -> str:
        """Ids -> text, control tokens left out or by their names; bytes that are no whole character become U+FFFD."""
        return self.decode_bytes(ids, skip_special_tokens).decode("utf-8", errors="replace")

    def stream(self, ids):
        """Yield the text of ids one after the other, a character cut into bytes only when it is whole."""
        whole = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for number in ids:
            yield whole.decode(self.decode_bytes([number]))
        yield whole.decode(b"", final=True)

    def apply_chat_template(self, messages, tokenize: bool = False, add_generation_prompt: bool = False):
        """Messages ({"role": ..., "content": ...}) -> the turns that the *instruction-tuned* Gemma models were tuned on.

        tokenize=False gives the text, without <bos>; tokenize=True the ids, <bos> first, in which a message that contains
        control tokens cannot end its own turn. Roles: user, assistant (Gemma calls it model); a system message opens the
        first user's turn. Raises ValueError for anything else. A base model has never seen a turn.
        """
        bodies = [f"{role}\n{content}" for role, content in self._turns(messages)]
        open_turn = "model\n" if add_generation_prompt else None
        if not tokenize:
            return "".join(f"{TURN_START}{body}{TURN_END}\n" for body in bodies) + (TURN_START + open_turn if open_turn else "")
        start, end, ids = self.special[TURN_START], self.special[TURN_END], self.encode("")
        for body in bodies:
            ids += [start, *self.encode(body, bos=False), end, *self.encode("\n", bos=False)]
        return ids + ([start, *self.encode(open_turn, bos=False)] if open_turn else [])

    def _turns(self, messages):
        if not messages:
            raise ValueError("a chat needs at least one message")
        for message in messages:
            if not isinstance(message.get("content"), str):
                raise ValueError(f"the content of a message is text, not {type(message.get('content')).__name__}")
        system = ""
        if messages[0]["role"] == "system":
            system, messages = messages[0]["content"].strip() + "\n\n", messages[1:]
        turns = []
        for number, message in enumerate(messages):
            if ROLES.get(message["role"]) != ("user", "model")[number % 2]:
                raise ValueError(f"message {number + 1} is from {message['role']!r}; Gemma's turns alternate, user first")
            turns.append((ROLES[message["role"]], (system if number == 0 else "") + message["content"].strip()))
        return turns
