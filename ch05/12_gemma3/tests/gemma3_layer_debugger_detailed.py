"""Like gemma3_layer_debugger.py, but inside the layers too: every norm, projection and feed-forward step.

    python tests/gemma3_layer_debugger_detailed.py

Options and exit code are the same. A layer that differs says where to look; this says at what.
"""

import sys

from gemma3_layer_debugger import layer_modules, parse, run


def parts_of(number: int, block, theirs) -> dict:
    """Name -> (our module, theirs) inside one layer, in the order in which they run."""
    parts = {
        "input_layernorm": (block.input_layernorm, theirs.input_layernorm),
        "W_query": (block.att.W_query, theirs.self_attn.q_proj),
        "W_key": (block.att.W_key, theirs.self_attn.k_proj),
        "W_value": (block.att.W_value, theirs.self_attn.v_proj),
        "q_norm": (block.att.q_norm, theirs.self_attn.q_norm),
        "k_norm": (block.att.k_norm, theirs.self_attn.k_norm),
        "out_proj": (block.att.out_proj, theirs.self_attn.o_proj),
        "post_attention_layernorm": (block.post_attention_layernorm, theirs.post_attention_layernorm),
        "pre_feedforward_layernorm": (block.pre_feedforward_layernorm, theirs.pre_feedforward_layernorm),
        "fc1": (block.ff.fc1, theirs.mlp.gate_proj),
        "fc2": (block.ff.fc2, theirs.mlp.up_proj),
        "fc3": (block.ff.fc3, theirs.mlp.down_proj),
        "post_feedforward_layernorm": (block.post_feedforward_layernorm, theirs.post_feedforward_layernorm),
    }
    return {f"layer {number} {name}": pair for name, pair in parts.items() if pair[0] is not None}


def detailed_modules(ours, hf_model) -> dict:
    """Name -> (our module, theirs): the parts of each layer, then the layer itself, then what follows them."""
    whole, pairs = layer_modules(ours, hf_model), {}
    for number, (name, pair) in enumerate(list(whole.items())[: len(ours.blocks)]):
        pairs |= {**parts_of(number, *pair), name: pair}
    return {**pairs, **{name: whole[name] for name in ("final norm", "logits")}}


def main(argv=None) -> int:
    return run(parse(argv), detailed_modules)


if __name__ == "__main__":
    sys.exit(main())
