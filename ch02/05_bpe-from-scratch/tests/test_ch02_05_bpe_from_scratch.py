"""Training, encoding and decoding against tiktoken, Hugging Face's trainer and the plain methods."""

import ast
import random
from collections import Counter
from pathlib import Path

import bpe_from_scratch
import nbformat
import pytest
import tiktoken
from bpe_from_scratch import (
    PRE_TOKEN,
    BPETokenizerSimple,
    adjacent_pairs,
    find_freq_pair,
    learn_by_recounting,
    learn_merges,
    merge_pair,
    pretokenize_text,
    replace_pair,
)
from previous_chapters import STORY_FILE, gpt2_data_folder, gpt2_tokenizer, read_text
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

STORY = read_text(STORY_FILE)
TEXTS = [
    "", "a", "ab", "caf\u00e9 na\u00efve \u2014 yes", "\u4f60\u597d \u4e16\u754c", "\U0001f600\U0001f44d\U0001f3fd", "\ta\t\tb", "a\u00a0b",
    "\u0120x \u0120", "  lead", "a   b", "trail   ", "a\n\n", "a\n\n\nb", "a\r\nb\r\n", 'he said , "no" !', "don't we'll I'd 12345 x9",
    "e\u0301\u200d\ufeff\u0000\x7f", "\u0661\u0662 \u00bd", STORY,
]  # fmt: skip
LETTERS = "ab cab\n'\u00e9\u4f60\U0001f600 \t1.!\u0120"


def random_text(generator, letters, longest):
    return "".join(generator.choice(letters) for _ in range(generator.randint(0, longest)))


@pytest.fixture(scope="module")
def openai():
    tokenizer, folder = BPETokenizerSimple(), gpt2_data_folder()
    tokenizer.load_vocab_and_merges_from_openai(folder / "encoder.json", folder / "vocab.bpe")
    return tokenizer


@pytest.fixture(scope="module")
def own():
    tokenizer = BPETokenizerSimple()
    tokenizer.train(STORY, 257 + 300)
    return tokenizer


def as_tiktoken(tokenizer):
    """tiktoken's encoder with the merges of one of ours."""
    ordinary = {token_id: token for token_id, token in tokenizer.vocab.items() if token not in tokenizer.special_tokens}
    ranks = {bytes(tokenizer.char_bytes[char] for char in token): token_id for token_id, token in ordinary.items()}
    special = {token: tokenizer.get_special_token_id(token) for token in tokenizer.special_tokens}
    return tiktoken.Encoding("own", pat_str=PRE_TOKEN.pattern, mergeable_ranks=ranks, special_tokens=special)


@pytest.mark.parametrize("mode", ["openai", "own"])
def test_ids_equal_tiktoken_and_decode_to_the_text(mode, request):
    tokenizer, generator = request.getfixturevalue(mode), random.Random(1)
    reference = gpt2_tokenizer() if mode == "openai" else as_tiktoken(tokenizer)
    fuzzed = ["".join(chr(generator.choice([generator.randrange(0xD800), generator.randrange(128)])) for _ in range(8)) for _ in range(300)]
    for text in TEXTS + fuzzed + [random_text(generator, LETTERS, 40) for _ in range(2000)]:
        ids = tokenizer.encode(text)
        assert ids == reference.encode(text), text
        assert tokenizer.decode(ids) == text


def test_fast_training_learns_the_same_merges():
    generator = random.Random(2)
    for text in [STORY[:2500], "a" * 50, *(random_text(generator, "aabbc d", 80) for _ in range(100))]:
        fast, slow = BPETokenizerSimple(), BPETokenizerSimple()
        fast.train(text, 257 + 40)
        slow.train_by_recounting(text, 257 + 40)
        assert list(fast.bpe_merges.items()) == list(slow.bpe_merges.items()), text
        assert list(fast.vocab.items()) == list(slow.vocab.items())


def test_each_merge_is_the_first_of_the_most_frequent_pairs():
    """By a definition that shares no code with either trainer."""
    words = pretokenize_text(STORY[:1500])
    sequences = [list(word.encode()) for word in words]
    for pair, new_id in learn_merges(words, 40).items():
        met = [(ids[i], ids[i + 1]) for ids in sequences for i in range(len(ids) - 1)]
        most = max(met.count(one) for one in set(met))
        assert pair == next(one for one in met if met.count(one) == most)
        sequences = replace_pair(sequences, pair, new_id)


