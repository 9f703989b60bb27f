"""Published Gemma 3 weights into the model: what the GGUF file calls them, and every mismatch named."""

import warnings
from collections.abc import Mapping

from llama import assign, tie_or_untie


class GemmaNames(Mapping):
    """The tensors of a Gemma GGUF file under Hugging Face's names; norm weights as the model's scale, without the 1.

    Query and key rows need no new order: the file keeps the halves of a head one behind the other, as the model pairs them.
    Section 5.
    """

    PARTS = {
        "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
        "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
        "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
        "attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm", "post_ffw_norm": "post_feedforward_layernorm",
    }
    TOP = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight", "output.weight": "lm_head.weight"}

    def __init__(self, tensors):
        self.tensors = tensors
        self.source = {self.rename(name): name for name in tensors}

    @property
    def shapes(self):
        """Name -> shape, from the file's table: no weight is read for it."""
        return {name: self.tensors.table[source][1] for name, source in self.source.items()}

    def rename(self, name):
        """blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight; ValueError for a name that Gemma does not have."""
        if name in self.TOP:
            return self.TOP[name]
        parts = name.split(".")
        if len(parts) != 4 or parts[0] != "blk" or parts[2] not in self.PARTS:
            raise ValueError(f"the tensor {name} is no part of a Gemma 3 model")
        return f"model.layers.{parts[1]}.{self.PARTS[parts[2]]}.{parts[3]}"

    def __getitem__(self, name):
        tensor = self.tensors[self.source[name]]
        return tensor - 1 if name.endswith("norm.weight") else tensor  # the file stores 1 + scale

    def __contains__(self, name):
        return name in self.source  # without it, Python would read the tensor to find out

    def __iter__(self):
        return iter(self.source)

    def __len__(self):
        return len(self.source)


def gemma_parameters(model, n_layers):
    """Hugging Face's name -> parameter, for the first n_layers blocks, without the head. Section 5."""
    wanted = {"model.embed_tokens.weight": model.tok_emb.weight, "model.norm.weight": model.final_norm.scale}
    for number, block in enumerate(model.blocks[:n_layers]):
        att, ff = block.att, block.ff
        parts = {
            "self_attn.q_proj": att.W_query.weight, "self_attn.k_proj": att.W_key.weight,
            "self_attn.v_proj": att.W_value.weight, "self_attn.o_proj": att.out_proj.weight,
            "mlp.gate_proj": ff.fc1.weight, "mlp.up_proj": ff.fc2.weight, "mlp.down_proj": ff.fc3.weight,
            "input_layernorm": block.input_layernorm.scale, "post_attention_layernorm": block.post_attention_layernorm.scale,
            "pre_feedforward_layernorm": block.pre_feedforward_layernorm.scale,
            "post_feedforward_layernorm": block.post_feedforward_layernorm.scale,
        }
        if att.q_norm is not None:
            parts |= {"self_attn.q_norm": att.q_norm.scale, "self_attn.k_norm": att.k_norm.scale}
        wanted |= {f"model.layers.{number}.{part}.weight": parameter for part, parameter in parts.items()}
    return wanted


OPTIONAL = ("embed_tokens", "model.norm", "q_norm", "k_norm", "pre_feedforward_layernorm", "post_feedforward_layernorm")


def load_weights_into_gemma(model, param_config, params):
    """Copy weights with Hugging Face's names into the model; nothing is changed unless all of them fit.

    param_config: n_layers is read, and `tied` (True if absent): head and embedding share one tensor. KeyError names missing
    tensors, ValueError a wrong shape, other layers than the model's, or a head that contradicts `tied`. A warning names
    tensors that are not used, and absent ones that a model can do without (embedding, final, feed-forward, query and key
    norms keep their values). Section 5.
    """
    if param_config["n_layers"] != len(model.blocks):
        raise ValueError(f"the configuration has {param_config['n_layers']} layers, the model {len(model.blocks)}")
    wanted, tied = gemma_parameters(model, param_config["n_layers"]), param_config.get("tied", True)
    absent = [name for name in wanted if name not in params]
    missing = [name for name in absent if not any(part in name for part in OPTIONAL)]
    if missing:
        raise KeyError(f"{len(missing)} tensors are missing, first {missing[0]}")
    shapes = params.shapes if isinstance(params, GemmaNames) else {name: tensor.shape for name, tensor in params.items()}
    for name, parameter in [*wanted.items(), ("lm_head.weight", model.out_head.weight)]:
        if name in params and shapes[name] != parameter.shape:
            raise ValueError(f"{name}: the model needs {tuple(parameter.shape)}, the weights have {tuple(shapes[name])}")
    tie_or_untie(model, params, tied)
    if not tied:
        wanted["lm_head.weight"] = model.out_head.weight
    for name in wanted.keys() - set(absent):
        assign(wanted[name], params[name], name)
    for what, names in (("not used", params.keys() - wanted.keys() - {"lm_head.weight"}), ("absent, their values stay", absent)):
        if names:
            warnings.warn(f"{len(names)} tensors are {what}, first {min(names)}", stacklevel=2)
