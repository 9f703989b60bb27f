"""What several tests of this folder compare with: a tiny Gemma 3 of Hugging Face with random weights."""

import torch
from gemma3_reference import hf_config
from transformers import Gemma3ForCausalLM

FULL, SLIDING = "full_attention", "sliding_attention"
TINY = {
    "vocab_size": 97, "context_length": 96, "emb_dim": 48, "n_heads": 4, "n_layers": 4, "hidden_dim": 80, "head_dim": 16, "qk_norm": True,
    "n_kv_groups": 2, "rope_base": 1_000_000.0, "rope_local_base": 10_000.0, "sliding_window": 7,
    "layer_types": [SLIDING, SLIDING, FULL, SLIDING], "query_pre_attn_scalar": 20, "dtype": torch.float32,
}


def hugging_face(cfg, seed=5):
    """Gemma3ForCausalLM with random weights, norms included, in eval mode."""
    torch.manual_seed(seed)
    model = Gemma3ForCausalLM(hf_config(cfg)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3 if parameter.dim() == 1 else 0.1)
    return model