def test_hugging_face_learns_the_same_merges_up_to_ties():
    """Its trainer decides ties by the smaller ids, ours by the place in the text. So every merge it learns must be one of the most
    frequent pairs of our count; and where no other pair is as frequent, it must be ours."""
    reference = Tokenizer(models.BPE())
    reference.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    reference.train_from_iterator([STORY], trainers.BpeTrainer(vocab_size=256 + 60, initial_alphabet=alphabet, show_progress=False))
    their_ids = reference.get_vocab()
    theirs = sorted((token_id, token) for token, token_id in their_ids.items() if token_id >= 256)
    tokenizer, words = BPETokenizerSimple(), Counter(pretokenize_text(STORY))
    vocab = dict(tokenizer.byte_chars)
    sequences, times, untied = [list(word.encode()) for word in words], list(words.values()), 0
    for new_id, (_, token) in enumerate(theirs, start=256):
        counts = Counter()
        for ids, count in zip(sequences, times, strict=True):
            for pair in adjacent_pairs(ids):
                counts[pair] += count
        best = [pair for pair, count in counts.items() if count == max(counts.values())]
        chosen = [pair for pair in best if vocab[pair[0]] + vocab[pair[1]] == token]
        assert len(chosen) == 1, (token, new_id)
        assert chosen[0] == min(best, key=lambda pair: [their_ids[vocab[one]] for one in pair])  # the documented tie
        untied += len(best) == 1
        vocab[new_id] = token
        sequences = replace_pair(sequences, chosen[0], new_id)
    assert len(theirs) == 60 and 40 < untied < 60  # both cases occur
    tokenizer.train(STORY, 256 + 60, allowed_special=())
    ours = [tokenizer.vocab[token_id] for token_id in range(256, 316)]
    assert ours[:8] == [token for _, token in theirs][:8] and len(set(ours) & {token for _, token in theirs}) > 50


def test_trying_every_merge_in_order_gives_the_same_ids(own):
    text = STORY[:600] + " caf\u00e9 \u6f6e"
    sequences = [list(word.encode("utf-8")) for word in pretokenize_text(text)]
    for pair, new_id in own.bpe_merges.items():
        sequences = replace_pair(sequences, pair, new_id)
    assert own.encode(text) == [token_id for ids in sequences for token_id in ids]


def test_lowest_rank_first_is_not_left_to_right(openai):
    tokenizer = BPETokenizerSimple()
    tokenizer.train("bc\nbc\nbc\nab\nab", 259)
    assert tokenizer.bpe_merges == {(98, 99): 256, (97, 98): 257}
    assert tokenizer.encode("abc") == [97, 256]  # from left to right: [257, 99]
    assert [openai.vocab[token_id] for token_id in openai.encode(" Tamsett")] == ["\u0120Tam", "sett"]


def test_steps():
    assert merge_pair([1, 1, 1], (1, 1), 9) == [9, 1] and merge_pair([], (1, 2), 9) == []
    assert find_freq_pair([[1, 1, 1], [2, 3]]) == (1, 1)  # overlapping pairs count
    assert find_freq_pair([[2, 3], [1, 2], [2, 3], [1, 2]]) == (2, 3)  # a tie goes to the pair met first
    assert find_freq_pair([[1, 2, 1, 2]], mode="least") == (2, 1)
    assert find_freq_pair([[1], []]) is None and find_freq_pair([]) is None
    assert BPETokenizerSimple.replace_pair([[1, 2], [2, 1, 2]], (1, 2), 7) == [[7], [2, 7]]
    assert "".join(BPETokenizerSimple.pretokenize_text(STORY)) == STORY
    assert pretokenize_text("don't go  on\n\n x") == ["don", "'t", " go", " ", " on", "\n\n", " x"]


def test_small_texts_and_a_vocabulary_larger_than_the_pairs():
    tokenizer = BPETokenizerSimple()
    for text, merges in (("", 0), ("a", 0), ("\u00e9", 1), ("ab", 1), ("aaaa", 2), ("ab ab", 2)):
        tokenizer.train(text, 10_000)
        assert len(tokenizer.bpe_merges) == merges and len(tokenizer.vocab) == 257 + merges, text
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_no_merge_crosses_pre_tokens_or_specials():
    tokenizer = BPETokenizerSimple()
    tokenizer.train("ab<|endoftext|>" * 50 + "x y" * 50, 257 + 50)
    tokens = [tokenizer.vocab[token_id] for token_id in range(256, 256 + len(tokenizer.bpe_merges))]
    assert sorted(tokens) == ["ab", "\u0120y", "\u0120yx"]
    for token in tokens:
        assert len(pretokenize_text(bytes(tokenizer.char_bytes[char] for char in token).decode())) == 1


