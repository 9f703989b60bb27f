"""export_gpt.py writes what Hugging Face and the gguf package read back."""

import json

import export_gpt
import gguf
import gguf_reader
import numpy as np
import pytest
import torch
from previous_chapters import GPTModel, gpt2_tokenizer
from transformers import GPT2LMHeadModel

TINY = {"vocab_size": 120, "context_length": 24, "emb_dim": 32, "n_heads": 4, "n_layers": 2, "drop_rate": 0.0, "qkv_bias": False}


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
