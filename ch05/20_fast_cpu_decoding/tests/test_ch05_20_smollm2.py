"""The real model: float32 steps write PyTorch's text, int8 loses nothing, and the file's blocks are the same numbers.

Run it:  pytest ch05/20_fast_cpu_decoding/tests/test_ch05_20_smollm2.py
"""

import json
import os
from pathlib import Path

import pytest
import torch

if os.environ.get("CI") != "true":
    pytest.importorskip("numba", reason="needs numba: python -m pip install numba")

import fast_chat
import fast_decode
from compiled_linears import exchange_linears
from fast_decode import FastModel, file_blocks
from llama import find_smollm2, generate_text_basic_stream, load_smollm2, read_gguf
from previous_chapters import STORY_FILE, KVCache, read_text

FOLDER = Path(fast_decode.__file__).parent
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def smollm2():
    return load_smollm2()


def read_all(fast, ids):
    """Logits (num_tokens, vocab_size) of a text read token by token."""
    cache = fast.new_cache()
    return torch.stack([torch.from_numpy(fast.read_token(int(token), cache)) for token in ids])


@torch.inference_mode()
def test_500_greedy_tokens_and_their_logits_are_the_models(smollm2):
    model, tokenizer = smollm2
    fast = FastModel(model, "float32")
    prompt = torch.tensor([tokenizer.encode("The tide comes in, and the old clock in the harbor")])
    logits = []

    def choose(row, token_ids):
        logits.append(row)
        return row.argmax(dim=-1, keepdim=True)

    written = list(generate_text_basic_stream(fast, prompt, 500, choose=choose, cache=fast.new_cache()))
    text = torch.cat([prompt, *written], dim=1)
    expected = model(text)[0, prompt.shape[1] - 1 : -1]
    assert torch.equal(expected.argmax(-1), text[0, prompt.shape[1] :])
    assert (torch.cat(logits) - expected).abs().max() < 1e-4


@torch.inference_mode()
def test_int8_and_the_files_blocks_on_text(smollm2):
    model, tokenizer = smollm2
    ids = torch.tensor(tokenizer.encode(read_text(STORY_FILE))[:100])
    expected = model(ids[None])[0]
    blocks = read_all(FastModel(model, file_blocks(*read_gguf(find_smollm2()))), ids)
    assert (blocks - expected).abs().max() < 1e-3
    rounded = read_all(FastModel(model, file_blocks(*read_gguf(find_smollm2()), rounded=True)), ids)
    assert 1e-2 < (rounded - expected).abs().max() < 2  # logits reach 30
    losses = [torch.nn.functional.cross_entropy(one[:-1], ids[1:]) for one in (read_all(FastModel(model), ids), rounded, expected)]
    assert max(abs(losses[0] - losses[2]), abs(losses[1] - losses[2])) < 0.05  # 100 tokens are few; the committed log has thousands


def test_the_committed_log_says_that_int8_loses_less_than_a_hundredth():
    loss = json.loads((FOLDER / "ladder.json").read_text(encoding="utf-8"))["loss"]
    assert set(loss["forms"]) == {"float32", "int8", "int8_blocks", "file", "file_rounded"}
    for form, found in loss["forms"].items():
        assert abs(found["above"]) < (0.01 + 2 * found["standard_error"] if form != "file" else 0.001)


@torch.inference_mode()
def test_exchanged_layers_write_the_same_text(smollm2):
    model, _ = smollm2
    exchanged, prompt = exchange_linears(load_smollm2(fast=False)[0]), torch.arange(5)[None]
    texts = [[int(ids) for ids in generate_text_basic_stream(one, prompt, 8, cache=KVCache(30))] for one in (exchanged, model)]
    assert texts[0] == texts[1]
    assert type(exchanged.trf_blocks[0].att.W_query).__name__ == "CompiledLinear"
    with pytest.raises(ValueError, match="without bias"):
        exchange_linears(torch.nn.Sequential(torch.nn.Linear(4, 4)))


@pytest.mark.parametrize("weights", ["int8", "file_rounded", "pytorch"])
def test_the_chat_answers_once(weights, capsys):
    options = ["--prompt", "Name three colors.", "--temperature", "0", "--max_new_tokens", "12", "--weights", weights]
    assert fast_chat.main(options) == 0
    shown = capsys.readouterr()
    assert shown.out.strip() and "tokens/s" in shown.err


def test_the_chat_answers_without_numba(monkeypatch, capsys):
    monkeypatch.setattr(fast_chat, "numba", None)
    assert fast_chat.main(["--prompt", "Name three colors.", "--temperature", "0", "--max_new_tokens", "4"]) == 0
    assert "numba is missing" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [["--prompt", " "], ["--temperature", "-1"], ["--threads", "0"], ["--weights", "int4"], ["--top_k", "0"]])
def test_bad_settings_of_the_chat_end_in_one_line(wrong, capsys):
    with pytest.raises(SystemExit) as stop:
        fast_chat.main(wrong)
    assert stop.value.code == 2 and len(capsys.readouterr().err.splitlines()) == 1


def test_a_conversation_reads_only_what_is_new(smollm2):
    from llama import Conversation

    model, tokenizer = smollm2
    fast = FastModel(model)
    conversation = Conversation(fast, tokenizer, max_new_tokens=6)
    conversation.cache = fast.new_cache()
    list(conversation.ask("Name a color."))
    list(conversation.ask("And another one."))
    assert conversation.speed.reused > 30 and conversation.speed.prompt_tokens < 40
