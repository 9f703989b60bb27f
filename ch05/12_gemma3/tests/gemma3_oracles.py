"""What several tests of this folder compare with: Hugging Face's Gemma 3 in our sizes, and the file's own weights in it."""

import pytest
import torch
from gemma3 import GEMMA3_CONFIG_270M
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

FULL, SLIDING = "full_attention", "sliding_attention"
TINY = {
    "vocab_size": 97, "context_length": 96, "emb_dim": 48, "n_heads": 4, "n_layers": 4, "hidden_dim": 80, "head_dim": 16, "qk_norm": True,
    "n_kv_groups": 2, "rope_base": 1_000_000.0, "rope_local_base": 10_000.0, "sliding_window": 7,
    "layer_types": [SLIDING, SLIDING, FULL, SLIDING], "query_pre_attn_scalar": 20, "dtype": torch.float32,
}


def hf_config(cfg):
    """Our sizes as a Gemma3TextConfig."""
    full = {"rope_type": "default", "rope_theta": cfg["rope_base"]}
    if cfg.get("rope_freq"):
        full |= {"rope_type": "linear", "factor": cfg["rope_freq"]["factor"]}
    return Gemma3TextConfig(
        vocab_size=cfg["vocab_size"], hidden_size=cfg["emb_dim"], intermediate_size=cfg["hidden_dim"], num_hidden_layers=cfg["n_layers"],
        num_attention_heads=cfg["n_heads"], num_key_value_heads=cfg["n_kv_groups"], head_dim=cfg["head_dim"],
        max_position_embeddings=cfg["context_length"], rms_norm_eps=1e-6, sliding_window=cfg["sliding_window"],
        layer_types=list(cfg["layer_types"]), query_pre_attn_scalar=cfg["query_pre_attn_scalar"], attn_implementation="eager",
        rope_parameters={FULL: full, SLIDING: {"rope_type": "default", "rope_theta": cfg["rope_local_base"]}},
        tie_word_embeddings=True, attention_dropout=0.0,
    )


def hugging_face(cfg, seed=5):
    """Gemma3ForCausalLM with random weights, norms included, in eval mode."""
    torch.manual_seed(seed)
    model = Gemma3ForCausalLM(hf_config(cfg)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3 if parameter.dim() == 1 else 0.1)
    return model


def hugging_face_with(names):
    """Gemma3ForCausalLM with the real model's sizes and the tensors of `names` (Hugging Face's name -> tensor), nothing random."""
    with torch.device("meta"):
        model = Gemma3ForCausalLM(hf_config(GEMMA3_CONFIG_270M))
    state = {name: names[name] for name in names}
    result = model.load_state_dict({**state, "lm_head.weight": state["model.embed_tokens.weight"]}, strict=True, assign=True)
    assert not result.missing_keys and not result.unexpected_keys
    model.tie_weights()
    fresh = type(model.model.rotary_emb)(model.config)  # buffers are not in the state dict
    model.model.rotary_emb = fresh
    model.model.embed_tokens.embed_scale = torch.tensor(GEMMA3_CONFIG_270M["emb_dim"] ** 0.5)
    assert all(tensor.device.type == "cpu" for tensor in [*model.parameters(), *model.buffers()])
    return model.eval()