def test_special_tokens():
    tokenizer, specials = BPETokenizerSimple(), {"<|a|>", "<|a|>b", "\u6f6e\n"}
    tokenizer.train("abab ab<|a|>bab", 261, allowed_special=specials)
    assert tokenizer.bpe_merges == {(97, 98): 256, (256, 256): 257}
    assert [tokenizer.vocab[token_id] for token_id in (258, 259, 260)] == ["<|a|>", "<|a|>b", "\u6f6e\n"]
    assert tokenizer.encode("a<|a|>bb\u6f6e\n", allowed_special=specials) == [97, 259, 98, 260]  # inside a word; the longest wins
    assert tokenizer.decode([97, 259, 98, 260]) == "a<|a|>bb\u6f6e\n"
    for allowed in (None, set(), {"<|a|>"}):
        with pytest.raises(ValueError, match="allow it with allowed_special"):
            tokenizer.encode("x<|a|>b", allowed_special=allowed)
    with pytest.raises(ValueError, match="not a special token"):
        tokenizer.get_special_token_id("ab")
    tokenizer.train("abab", 300)
    assert "<|endoftext|>" in tokenizer.special_tokens and tokenizer.get_special_token_id("<|endoftext|>") == len(tokenizer.vocab) - 1


def test_invalid_utf8_decodes_to_replacement_characters(own):
    assert own.decode([0xFF]) == "\ufffd" and own.decode([0xC3]) + own.decode([0xA9]) == "\ufffd\ufffd"
    assert own.decode([0xC3, 0xA9]) == "\u00e9" and own.decode([]) == ""
    generator = random.Random(4)
    for _ in range(200):
        data = bytes(generator.randrange(256) for _ in range(6))
        assert own.decode(list(data)) == data.decode("utf-8", errors="replace")


def test_training_again_starts_anew_and_a_failed_training_changes_nothing():
    tokenizer, fresh = BPETokenizerSimple(), BPETokenizerSimple()
    tokenizer.train("xx xx yy", 270)
    tokenizer.encode("abab xx")
    for one in (tokenizer, fresh):
        one.train("abab ab", 259)
    before = dict(tokenizer.bpe_merges)
    assert before == fresh.bpe_merges and tokenizer.vocab == fresh.vocab and tokenizer.encode("abab xx") == fresh.encode("abab xx")
    for text, vocab_size, specials in (("cc cc", 300, {"c"}), ("cc \ud800", 300, ()), ("cc", 256, {"<|endoftext|>"})):
        with pytest.raises(ValueError):
            tokenizer.train(text, vocab_size, specials)
        assert tokenizer.bpe_merges == before and tokenizer.encode("abab") == [257]


def test_a_caller_cannot_change_what_is_remembered(own):
    own.tokenize_with_bpe(" tide").append(0)
    assert own.decode(own.encode(" tide")) == " tide"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda t: t.encode(None), TypeError, "text must be a string, not NoneType"),
        (lambda t: t.encode(b"ab"), TypeError, "not bytes"),
        (lambda t: t.train(5, 300), TypeError, "not int"),
        (lambda t: t.encode("\ud800"), ValueError, "surrogates not allowed"),
        (lambda t: t.decode([97, 999]), ValueError, "no id 999"),
        (lambda t: t.decode([-1]), ValueError, "no id -1"),
        (lambda t: t.train("a", 256), ValueError, "at least 257"),
        (lambda t: t.train("a", 300, {""}), ValueError, "cannot be empty"),
        (lambda t: t.find_freq_pair([[1, 2]], "other"), ValueError, "mode must be"),
    ],
)
def test_bad_input_has_a_clear_message(call, error, message):
    tokenizer = BPETokenizerSimple()
    with pytest.raises(error, match=message):
        call(tokenizer)


def test_the_stream_class_of_the_simple_notebook_equals_training_on_one_word():
    notebook = nbformat.read(Path(bpe_from_scratch.__file__).parent / "bpe-from-scratch-simple.ipynb", as_version=4)
    space = {"Counter": Counter, "bytes_to_unicode": bpe_from_scratch.bytes_to_unicode}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            wanted = [node for node in ast.parse(cell.source).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
            exec(compile(ast.Module(wanted, []), "cell", "exec"), space)
    simple, generator = space["BPETokenizerSimple"](), random.Random(5)
    for text in [STORY[:1500], *TEXTS[:-1], *(random_text(generator, LETTERS, 60) for _ in range(50))]:
        simple.train(text, 257 + 30)
        assert list(simple.bpe_merges.items()) == list(learn_by_recounting([text], 30).items())
        assert simple.decode(simple.encode(text)) == text
        assert simple.decode([simple.get_special_token_id("<|endoftext|>"), 97]) == "<|endoftext|>a"
    with pytest.raises(ValueError, match="at least 257"):
        simple.train("a", 256)
