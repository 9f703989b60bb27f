"""Compiled steps against the PyTorch models: equal logits in every storage, chunking, crop, and at the context's end."""

import numpy as np
import pytest
import torch
from fast_decode import FastModel
from gemma3 import Gemma3Model
from llama import Llama3ModelFast, generate_text_basic_stream
from previous_chapters import GPTModel

LLAMA = {"vocab_size": 96, "context_length": 128, "emb_dim": 64, "n_heads": 4, "n_layers": 3, "hidden_dim": 96, "n_kv_groups": 2,
         "rope_base": 10_000.0, "rope_freq": None, "dtype": torch.float32}
GPT = {"vocab_size": 96, "context_length": 128, "emb_dim": 64, "n_heads": 4, "n_layers": 3, "drop_rate": 0.1, "qkv_bias": False}


GEMMA = {
    "vocab_size": 97, "context_length": 128, "emb_dim": 48, "n_heads": 4, "n_layers": 4, "hidden_dim": 80, "head_dim": 16, "qk_norm": True,
    "n_kv_groups": 2, "rope_base": 1_000_000.0, "rope_local_base": 10_000.0, "sliding_window": 7, "query_pre_attn_scalar": 20,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"], "dtype": torch.float32,
}


def gemma_model():
    torch.manual_seed(5)
    model = Gemma3Model(GEMMA).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def llama_model():
    torch.manual_seed(5)
    return Llama3ModelFast(LLAMA).eval()


def gpt_model(qkv_bias=False):
    torch.manual_seed(5)
    model = GPTModel({**GPT, "qkv_bias": qkv_bias}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("build", [llama_model, gemma_model, gpt_model, lambda: gpt_model(True)], ids=["llama", "gemma", "gpt", "gpt, bias"])
@torch.no_grad()
def test_every_token_of_a_text_has_the_models_logits(build):
    model = build()
    fast, ids = FastModel(model, "float32"), torch.randint(0, 96, (1, 128))
    cache = fast.new_cache()
    logits = torch.stack([torch.from_numpy(fast.read_token(int(token), cache)) for token in ids[0]])
    assert torch.allclose(logits, model(ids)[0], atol=1e-4)
    with pytest.raises(ValueError, match="context of 128"):
        fast(ids[:, :1], cache)
