"""SmolLM2 in Hugging Face's class, to compare speeds and texts with. Needs `transformers`."""

import torch
from gguf_reader import HuggingFaceNames, find_smollm2, read_gguf
from llama import SMOLLM2_CONFIG_135M


def smollm2_twin(dtype: torch.dtype = torch.float32):
    """Hugging Face's LlamaForCausalLM with SmolLM2's weights from the same file, in eval mode."""
    from transformers import LlamaConfig, LlamaForCausalLM  # here, because it takes seconds

    cfg = SMOLLM2_CONFIG_135M
    twin = LlamaForCausalLM(LlamaConfig(
        vocab_size=cfg["vocab_size"], hidden_size=cfg["emb_dim"], intermediate_size=cfg["hidden_dim"], num_hidden_layers=cfg["n_layers"],
        num_attention_heads=cfg["n_heads"], num_key_value_heads=cfg["n_kv_groups"], max_position_embeddings=cfg["context_length"],
        rms_norm_eps=1e-5, rope_parameters={"rope_type": "default", "rope_theta": cfg["rope_base"]}, tie_word_embeddings=True,
    )).to(dtype).eval()  # fmt: skip
    twin.load_state_dict(dict(HuggingFaceNames(*read_gguf(find_smollm2())).items()), strict=False)
    return twin
