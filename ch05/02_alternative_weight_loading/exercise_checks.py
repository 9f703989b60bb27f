"""The check of the exercise in weight-loading-hf-safetensors.ipynb: which matrix was not transposed?

    python exercise_checks.py 1 my_answer.py
"""

import sys
from collections.abc import Callable

import torch
from previous_chapters import GPTModel, exercise, expect_equal, fail, passed, run_checks

LAYERS = ("att.W_query", "att.W_key", "att.W_value", "att.out_proj")  # the square ones: their shape tells nothing
TINY = {"vocab_size": 60, "context_length": 10, "emb_dim": 12, "n_heads": 3, "n_layers": 3, "drop_rate": 0.0, "qkv_bias": True}


def tiny_model(seed: int) -> GPTModel:
    """Return a small GPT in eval mode; its weights are larger than usual, so that every matrix shows in the logits."""
    torch.manual_seed(seed)
    model = GPTModel(TINY).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def make_suspect(seed: int, block: int, layer: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function from token ids (b, num_tokens) to the logits of tiny_model(seed) with one matrix not transposed."""
    model = tiny_model(seed)
    with torch.no_grad():
        weight = model.trf_blocks[block].get_submodule(layer).weight
        weight.copy_(weight.T.clone())

    def logits_of(token_ids: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return model(token_ids)

    return logits_of


@exercise("1", answer="find_missing_transpose")
def check_missing_transpose(find_missing_transpose: Callable) -> None:
    """Compare with the truth for each of the four layers, in every block, and look whether the good model was left alone."""
    for seed, layer in enumerate(LAYERS):
        for block in range(TINY["n_layers"]):
            good = tiny_model(seed)
            before = {name: tensor.clone() for name, tensor in good.state_dict().items()}
            got = find_missing_transpose(good, make_suspect(seed, block, layer))
            where = f"a suspect with {layer} of block {block} not transposed"
            if not isinstance(got, tuple | list) or len(got) != 2:
                fail("a pair (block, layer)", repr(got), where, "do you return both the number of the block and the name of the layer?")
            question = "do the first token's logits tell you the kind, and do you try every block?"
            expect_equal((block, layer), tuple(got), where, question)
            changed = [name for name, tensor in good.state_dict().items() if not torch.equal(tensor, before[name])]
            if changed:
                fail("the good model as it was", f"{changed[0]} is changed", where, "do you turn a matrix back after trying it?")
    passed("1", f"{len(LAYERS) * TINY['n_layers']} suspects")


if __name__ == "__main__":
    sys.exit(run_checks())
