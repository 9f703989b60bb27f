"""standalone-llama32.ipynb: its definitions against llama.py and Hugging Face, its functions against independent ones.

Run it:  pytest ch05/07_gpt_to_llama/tests/test_ch05_07_standalone_notebook.py
"""

import ast
import os
import re
import struct
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import figures_gguf
import gguf
import gguf_reader
import llama
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from llama_generate import check_request
from llama_oracles import hugging_face
from previous_chapters import KVCache
from safetensors.torch import save_file

FOLDER = Path(llama.__file__).parent
NOTEBOOK = nbformat.read(FOLDER / "standalone-llama32.ipynb", as_version=4)
PROSE = "\n".join(cell.source for cell in NOTEBOOK.cells if cell.cell_type == "markdown")
OUTPUT = "\n".join(output.get("text", "") for cell in NOTEBOOK.cells for output in cell.get("outputs", []))
TINY = {"vocab_size": 61, "context_length": 96, "emb_dim": 32, "n_heads": 4, "n_layers": 2, "hidden_dim": 56, "n_kv_groups": 2,
        "rope_base": 10_000.0, "rope_freq": None, "dtype": torch.float32}
SCALING = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_context_length": 24}


@pytest.fixture(scope="module")
def own():
    """The notebook's functions and classes, and its configurations, without running anything else."""
    names = {
        "torch": torch, "nn": torch.nn, "F": F, "struct": struct, "warnings": warnings, "Path": Path, "os": os, "time": time,
        **{name: getattr(gguf_reader, name) for name in ("HuggingFaceNames", "SmolLM2Tokenizer", "find_smollm2", "read_gguf")},
        "KVCache": KVCache, "check_request": check_request,
    }
    for cell in NOTEBOOK.cells:
        if cell.cell_type == "code":
            for node in ast.parse(cell.source).body:
                config = isinstance(node, ast.Assign) and "CONFIG" in getattr(node.targets[0], "id", "")
                if config or isinstance(node, ast.FunctionDef | ast.ClassDef):
                    exec(compile(ast.Module([node], []), "standalone-llama32.ipynb", "exec"), names)  # noqa: S102
    return SimpleNamespace(**names)


@pytest.mark.parametrize("class_name", ["Llama3Model", "Llama3ModelFast"])
@pytest.mark.parametrize("changes", [{}, {"rope_freq": SCALING}, {"n_kv_groups": 1}, {"n_kv_groups": 4}])
@torch.no_grad()
def test_notebook_model_equals_hugging_face_and_llama_py(own, class_name, changes):
    cfg = {**TINY, **changes}
    torch.manual_seed(9)
    reference = hugging_face(cfg)
    model, module = getattr(own, class_name)(cfg).eval(), getattr(llama, class_name)(cfg).eval()
    own.load_weights_into_llama(model, cfg, reference.state_dict())
    module.load_state_dict(model.state_dict())
    ids = torch.randint(0, cfg["vocab_size"], (2, cfg["context_length"]))
    assert torch.allclose(model(ids), reference(ids).logits, atol=1e-5)
    assert torch.equal(model(ids), module(ids))


@pytest.mark.parametrize("class_name", ["Llama3Model", "Llama3ModelFast"])
def test_a_seed_gives_notebook_and_module_the_same_weights(own, class_name):
    built = []
    for source in (own, llama):
        torch.manual_seed(4)
        built.append(getattr(source, class_name)(TINY).state_dict())
    assert list(built[0]) == list(built[1]) and all(torch.equal(built[0][name], built[1][name]) for name in built[0])


@pytest.mark.parametrize("class_name", ["Llama3Model", "Llama3ModelFast"])
@torch.no_grad()
def test_cached_and_padded_rows_equal_the_text_alone(own, class_name):
    torch.manual_seed(6)
    model = getattr(own, class_name)(TINY).eval()
    ids = torch.randint(0, 61, (1, 23))
    cache = KVCache(2)
    parts = torch.cat([model(part, cache) for part in ids.split([6, 1, 1, 15], dim=1)], dim=1)
    assert torch.allclose(parts, model(ids), atol=1e-5) and len(cache) == 23
    batch, mask = torch.zeros(2, 30, dtype=torch.long), torch.ones(2, 30, dtype=torch.long)
    batch[0], batch[1, 7:], mask[1, :7] = torch.randint(0, 61, (30,)), ids[0], 0
    logits = model(batch, attention_mask=mask)
    assert torch.allclose(logits[1, 7:], model(ids)[0], atol=1e-5)
    streamed = torch.cat(list(own.generate_text_basic_stream(model, batch, 9, attention_mask=mask)), dim=1)
    assert streamed[1].tolist() == own.generate_text_simple(model, ids, 9, use_cache=False)[0, 23:].tolist()


@torch.no_grad()
def test_wrong_pairs_leave_position_0_alone_and_spoil_later_ones(own):
    torch.manual_seed(7)
    model, wrong = own.Llama3Model(TINY).eval(), own.Llama3Model(TINY).eval()
    wrong.load_state_dict(model.state_dict())
    pairs = torch.arange(8).reshape(2, 4).T.flatten()  # head_dim 8: rows 0 4 1 5 2 6 3 7
    for right, block in zip(model.trf_blocks, wrong.trf_blocks, strict=True):
        for name, heads in (("W_query", 4), ("W_key", 2)):
            weight = getattr(right.att, name).weight * 20  # sharp attention, as after training
            getattr(right.att, name).weight.copy_(weight)
            rows = torch.cat([8 * head + pairs for head in range(heads)])
            getattr(block.att, name).weight.copy_(weight[rows])
            assert torch.equal(gguf_reader.permute_back(weight[rows], heads), weight)
    ids = torch.randint(0, 61, (1, 60))
    difference = (model(ids) - wrong(ids)).abs().mean(dim=-1)[0]
    assert difference[0] < 1e-5 and difference[1:].min() > 1e-4


