"""Checks for the exercises of chapter 2; call them in the notebook, or: python exercise_checks.py 2.1 my_answer.py

Each check runs your answer on several inputs and compares with something computed in another way: tiktoken, the real
data loader, PyTorch's own embedding, or a plain loop. A failed check ends with a question to think about.
"""

import math
import sys

import tiktoken
import torch
from check_tools import exercise, expect_close, expect_equal, expect_something, fail, forbid, passed, run_checks
from dataloader import GPTDatasetV1, gpt2_tokenizer, split_text
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

TEXTS = ("bell", "tideglimmer", " tideglimmer", "Nell's  skiff--late.", "café 潮 🌊", "")


def small_tokenizer() -> tiktoken.Encoding:
    """Bytes in reverse order, two merges, an end-of-text id of its own: nobody gets its ids without using it."""
    ranks = {bytes([255 - i]): i for i in range(256)} | {b"be": 256, b"ll": 257}
    return tiktoken.Encoding("small", pat_str=r"\s?\w+|\s?[^\s\w]+|\s", mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 300})


@exercise("2.1", answer="take_apart")
def check_2_1(take_apart):
    """Every token of a text with its own text and the ids which that text gets when it is encoded alone."""
    for name, tokenizer in (("GPT-2's tokenizer", gpt2_tokenizer()), ("another tokenizer", small_tokenizer())):
        for text in TEXTS:
            got = take_apart(text, tokenizer)
            expect_something(got, f"{text!r} with {name}")
            ids = tokenizer.encode(text)
            where = f"{text!r} with {name}"
            question = "does the first entry of each row come from one call of encode, by the tokenizer that you were given?"
            expect_equal(ids, [row[0] for row in got], f"the ids of {where}", question)
            pieces = [tokenizer.decode([token_id]) for token_id in ids]
            expect_equal(pieces, [row[1] for row in got], f"the texts of {where}", "is each id decoded alone, its leading space kept?")
            alone = [tokenizer.encode(piece) for piece in pieces]
            question = "did you really encode each piece again? For a part of a character it does not give the same id. Why not?"
            expect_equal(alone, [list(row[2]) for row in got], f"the pieces of {where}, encoded alone", question)
    passed("2.1")


class NumberTokenizer:
    """Reads a text of numbers, each of which is one token."""

    def encode(self, text: str, allowed_special: set[str] = frozenset()) -> list[int]:
        return [int(number) for number in text.split()]


@exercise("2.2", answer="predict_loader")
def check_2_2(predict_loader):
    """First batch and number of batches, against the data set and loader of the chapter."""
    names = {"torch", "Dataset", "DataLoader", "GPTDatasetV1", "create_dataloader_v1"}
    forbid(predict_loader, names, "can you tell what the loader does without running it?")
    for n_tokens, batch_size, max_length, stride, drop_last in (
        (50, 4, 4, 4, True), (50, 8, 8, 2, True), (51, 3, 5, 2, False), (41, 2, 4, 4, False),
        (30, 2, 3, 5, True), (16, 2, 4, 4, True), (12, 8, 4, 4, True),
    ):  # fmt: skip
        token_ids = [1000 + 3 * i for i in range(n_tokens)]
        dataset = GPTDatasetV1(" ".join(map(str, token_ids)), NumberTokenizer(), max_length, stride)
        loader = DataLoader(dataset, batch_size=batch_size, drop_last=drop_last, generator=torch.Generator())
        inputs, targets = next(iter(loader), (torch.empty(0), torch.empty(0)))
        given = list(token_ids)
        got = predict_loader(given, batch_size, max_length, stride, drop_last)
        where = f"the {n_tokens} ids 1000, 1003, 1006, ..., {batch_size=}, {max_length=}, {stride=}, {drop_last=}"
        expect_something(got, where)
        expect_equal(token_ids, given, "the list you were given, after the call", "did you change the caller's list?")
        question = "may a window start where its target would reach past the end, and what happens to a batch that is not full?"
        expect_equal(len(loader), got[2], f"number of batches for {where}", question)
        expect_equal(inputs.tolist(), got[0], f"first inputs for {where}", "how far is it from one window's start to the next?")
        expect_equal(targets.tolist(), got[1], f"first targets for {where}", "by how many tokens is the target ahead of its input?")
    passed("2.2")


TRAINING_TEXT = "Off  you go, now.\n\n\tIt's _late_--very \"late\"!\n(So:\ta; b?)"
KNOWN_TEXTS = ("late", "now,now", "go  you", "\nIt's\tlate--very  late.\n", '"Off you go!" (now)', "", " ", "very--\n--late")


