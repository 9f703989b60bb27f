"""The byte-pair encoder agrees with tiktoken, and its fast training with the naive one."""

import random

import pytest
import tiktoken
from bpe_from_scratch import PRE_TOKEN, BPETokenizerSimple
from previous_chapters import gpt2_data_folder, gpt2_tokenizer

TEXTS = [
    "", "a", "ab", "caf\u00e9 na\u00efve \u2014 yes", "\u4f60\u597d \u4e16\u754c", "\U0001f600\U0001f44d\U0001f3fd", "\ta\t\tb", "a\u00a0b",
    "\u0120x \u0120", "  lead", "a   b", "trail   ", "a\n\n", "a\n\n\nb", "a\r\nb\r\n", 'he said , "no" !', "don't we'll I'd 12345 x9",
]  # fmt: skip
STARTS = "ab cab\n'\u00e9\u4f60\U0001f600 \t1.!\u0120"


def random_text(generator, letters, longest):
    return "".join(generator.choice(letters) for _ in range(generator.randint(0, longest)))


@pytest.fixture(scope="module")
def openai():
    tokenizer, folder = BPETokenizerSimple(), gpt2_data_folder()
    tokenizer.load_vocab_and_merges_from_openai(folder / "encoder.json", folder / "vocab.bpe")
    return tokenizer


def test_ids_equal_tiktoken(openai):
    reference, generator = gpt2_tokenizer(), random.Random(1)
    for text in TEXTS + [random_text(generator, STARTS, 40) for _ in range(2000)]:
        assert openai.encode(text) == reference.encode(text), text
        assert openai.decode(openai.encode(text)) == text


def test_fast_training_learns_the_same_merges():
    generator = random.Random(2)
    for _ in range(150):
        text = random_text(generator, "aabbc d", 80)
        fast, slow = BPETokenizerSimple(), BPETokenizerSimple()
        fast.train(text, 256 + 30)
        slow.train_by_recounting(text, 256 + 30)
        assert list(fast.bpe_merges.items()) == list(slow.bpe_merges.items()), text
        assert fast.vocab == slow.vocab


def test_own_training_equals_tiktoken_built_from_the_ranks():
    tokenizer, generator = BPETokenizerSimple(), random.Random(3)
    tokenizer.train("the tide takes the tin and then the tide turns " * 3 + "<|endoftext|>th", 300)
    ranks = {bytes(tokenizer.char_bytes[c] for c in token): i for i, token in tokenizer.vocab.items() if not token.startswith("<|")}
    special = {"<|endoftext|>": tokenizer.get_special_token_id("<|endoftext|>")}
    reference = tiktoken.Encoding("own", pat_str=PRE_TOKEN.pattern, mergeable_ranks=ranks, special_tokens=special)
    for text in TEXTS + [random_text(generator, "thetiden ", 30) for _ in range(300)]:
        assert tokenizer.encode(text) == reference.encode(text), text
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_specials_saving_and_bad_input(tmp_path):
    tokenizer, loaded = BPETokenizerSimple(), BPETokenizerSimple()
    tokenizer.train("xx", 270)
    tokenizer.train("abab ab<|endoftext|>ab", 259)
    assert tokenizer.bpe_merges == {(97, 98): 256, (256, 256): 257}
    assert tokenizer.encode("a<|endoftext|>b", {"<|endoftext|>"}) == [97, 258, 98]
    tokenizer.save_vocab_and_merges(tmp_path / "v.json", tmp_path / "m.bpe")
    loaded.load_vocab_and_merges(tmp_path / "v.json", tmp_path / "m.bpe")
    assert (loaded.vocab, loaded.bpe_merges, loaded.special_tokens) == (tokenizer.vocab, tokenizer.bpe_merges, tokenizer.special_tokens)
    assert tokenizer.decode([0xFF]) == "\ufffd"
    for call in (
        lambda: tokenizer.encode("<|endoftext|>"),
        lambda: tokenizer.decode([999]),
        lambda: tokenizer.encode("\ud800"),
        lambda: tokenizer.train("a", 256),
        lambda: tokenizer.find_freq_pair([[1, 2]], "other"),
    ):
        with pytest.raises(ValueError):
            call()
    tokenizer.train("", 300)
    assert len(tokenizer.vocab) == 257


def test_lowest_rank_first_is_not_left_to_right():
    tokenizer = BPETokenizerSimple()
    tokenizer.train("bc\nbc\nbc\nab\nab", 259)
    assert tokenizer.bpe_merges == {(98, 99): 256, (97, 98): 257}
    assert tokenizer.encode("abc") == [97, 256]  # from left to right: [257, 99]


def test_readme_example():
    tokenizer = BPETokenizerSimple()
    tokenizer.train("the tide takes the tin and then the tide turns", vocab_size=265)
    assert [tokenizer.vocab[token_id] for token_id in tokenizer.encode("the tide")] == ["the", "\u0120tide"]