@pytest.mark.parametrize("bits, name, kind", [(4, "quantize_4", "Q4_1"), (8, "quantize_8", "Q8_0")])
def test_quantization_by_hand_is_as_exact_as_the_gguf_packages(own, bits, name, kind):
    torch.manual_seed(8)
    weight = 0.05 * torch.randn(64, 96)
    kind = gguf.GGMLQuantizationType[kind]
    expected = torch.from_numpy(np.asarray(gguf.dequantize(gguf.quantize(weight.numpy(), kind), kind), dtype=np.float32))
    ours = getattr(own, name)(weight)
    assert torch.allclose(ours, expected, atol=0.05 * weight.abs().max() / 2**bits + 1e-4) or (ours - expected).abs().mean() < 1e-4
    assert 0.9 < (ours - weight).std() / (expected - weight).std() < 1.1


def test_text_reader_follows_length_and_bytes(own):
    data = b"xx" + struct.pack("<Q", 4) + "né!".encode() + b"rest"
    assert own.read_text(data, 2) == ("né!", 14)


def test_counts_of_published_models(own):
    assert own.count_parameters(own.SMOLLM2_CONFIG_135M) == (162_826_560, 134_515_008)
    assert own.count_parameters(own.LLAMA32_CONFIG_1B) == (1_498_482_688, 1_235_814_400)
    assert own.count_parameters(own.LLAMA32_CONFIG_3B) == (3_606_752_256, 3_212_749_824)
    assert own.LLAMA32_CONFIG in (own.LLAMA32_CONFIG_1B, own.LLAMA32_CONFIG_3B)
    for name in ("SMOLLM2_CONFIG_135M", "LLAMA32_CONFIG_1B", "LLAMA32_CONFIG_3B"):
        assert getattr(own, name) == getattr(llama, name)


@torch.no_grad()
def test_a_local_folder_of_weights_loads_tied_and_in_shards(own, tmp_path):
    torch.manual_seed(9)
    reference = hugging_face(TINY)
    reference.lm_head.weight.copy_(reference.model.embed_tokens.weight)
    weights = {name: tensor.clone() for name, tensor in reference.state_dict().items() if name != "lm_head.weight"}
    names = sorted(weights)
    save_file({name: weights[name] for name in names[:7]}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({name: weights[name] for name in names[7:]}, tmp_path / "model-00002-of-00002.safetensors")
    model = own.load_llama32(tmp_path, TINY)
    ids = torch.randint(0, 61, (1, 40))
    assert model.out_head.weight is model.tok_emb.weight
    assert torch.allclose(model(ids), reference(ids).logits, atol=1e-5)


def test_the_stored_chat_makes_sense_and_nothing_was_downloaded():
    assert "flour" in OUTPUT and "Rome" in OUTPUT and "Llama 3.2 is not here" in OUTPUT
    assert "http" not in "\n".join(cell.source for cell in NOTEBOOK.cells if cell.cell_type == "code")
    assert re.search(r"naive: 4 \| safe: 3", OUTPUT)


@pytest.mark.parametrize("number", ["134,515,008"])
def test_counts_in_the_prose_are_printed(number):
    assert number in PROSE and number in OUTPUT


@torch.no_grad()
def cache_bytes(cfg, num_tokens):
    """What a real cache of these sizes takes, filled by a model with the other widths made small."""
    small = {**cfg, "vocab_size": 5, "hidden_dim": 8, "emb_dim": 2 * cfg["n_heads"], "context_length": num_tokens}
    cache = KVCache(cfg["n_layers"])
    llama.Llama3ModelFast(small)(torch.zeros(1, num_tokens, dtype=torch.long), cache=cache)
    head_dim = cfg["emb_dim"] // cfg["n_heads"]
    return sum(tensor.nbytes for pair in cache.get_all() for tensor in pair) * head_dim // 2


@pytest.mark.parametrize("name, cfg, digits", [
    ("SmolLM2, float32", llama.SMOLLM2_CONFIG_135M, 2), ("Llama 3.2 1B, bfloat16", llama.LLAMA32_CONFIG_1B, 1),
])
def test_cache_bytes_of_the_answer_are_those_of_real_caches(name, cfg, digits, own):
    grouped, plain = (cache_bytes({**cfg, "n_kv_groups": groups}, 3) // 3 for groups in (cfg["n_kv_groups"], cfg["n_heads"]))
    weights = own.count_parameters(cfg)[1] * cfg["dtype"].itemsize
    gigabytes = [round(size / 1e9, digits) for size in (grouped * cfg["context_length"], plain * cfg["context_length"], weights)]
    assert f"| {name} | {grouped:,} | {plain:,} | " + " | ".join(f"{size} GB" for size in gigabytes) + " |" in PROSE


@pytest.mark.parametrize("draw", [figures_gguf.file_layout, figures_gguf.q4_1_block, figures_gguf.pair_order, figures_gguf.query_groups])
def test_diagrams_keep_all_text_inside(draw):
    fig = draw()
    fig.canvas.draw()
    edge = fig.bbox
    for text in fig.axes[0].texts:
        if text.get_text():
            box = text.get_window_extent()
            assert box.x0 >= edge.x0 and box.x1 <= edge.x1 and box.y0 >= edge.y0 and box.y1 <= edge.y1, text.get_text()
    plt.close(fig)


def test_every_figure_has_alt_text():
    pictures = [output for cell in NOTEBOOK.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]
    assert len(pictures) == 9 and all(len(output.metadata["image/png"]["alt"].split()) > 3 for output in pictures)
