"""Hostile texts, chats and files: SmolLM2's tokenizer against Hugging Face's `tokenizers`, Llama 3's against tiktoken."""

import base64
import random
import time

import pytest
import tiktoken
from gguf_reader import SmolLM2Tokenizer, find_smollm2, read_gguf
from llama3_tokenizer import LLAMA3_PATTERN, LLAMA3_SPECIALS, ChatFormat, Llama3Tokenizer
from smollm2_tokenizer import check_text
from tokenizers import Tokenizer, models, pre_tokenizers


@pytest.fixture(scope="module")
def metadata():
    return read_gguf(find_smollm2())[0]


@pytest.fixture(scope="module")
def tokenizer(metadata):
    return SmolLM2Tokenizer(metadata)


@pytest.fixture(scope="module")
def oracle(metadata):
    """Hugging Face's BPE from the same lists, with the file's unknown token for bytes that are not in the vocabulary."""
    tokens, merges = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.merges"]
    built = Tokenizer(models.BPE(
        vocab={token: i for i, token in enumerate(tokens)}, merges=[tuple(merge.split(" ")) for merge in merges],
        unk_token=tokens[metadata["tokenizer.ggml.unknown_token_id"]],
    ))
    built.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    return built


def random_texts(number: int) -> list[str]:
    """Strings of several alphabets, control characters, emoji with joiners, digits and spaces of all kinds, up to 60 long."""
    rng = random.Random(11)
    alphabets = [
        [chr(code) for code in range(256)], [chr(code) for code in range(0x20)] + list(" ab1"), list("abcdefgh ABC'sdt.,\n\t"),
        list("0123456789²½Ⅷ٣ ,."), list("éüßñøżŁğ ſıİ"), list("你好世界こんにちは안녕"), list("🙂👩\u200d🚀❤\ufe0f🏽 \u2028\u00a0\u3000"),
        [chr(code) for code in range(0x370, 0x600)], [chr(code) for code in range(0x10000, 0x10FFFF, 997)],
    ]
    return ["".join(rng.choices(rng.choice(alphabets), k=rng.randint(1, 60))) for _ in range(number)]


def test_ids_equal_hugging_faces_on_2000_random_texts_and_every_single_character_below_256(tokenizer, oracle):
    texts = [*random_texts(2000), *map(chr, range(256)), "\x04\x06\x13 a\x04b", "\U0010ffff", "a" * 3000, "ab" * 2000]
    for text in texts:
        assert tokenizer.encode(text) == oracle.encode(text).ids, repr(text)


def test_bytes_that_are_not_in_the_vocabulary_become_the_unknown_token(tokenizer, metadata):
    unknown = metadata["tokenizer.ggml.unknown_token_id"]
    absent = [byte for byte in range(128) if tokenizer.character_of_byte[byte] not in tokenizer.ids]
    assert absent == [4, 6, 19, 20, 22, 29]
    for byte in absent:
        assert tokenizer.encode(chr(byte)) == [unknown]
    ids = tokenizer.encode_chat([{"role": "user", "content": "\x04"}])
    assert ids.count(tokenizer.eos_token_id) == 2 and unknown in ids
    assert tokenizer.stop_ids == (tokenizer.eos_token_id, tokenizer.special["<|endoftext|>"])


def test_a_word_of_100000_letters_takes_seconds(tokenizer):
    rng = random.Random(12)
    word = "".join(rng.choices("etaoinshrdlu", k=100_000))
    start = time.process_time()
    assert tokenizer.decode(tokenizer.encode(word)) == word
    assert time.process_time() - start < 10


BAD_TEXTS = [(None, TypeError, "not NoneType"), (7, TypeError, "not int"), (b"x", TypeError, "not bytes"), (["x"], TypeError, "not list"),
             ("ab\ud83d", ValueError, "character 2 is '.ud83d'"), ("\udc00x", ValueError, "character 0 is '.udc00'")]


