"""Hugging Face's Gemma 3 as an oracle: our sizes in its configuration, our weights in its model. Needs `transformers`."""

import warnings

import torch
from gemma3_weights import gemma_parameters


def hf_config(cfg):
    """A configuration of ours as a Gemma3TextConfig."""
    from transformers import Gemma3TextConfig

    full = {"rope_type": "default", "rope_theta": cfg["rope_base"]}
    if cfg.get("rope_freq"):
        full = {**full, "rope_type": "linear", "factor": cfg["rope_freq"]["factor"]}
    return Gemma3TextConfig(
        vocab_size=cfg["vocab_size"], hidden_size=cfg["emb_dim"], intermediate_size=cfg["hidden_dim"], num_hidden_layers=cfg["n_layers"],
        num_attention_heads=cfg["n_heads"], num_key_value_heads=cfg["n_kv_groups"], head_dim=cfg["head_dim"],
        max_position_embeddings=cfg["context_length"], rms_norm_eps=1e-6, sliding_window=cfg["sliding_window"],
        layer_types=list(cfg["layer_types"]), query_pre_attn_scalar=cfg["query_pre_attn_scalar"], attn_implementation="eager",
        rope_parameters={"full_attention": full, "sliding_attention": {"rope_type": "default", "rope_theta": cfg["rope_local_base"]}},
        tie_word_embeddings=True,
    )


def hugging_face_twin(cfg, params):
    """Gemma3ForCausalLM in eval mode around the tensors of `params` (Hugging Face's name -> tensor), which are not copied."""
    warnings.filterwarnings("ignore", message="IProgress not found")  # transformers would like nicer progress bars
    from transformers import Gemma3ForCausalLM

    config = hf_config(cfg)
    with torch.device("meta"):
        twin = Gemma3ForCausalLM(config)
    params = {name: params[name] for name in params}
    twin.load_state_dict({**params, "lm_head.weight": params["model.embed_tokens.weight"]}, assign=True)
    twin.tie_weights()
    twin.model.rotary_emb = type(twin.model.rotary_emb)(config)  # buffers are no part of a state dict, and still on meta
    twin.model.embed_tokens.embed_scale = torch.tensor(cfg["emb_dim"] ** 0.5)
    return twin.eval()


def twin_of(model):
    """Gemma3ForCausalLM that shares the weights of our model, plain or cached."""
    return hugging_face_twin(model.cfg, gemma_parameters(model, model.cfg["n_layers"]))