@exercise("2.3", answer="LosslessTokenizer")
def check_2_3(LosslessTokenizer):
    """Pieces that joined are the text, ids that number the sorted pieces, and a text that returns unchanged."""
    tokenizer = LosslessTokenizer(TRAINING_TEXT)
    for text in (TRAINING_TEXT, " two  spaces\n\n\tand a tab ", *KNOWN_TEXTS):
        check_pieces(tokenizer.split(text), text)
    vocabulary = sorted(set(tokenizer.split(TRAINING_TEXT)))
    LosslessTokenizer("another text")  # must not change the first one
    for text in KNOWN_TEXTS:
        expected = [vocabulary.index(piece) for piece in tokenizer.split(text)]
        question = "is an id the place of a piece among the sorted pieces of this tokenizer's own training text?"
        expect_equal(expected, tokenizer.encode(text), f"encode({text!r})", question)
        question = "does decode add anything between the pieces, or take anything away?"
        expect_equal(text, tokenizer.decode(tokenizer.encode(text)), f"decode(encode({text!r}))", question)
    try:
        got = tokenizer.encode("late telephone")
    except KeyError as error:
        got = f"KeyError: {error}"
    if "KeyError" not in str(got) or "telephone" not in str(got):
        question = "which id can a piece have that the training text does not contain?"
        fail("a KeyError that names 'telephone'", got, "encode('late telephone')", question)
    passed("2.3")


def check_pieces(pieces: list[str], text: str) -> None:
    """The pieces joined are the text; without the whitespace pieces they are the chapter's tokens."""
    expect_something(pieces, f"split({text!r})")
    expect_equal(text, "".join(pieces), f"the pieces of {text!r}, joined", "where did the missing characters go: was whitespace dropped?")
    if "" in pieces:
        fail("no empty piece", pieces, f"the pieces of {text!r}", "what stands between two separators that touch?")
    tokens = [piece for piece in pieces if not piece.isspace()]
    question = "is every punctuation mark, and the double hyphen, a piece of its own, and every space apart from the words?"
    expect_equal(split_text(text), tokens, f"the pieces of {text!r} that are not whitespace", question)


class ProductWatch(TorchDispatchMode):
    """Counts the matrix products that run while it is active."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function.overloadpacket.__name__ in ("mm", "bmm", "mv", "addmm", "addmv", "baddbmm", "dot")
        return function(*args, **(kwargs or {}))


@exercise("2.4", answer="lookup_by_matmul")
def check_2_4(lookup_by_matmul):
    """Values and gradients of PyTorch's own lookup, for ids of several shapes and tables of two dtypes."""
    random = torch.Generator().manual_seed(123)
    for shape, vocab_size, emb_dim, dtype in (((5,), 6, 3, torch.float32), ((2, 3), 7, 4, torch.float64), ((2, 2, 2), 4, 4, torch.float32)):
        token_ids = torch.randint(0, vocab_size - 1, shape, generator=random)  # the largest id never occurs
        table = torch.randn(vocab_size, emb_dim, dtype=dtype, generator=random)
        weights = [table.clone().requires_grad_() for _ in range(2)]
        expected = torch.nn.functional.embedding(token_ids, weights[0])
        given = token_ids.clone()
        with ProductWatch() as watch:
            got = lookup_by_matmul(weights[1], given)
        where = f"ids of shape {shape}, a {str(dtype).removeprefix('torch.')} table of {vocab_size} rows and {emb_dim} columns"
        expect_close(expected, got, where, "is the one-hot vector as long as the table has rows, whatever ids occur?")
        expect_equal(token_ids, given, "the ids you were given, after the call", "did you change the caller's tensor?")
        if not watch.count:
            fail("a matrix product: @, matmul or einsum", "rows found in another way", where, "how can a product pick out a row?")
        if not got.requires_grad:
            fail("an output that depends on the table", "one cut off from it", where, "how is the table to learn without a gradient?")
        scale = torch.randn(expected.shape, dtype=dtype, generator=random)
        (expected * scale).sum().backward()
        (got * scale).sum().backward()
        expect_close(weights[0].grad, weights[1].grad, f"gradient for {where}", "does every use of a row add its share to the gradient?")
    passed("2.4")


@exercise("2.5", answer="utf8_bytes")
def check_2_5(utf8_bytes):
    """Python's own encoder, at the borders of the four lengths and at every 997th code point."""
    task = "which arithmetic gives the bytes, without Python's own encoder?"
    forbid(utf8_bytes, {"encode", "bytes", "bytearray", "codecs", "memoryview"}, task)
    borders = [0x00, 0x7F, 0x80, 0x7FF, 0x800, 0xFFFF, 0x10000, 0x10FFFF]
    for code_point in borders + [c for c in range(1, 0x110000, 997) if not 0xD800 <= c <= 0xDFFF]:
        expected = list(chr(code_point).encode("utf-8"))
        got = utf8_bytes(code_point)
        where = f"code point {code_point:#x} ({code_point.bit_length()} bits)"
        expect_something(got, where)
        question = "which row of the table holds it, and which six bits go into the last byte?"
        if len(got) != len(expected):
            question = "up to which code point, itself included, does each length reach?"
        expect_equal([f"{byte:08b}" for byte in expected], [f"{byte:08b}" for byte in got], where, question)
    passed("2.5")


