"""What several tests of this folder compare with: Hugging Face's Llama in our sizes, and a notebook's definitions."""

import ast
from pathlib import Path

import nbformat
from transformers import LlamaConfig, LlamaForCausalLM

FOLDER = Path(__file__).resolve().parents[1]


def hugging_face(cfg, tied=False):
    """LlamaForCausalLM with random weights, in eval mode; without n_kv_groups, rope_base and rope_freq it is a Llama 2."""
    rope = {"rope_type": "default", "rope_theta": cfg.get("rope_base", 10_000.0)}
    freq = cfg.get("rope_freq")
    if freq:
        rope = {**rope, "rope_type": "llama3", "factor": freq["factor"], "low_freq_factor": freq["low_freq_factor"],
                "high_freq_factor": freq["high_freq_factor"], "original_max_position_embeddings": freq["original_context_length"]}
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=cfg["vocab_size"], hidden_size=cfg["emb_dim"], intermediate_size=cfg["hidden_dim"], num_hidden_layers=cfg["n_layers"],
        num_attention_heads=cfg["n_heads"], num_key_value_heads=cfg.get("n_kv_groups", cfg["n_heads"]),
        max_position_embeddings=cfg["context_length"], rms_norm_eps=1e-5, rope_parameters=rope, tie_word_embeddings=tied,
    )).eval()


def is_constant(node):
    return isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id[0].isupper()


def definitions_of(notebook):
    """A notebook's imports, classes, functions and capitalized constants as attributes, without running its experiments."""
    tree = []
    for cell in nbformat.read(FOLDER / notebook, as_version=4).cells:
        if cell.cell_type == "code":
            tree += ast.parse(cell.source).body
    kinds = (ast.Import, ast.ImportFrom, ast.ClassDef, ast.FunctionDef)
    wanted = [node for node in tree if isinstance(node, kinds) or is_constant(node)]
    names = {}
    exec(compile(ast.Module(body=wanted, type_ignores=[]), notebook, "exec"), names)
    return type("Notebook", (), {name: staticmethod(value) if callable(value) else value for name, value in names.items()})
