"""export_gpt.py: every precision and vocabulary size gives a file that others load, and a file that came out wrong is no file."""

import gc
import json

import export_gpt
import gguf
import gguf_reader
import pytest
import torch
from previous_chapters import GPTModel, gpt2_tokenizer
from transformers import GPT2LMHeadModel

TINY = {"vocab_size": 120, "context_length": 64, "emb_dim": 32, "n_heads": 4, "n_layers": 2, "drop_rate": 0.0, "qkv_bias": True}


def save_model(folder, dtype=torch.float32, **changes):
    torch.manual_seed(3)
    model = GPTModel({**TINY, **changes}).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    torch.save(model.to(dtype).state_dict(), folder / "model.pth")
    (folder / "config.json").write_text(json.dumps({**TINY, **changes}), encoding="utf-8")
    return model.float()


def export(folder, kind):
    export_gpt.main(["--checkpoint", str(folder / "model.pth"), "--format", kind, "--output", str(folder / kind)])
    return folder / kind


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_a_model_of_16_bits_is_exported_in_float32(tmp_path, dtype, capsys):
    model = save_model(tmp_path, dtype)
    theirs = GPT2LMHeadModel.from_pretrained(export(tmp_path, "hf")).eval()
    ids = torch.randint(0, 120, (2, 20))
    assert torch.allclose(model(ids), theirs(ids).logits, atol=1e-4)
    metadata, tensors = gguf_reader.read_gguf(export(tmp_path, "gguf"))
    assert metadata["general.file_type"] == gguf.LlamaFileType.ALL_F32 and {entry[0] for entry in tensors.table.values()} == {"F32"}
    assert torch.equal(tensors["token_embd.weight"], model.tok_emb.weight)
    assert torch.equal(tensors["blk.1.attn_qkv.bias"][32:64], model.trf_blocks[1].att.W_key.bias)
    assert capsys.readouterr().out.count("read it back") == 2


@pytest.mark.parametrize("vocab_size", [120, 50_256, 50_304])
def test_llama_cpp_loads_other_vocabulary_sizes(tmp_path, vocab_size):
    """Needs llama.cpp's package xllamacpp, which requirements-extra.txt installs on Linux."""
    xllamacpp = pytest.importorskip("xllamacpp")
    model = save_model(tmp_path, vocab_size=vocab_size)
    path = export(tmp_path, "gguf")
    metadata, _ = gguf_reader.read_gguf(path)
    assert metadata["gpt2.vocab_size"] == vocab_size
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.cpuparams.n_threads = str(path), 64, 1, 1
    server = xllamacpp.Server(params)  # RuntimeError if llama.cpp cannot load the file
    if vocab_size > 50_257:
        assert metadata["tokenizer.ggml.tokens"][50_257] == "<|unused_50257|>"
        assert metadata["tokenizer.ggml.token_type"][-48:] == [3] + [5] * 47
        prompt = "Nell rang the bell"
        ids = gpt2_tokenizer().encode(prompt)
        for _ in range(4):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
        answer = server.handle_completions({"prompt": prompt, "max_tokens": 4, "temperature": 0.0})
        text = gpt2_tokenizer().decode([number for number in ids if number < 50_257])
        assert prompt + answer["choices"][0]["text"] == text
    del server
    gc.collect()


def test_wrote_is_said_only_of_what_was_read_back(tmp_path, capsys, monkeypatch):
    save_model(tmp_path)
    whole_gguf, whole_hf = export_gpt.read_gguf, export_gpt.load_file

    def damaged(tensors):
        return {**tensors, next(iter(tensors)): torch.zeros(3)}

    monkeypatch.setattr(export_gpt, "read_gguf", lambda path: (None, damaged(whole_gguf(path)[1])))
    monkeypatch.setattr(export_gpt, "load_file", lambda path: damaged(whole_hf(path)))
    for kind in ("gguf", "hf"):
        with pytest.raises(SystemExit) as stop:
            export(tmp_path, kind)
        caught = capsys.readouterr()
        assert stop.value.code == 2 and "does not hold" in caught.err and len(caught.err.splitlines()) == 1 and "wrote" not in caught.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.pth"]


def test_numbers_that_are_not_finite_are_refused(tmp_path, capsys):
    save_model(tmp_path)
    state = torch.load(tmp_path / "model.pth", weights_only=True)
    state["pos_emb.weight"][3, 5] = float("nan")
    torch.save(state, tmp_path / "model.pth")
    for kind in ("gguf", "hf"):
        with pytest.raises(SystemExit) as stop:
            export(tmp_path, kind)
        error = capsys.readouterr().err
        assert stop.value.code == 2 and "pos_emb.weight" in error and len(error.splitlines()) == 1


def test_without_the_package_gguf_one_line_says_so(tmp_path, capsys, monkeypatch):
    save_model(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(SystemExit) as stop:
        export(tmp_path, "gguf")
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "gguf" in error and len(error.splitlines()) == 1
