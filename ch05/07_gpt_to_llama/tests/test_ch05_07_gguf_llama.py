"""Any Llama file: written by the gguf package in every number format, read back, computed like Hugging Face's Llama."""

import gguf
import numpy as np
import pytest
import torch
from gguf_reader import HuggingFaceNames, config_from_gguf, find_smollm2, permute_back, read_gguf
from llama import LLAMA32_CONFIG_1B, SMOLLM2_CONFIG_135M, load_gguf_llama
from llama_oracles import hugging_face

CFG = {
    "vocab_size": 64, "context_length": 96, "emb_dim": 256, "n_heads": 8, "n_layers": 2, "hidden_dim": 512, "n_kv_groups": 2,
    "rope_base": 10_000.0, "rope_freq": None, "dtype": torch.float32,
}
SMOOTHED = {**LLAMA32_CONFIG_1B["rope_freq"], "factor": 8.0}
PARTS = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
SCALES = {"Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}  # places of the float16 numbers in a super-block


def quantized(weight: np.ndarray, kind: str, rng) -> np.ndarray:
    """The weight's bytes; for the K formats, which the gguf package cannot write, random blocks of small numbers instead."""
    if kind not in SCALES:
        return gguf.quantize(weight, gguf.GGMLQuantizationType[kind])
    block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][1]
    raw = rng.integers(0, 256, (weight.size // 256, block_bytes), dtype=np.uint8)
    for place in SCALES[kind]:
        raw[:, place : place + 2] = (1e-4 * rng.normal(size=(len(raw), 1))).astype("<f2").view(np.uint8)
    return raw.reshape(weight.shape[0], -1)


def file_name(name: str) -> str:
    """Hugging Face's name -> the file's."""
    if name.startswith("model.layers."):
        _, _, layer, *part, _ = name.split(".")
        return f"blk.{layer}.{PARTS['.'.join(part)]}.weight"
    return {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}[name.removesuffix(".weight")] + ".weight"


def write_llama(path, cfg, kind="F32", tied=False, rope_table=None, changes=None, extra=()):
    """A random Llama as llama.cpp's converter writes it; returns Hugging Face's model with the same dequantized numbers."""
    torch.manual_seed(7)
    rng = np.random.default_rng(7)
    model = hugging_face(cfg, tied)
    writer = gguf.GGUFWriter(path, "llama")
    sizes = {
        "llama.vocab_size": cfg["vocab_size"], "llama.context_length": cfg["context_length"], "llama.embedding_length": cfg["emb_dim"],
        "llama.block_count": cfg["n_layers"], "llama.feed_forward_length": cfg["hidden_dim"], "llama.attention.head_count": cfg["n_heads"],
        "llama.attention.head_count_kv": cfg["n_kv_groups"], "llama.rope.dimension_count": cfg["emb_dim"] // cfg["n_heads"],
    }
    for key, value in {**sizes, **(changes or {})}.items():
        if value is not None:
            {int: writer.add_uint32, str: writer.add_string, float: writer.add_float32, list: writer.add_array}[type(value)](key, value)
    writer.add_float32("llama.rope.freq_base", cfg["rope_base"])
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    for name, parameter in model.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        weight = parameter.numpy()
        heads = {"q_proj": cfg["n_heads"], "k_proj": cfg["n_kv_groups"]}.get(name.split(".")[-2])
        order = np.arange(len(weight))
        if heads:  # row i of a head's first half, then row i of its second half
            order = order.reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)
        stored = "F32" if weight.ndim == 1 else kind
        raw = quantized(np.ascontiguousarray(weight[order]), stored, rng)
        writer.add_tensor(file_name(name), raw, raw_dtype=gguf.GGMLQuantizationType[stored])
        parameter[order] = torch.from_numpy(np.array(gguf.dequantize(raw, gguf.GGMLQuantizationType[stored]), dtype=np.float32))
    if rope_table is not None:
        writer.add_tensor("rope_freqs.weight", np.asarray(rope_table, dtype=np.float32))
    for name, data in extra:
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def slowed(freq, head_dim, rope_base) -> list[float]:
    """What llama.cpp's converter stores, as a loop over the wavelengths."""
    table, original = [], freq["original_context_length"]
    low, high = freq["low_freq_factor"], freq["high_freq_factor"]
    for i in range(0, head_dim, 2):
        wavelength = 2 * np.pi * rope_base ** (i / head_dim)
        share = (original / wavelength - low) / (high - low)
        if wavelength > original / low:
            table.append(freq["factor"])
        else:
            table.append(1.0 if wavelength < original / high else 1 / ((1 - share) / freq["factor"] + share))
    return table


def loaded(path, fast=False):
    """(our model, its configuration) from a file."""
    model, _ = load_gguf_llama(path, fast=fast)
    return model, model.cfg


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"])
@torch.no_grad()
def test_logits_equal_hugging_faces_in_every_number_format(tmp_path, kind):
    theirs = write_llama(tmp_path / "tiny.gguf", CFG, kind, tied=kind in ("Q4_1", "Q6_K"))
    ours, cfg = loaded(tmp_path / "tiny.gguf", fast=kind in ("F32", "Q6_K"))
    assert cfg == {**CFG, "tied": kind in ("Q4_1", "Q6_K")} and (ours.out_head.weight is ours.tok_emb.weight) == cfg["tied"]
    ids = torch.randint(0, 64, (2, 96), generator=torch.Generator().manual_seed(8))
    logits, expected = ours(ids), theirs(ids).logits
    assert expected.std() > 0.05  # else anything would be equal
    assert torch.allclose(logits, expected, atol=1e-4), (logits - expected).abs().max()


@torch.no_grad()
def test_the_table_of_slowed_rotations_becomes_rope_freq(tmp_path):
    cfg = {**CFG, "rope_base": 500_000.0, "rope_freq": SMOOTHED, "context_length": 2048}
    theirs = write_llama(tmp_path / "31.gguf", cfg, rope_table=slowed(SMOOTHED, 32, 500_000.0))
    ours, found = loaded(tmp_path / "31.gguf")
    assert found == {**cfg, "tied": False}
    ids = torch.randint(0, 64, (1, 1500), generator=torch.Generator().manual_seed(9))
    logits = ours(ids)[:, -100:]
    assert torch.allclose(logits, theirs(ids).logits[:, -100:], atol=1e-4)
    ours.cfg["rope_freq"] = None
    ours.build_rope_tables()
    assert not torch.allclose(ours(ids)[:, -100:], logits, atol=1e-3)


def test_the_factor_is_read_from_the_table_and_other_tables_are_refused(tmp_path):
    base = {**CFG, "rope_base": 500_000.0}
    for factor in (8.0, 32.0):
        write_llama(tmp_path / "r.gguf", base, rope_table=slowed({**SMOOTHED, "factor": factor}, 32, 500_000.0))
        assert config_from_gguf(*read_gguf(tmp_path / "r.gguf"))["rope_freq"] == {**SMOOTHED, "factor": factor}
    write_llama(tmp_path / "r.gguf", base, rope_table=[1.0] * 16)
    assert config_from_gguf(*read_gguf(tmp_path / "r.gguf"))["rope_freq"] is None
    other = slowed({**SMOOTHED, "original_context_length": 4096}, 32, 500_000.0)
    for table, message in ((other, "not Llama 3.1's"), ([1.0] * 15, "15 numbers"), ([np.nan] * 16, "nan"), ([-1.0] * 16, "-1.0")):
        write_llama(tmp_path / "r.gguf", base, rope_table=table)
        with pytest.raises(ValueError, match=message):
            config_from_gguf(*read_gguf(tmp_path / "r.gguf"))


def test_smollm2s_file_gives_the_configuration_that_llama_py_names():
    assert config_from_gguf(*read_gguf(find_smollm2())) == {**SMOLLM2_CONFIG_135M, "tied": True}


def test_names_are_hugging_faces_and_an_unknown_tensor_is_named(tmp_path):
    theirs = write_llama(tmp_path / "a.gguf", CFG)
    names = HuggingFaceNames(*read_gguf(tmp_path / "a.gguf"))
    assert set(names) == set(theirs.state_dict()) and len(names) == len(theirs.state_dict())
    assert torch.equal(names["model.layers.1.self_attn.k_proj.weight"], theirs.model.layers[1].self_attn.k_proj.weight)
    for name in ("blk.0.ffn_gate_exps.weight", "blk.0.attn_q.bias", "blk.x.attn_q.weight", "v.patch_embd.weight", "x"):
        write_llama(tmp_path / "a.gguf", CFG, extra=[(name, np.ones(32, np.float32))])
        with pytest.raises(ValueError, match=f"tensor {name} has no place in a Llama model"):
            HuggingFaceNames(*read_gguf(tmp_path / "a.gguf"))
    with pytest.raises(ValueError, match="10 rows cannot be split into pairs in 4 heads"):
        permute_back(torch.ones(10, 3), 4)


@pytest.mark.parametrize("changes, message", [
    ({"llama.block_count": None}, "block_count is missing"),
    ({"llama.block_count": 0}, "block_count is 0"),
    ({"llama.context_length": "long"}, "context_length is 'long'"),
    ({"llama.feed_forward_length": [512, 256]}, "feed_forward_length is .512, 256."),
    ({"llama.attention.head_count": 7}, "7 heads must divide"),
    ({"llama.embedding_length": 128}, "256 wide"),
    ({"llama.attention.key_length": 64}, "key_length is 64; only heads of emb_dim / n_heads = 32"),
    ({"llama.rope.dimension_count": 16}, "dimension_count is 16"),
    ({"llama.rope.scaling.type": "yarn"}, "scaling.type is 'yarn'"),
    ({"llama.expert_count": 8}, "mixture of experts"),
])
def test_what_cannot_be_computed_is_refused(tmp_path, changes, message):
    write_llama(tmp_path / "a.gguf", CFG, changes=changes)
    with pytest.raises(ValueError, match=message):
        config_from_gguf(*read_gguf(tmp_path / "a.gguf"))


def test_another_epsilon_or_architecture_is_refused(tmp_path):
    write_llama(tmp_path / "a.gguf", CFG)
    metadata, tensors = read_gguf(tmp_path / "a.gguf")
    for key, value, message in (
        ("llama.attention.layer_norm_rms_epsilon", 1e-6, "epsilon is 1e-06"), ("llama.rope.freq_base", 0.0, "freq_base is 0.0"),
        ("general.architecture", "qwen2", "architecture 'qwen2'"),
    ):
        with pytest.raises(ValueError, match=message):
            config_from_gguf({**metadata, key: value}, tensors)
    del tensors.table["token_embd.weight"]
    with pytest.raises(ValueError, match="no matrix token_embd.weight"):
        config_from_gguf(metadata, tensors)


def test_without_a_number_of_key_heads_every_query_head_has_its_own(tmp_path):
    write_llama(tmp_path / "a.gguf", {**CFG, "n_kv_groups": 8}, changes={"llama.attention.head_count_kv": None})
    model, cfg = loaded(tmp_path / "a.gguf")
    assert cfg["n_kv_groups"] == 8 and model.trf_blocks[0].att.W_key.weight.shape == (256, 256)