def merge_by_loops(token_ids: list[int], new_id: int) -> tuple:
    """One merge step, as slowly and plainly as possible."""
    counts = {}
    for pair in zip(token_ids, token_ids[1:]):
        counts[pair] = counts.get(pair, 0) + 1
    best = None
    for pair in counts:
        if best is None or counts[pair] > counts[best]:
            best = pair
    merged, i = [], 0
    while i < len(token_ids):
        hit = tuple(token_ids[i : i + 2]) == best
        merged.append(new_id if hit else token_ids[i])
        i += 2 if hit else 1
    return best, merged


@exercise("2.6", answer="merge_step")
def check_2_6(merge_step):
    """Pair and new ids, for texts with ties, runs of one letter, and nothing to merge."""
    random = torch.randint(0, 3, (40, 12), generator=torch.Generator().manual_seed(123)).tolist()
    by_hand = [[1, 2, 1, 2, 3], [1, 2, 3, 4, 1, 2], [5, 5, 5], [5] * 5, [5, 5, 5, 1, 2, 1, 2], [1, 2, 1, 2, 11, 2, 1, 21], [3, 4], [7], []]
    for new_id, token_ids in enumerate([*by_hand, *random], start=256):
        before = list(token_ids)
        pair, merged = merge_by_loops(before, new_id)
        got = merge_step(token_ids, new_id)
        expect_something(got, f"merge_step({before}, {new_id})")
        expect_equal(before, token_ids, "the list you were given, after the call", "did you change the caller's list?")
        question = "do ties go to the pair met first, and do overlapping pairs count?"
        expect_equal(pair, got[0] if got[0] is None else tuple(got[0]), f"the pair chosen in {before}", question)
        question = "after a replacement, where does the search go on: at the next token, or behind the pair?"
        expect_equal(merged, list(got[1]), f"merging {pair} into {new_id} in {before}", question)
    passed("2.6")


@exercise("2.7", answer="sinusoidal_positions")
def check_2_7(sinusoidal_positions):
    """The formula as two loops; then the property for which it was chosen."""
    for num_positions, emb_dim in ((1, 2), (7, 6), (300, 64), (50, 16)):
        expected = torch.empty(num_positions, emb_dim, dtype=torch.float64)
        for position in range(num_positions):
            for column in range(emb_dim):
                angle = position / 10000 ** ((column - column % 2) / emb_dim)
                expected[position, column] = math.cos(angle) if column % 2 else math.sin(angle)
        got = sinusoidal_positions(num_positions, emb_dim)
        where = f"{num_positions} positions, width {emb_dim} (row = position)"
        question = "do sine and cosine of one angle stand side by side, and does the first position have number 0?"
        expect_close(expected, got, where, question, atol=1e-4)
    products = got.double() @ got.double().T
    question = "what must the product of two rows depend on, if only their distance is to count?"
    expect_close(products[0, 5], products[20, 25], "rows 0 and 5 against rows 20 and 25", question, atol=1e-3)
    passed("2.7")


@exercise("2.8", answer="pack_documents")
def check_2_8(pack_documents):
    """Windows of the joined documents, each document closed by one end-of-text id."""
    story = ["The tide is late.", "Nell sang, and rowed, and stopped.", "Late"]
    others = [(["The bell rang."] * 3, 5), (["The <|endoftext|> mark"], 3), (["Late", "", "Now"], 2), (["a"], 4), ([], 4)]
    for name, tokenizer in (("GPT-2's tokenizer", gpt2_tokenizer()), ("another tokenizer", small_tokenizer())):
        for documents, max_length in [(story, 4), (story, 3), *others]:
            stream = []
            for document in documents:
                stream += tokenizer.encode(document, disallowed_special=()) + [tokenizer.eot_token]
            rows = [stream[s : s + max_length + 1] for s in range(0, len(stream), max_length)]
            rows = [row for row in rows if len(row) == max_length + 1]
            expected = torch.tensor(rows, dtype=torch.int64).reshape(len(rows), max_length + 1)
            given = list(documents)
            got = pack_documents(given, tokenizer, max_length)
            where = f"documents {documents}, {max_length=}, {name} (end of text: {tokenizer.eot_token})"
            expect_something(got, where)
            inputs, targets = got
            expect_equal(documents, given, "the list you were given, after the call", "did you change the caller's list?")
            question = "is every document, the last one too, followed by one end-of-text id, and is the mark inside a document only text?"
            expect_equal(expected[:, :-1], inputs, f"inputs of {where}", question)
            expect_equal(expected[:, 1:], targets, f"targets of {where}", "which token follows the last one of a window?")
            question = "which kind of number does an embedding layer take?"
            expect_equal([torch.int64] * 2, [inputs.dtype, targets.dtype], f"dtypes of {where}", question)
    passed("2.8")


if __name__ == "__main__":
    sys.exit(run_checks())