@pytest.mark.parametrize("text, kind, message", BAD_TEXTS)
def test_what_is_no_text_is_refused_in_one_line(tokenizer, llama3_file, text, kind, message):
    chat = ChatFormat(Llama3Tokenizer(llama3_file))
    calls = [
        lambda: check_text(text), lambda: tokenizer.encode(text), lambda: tokenizer.encode(text, allowed_special="all"),
        lambda: tokenizer.encode_chat([{"role": "user", "content": text}]),
        lambda: tokenizer.apply_chat_template([{"role": "user", "content": "a"}, {"role": "assistant", "content": text}]),
        lambda: chat.tokenizer.encode(text), lambda: chat.encode(text),
    ]
    for call in calls:
        with pytest.raises(kind, match=message) as caught:
            call()
        assert len(str(caught.value).splitlines()) == 1 and str(caught.value).isprintable()


@pytest.mark.parametrize("message", [{"role": "user"}, {"content": "x"}, "hello", None, ["user", "x"]])
def test_a_message_without_role_or_content_is_refused(tokenizer, message):
    with pytest.raises(ValueError, match="a dictionary with role and content"):
        tokenizer.encode_chat([message])


def test_half_a_description_is_refused(metadata):
    for name in SmolLM2Tokenizer.NEEDED:
        with pytest.raises(ValueError, match=f"lacks {name}"):
            SmolLM2Tokenizer({key: value for key, value in metadata.items() if key != f"tokenizer.ggml.{name}"})


# ---- Llama 3 ----

TOKENS = [bytes([byte]) for byte in range(256)] + [b"he", b"ll", b" w"]


def write_ranks(path, tokens, first=0):
    path.write_bytes(b"\n".join(base64.b64encode(token) + b" %d" % number for number, token in enumerate(tokens, start=first)))
    return path


@pytest.fixture(scope="module")
def llama3_file(tmp_path_factory):
    return write_ranks(tmp_path_factory.mktemp("llama3") / "tokenizer.model", TOKENS)


def test_256_control_tokens_fill_the_vocabulary_exactly(llama3_file):
    tokenizer = Llama3Tokenizer(llama3_file)
    assert sorted(tokenizer.special.values()) == list(range(128_000, 128_256)) and len(set(tokenizer.special)) == 256
    assert {name: tokenizer.special[name] for name in LLAMA3_SPECIALS} == LLAMA3_SPECIALS
    assert tokenizer.special["<|reserved_0|>"] == 128_002 and tokenizer.special["<|reserved_253|>"] == 128_255
    assert tokenizer.model.n_vocab == 128_256
    assert tokenizer.stop_ids == ChatFormat(tokenizer).stop_ids == (128_001, 128_008, 128_009)


def test_llama3_ids_equal_tiktokens_and_round_trip(llama3_file):
    tokenizer = Llama3Tokenizer(llama3_file)
    plain = tiktoken.Encoding(name="t", pat_str=LLAMA3_PATTERN, mergeable_ranks={t: i for i, t in enumerate(TOKENS)}, special_tokens={})
    for text in [*random_texts(300), *map(chr, range(256))]:
        assert tokenizer.encode(text) == plain.encode(text) and tokenizer.decode(tokenizer.encode(text)) == text
    for number in (300, 128_256, -1, 2**70):
        with pytest.raises(IndexError):
            tokenizer.decode([number])


def test_llama3_messages_are_stripped_as_the_published_template_does(llama3_file):
    chat = ChatFormat(Llama3Tokenizer(llama3_file))
    assert chat.encode("\n hi \n", "  be brief ") == chat.encode("hi", "be brief")
    assert "<|end_header_id|>\n\nhi<|eot_id|>" in chat.decode(chat.encode(" hi\t"))
    assert chat.encode("hi", "") != chat.encode("hi") == chat.encode("hi", chat.default_system)


@pytest.mark.parametrize("tokens, first, message", [
    ([*TOKENS, b"he"], 0, "line 260: the token was there before"),
    (TOKENS, 127_900, "line 101: .* 128000 is not below 128,000"),
    (TOKENS[1:], 0, "single bytes is missing"),
])
def test_damaged_rank_files_are_named(tmp_path, tokens, first, message):
    with pytest.raises(ValueError, match=message):
        Llama3Tokenizer(write_ranks(tmp_path / "tokenizer.model", tokens, first))


def test_two_tokens_of_one_rank_are_refused(tmp_path):
    path = write_ranks(tmp_path / "tokenizer.model", TOKENS)
    path.write_bytes(path.read_bytes() + b"\n" + base64.b64encode(b"xyz") + b" 7")
    with pytest.raises(ValueError, match="share a rank"):
        Llama3Tokenizer(path)
