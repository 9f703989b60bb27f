"""Adapters of lora.py against those of peft: outputs, gradients, merged weights, and the numbers that are trained."""

import re
from pathlib import Path

import pytest
import torch
import torch.nn as nn
from lora import LoRALayer, merge_lora, replace_linear_with_lora
from previous_chapters import GPTModel

peft = pytest.importorskip("peft", reason="peft is not installed: pip install -r requirements-extra.txt")
TINY = {"vocab_size": 60, "context_length": 16, "emb_dim": 24, "n_heads": 3, "n_layers": 2, "drop_rate": 0.0, "qkv_bias": True}
TOKEN_IDS = torch.tensor([[3, 59, 7, 7, 21], [0, 1, 2, 3, 4]])


class WithConfig(nn.Module):
    """A GPT whose layers peft can find: it asks for attention's widths as chapter 3 does, so the wrapper must tell them."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        return self.model(token_ids)


def both(rank: int, alpha: float, targets: tuple[str, ...] | None):
    """One GPT with adapters of ours and one with peft's, equal in every number."""
    torch.manual_seed(1)
    ours = GPTModel(TINY).eval().requires_grad_(False)
    theirs = GPTModel(TINY).eval()
    theirs.load_state_dict(ours.state_dict())
    replace_linear_with_lora(ours, rank, alpha, targets=targets)
    adapters = {name.removesuffix(".lora"): module for name, module in ours.named_modules() if isinstance(module, LoRALayer)}
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=[f"model.{name}" for name in adapters])
    theirs = peft.get_peft_model(WithConfig(theirs), config).eval()
    with torch.no_grad():
        for name, adapter in adapters.items():
            adapter.B.normal_()
            layer = theirs.base_model.model.get_submodule(f"model.{name}")
            layer.lora_A["default"].weight.copy_(adapter.A.T)  # (rank, d_in)
            layer.lora_B["default"].weight.copy_(adapter.B.T)  # (d_out, rank)
    return ours.double(), theirs.double(), adapters  # wide adapters make large numbers, which float32 rounds


@pytest.mark.parametrize(("rank", "alpha"), [(4, 4), (2, 16), (8, 1)])
@pytest.mark.parametrize("targets", [None, ("att",), ("ff",), ("out_head",)])
def test_outputs_counts_gradients_and_merged_weights_are_those_of_peft(rank, alpha, targets):
    ours, theirs, adapters = both(rank, alpha, targets)
    outputs, expected = ours(TOKEN_IDS), theirs(TOKEN_IDS)
    assert torch.allclose(outputs, expected, atol=1e-5)
    count = [sum(p.numel() for p in model.parameters() if p.requires_grad) for model in (ours, theirs)]
    assert count[0] == count[1] > 0
    outputs.square().mean().backward()
    expected.square().mean().backward()
    for name, adapter in adapters.items():
        layer = theirs.base_model.model.get_submodule(f"model.{name}")
        assert torch.allclose(adapter.A.grad, layer.lora_A["default"].weight.grad.T, rtol=1e-3, atol=1e-5)
        assert torch.allclose(adapter.B.grad, layer.lora_B["default"].weight.grad.T, rtol=1e-3, atol=1e-5)
    merge_lora(ours)
    plain = theirs.merge_and_unload().model
    assert ours.state_dict().keys() == plain.state_dict().keys()
    for name, tensor in plain.state_dict().items():
        assert torch.allclose(ours.state_dict()[name], tensor, atol=1e-5)


def test_both_start_without_a_change_and_with_the_stated_sizes_of_a():
    layer = peft.get_peft_model(nn.Sequential(nn.Linear(768, 768)), peft.LoraConfig(r=16, lora_alpha=16, target_modules=["0"]))
    theirs, ours = layer.base_model.model[0], LoRALayer(768, 768, 16, 16)
    assert theirs.lora_B["default"].weight.abs().max() == ours.B.abs().max() == 0
    ratio = ours.A.std() / theirs.lora_A["default"].weight.std()
    assert 6.7 < ratio < 7.2  # the root of 768 / 16


def test_the_example_of_the_readme_prints_what_it_says(capsys):
    text = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
    example, printed = re.search(r"```python\n(import peft.*?)```\n\n```\n(.*?)```", text, flags=re.DOTALL).groups()
    exec(compile(example, "README.md", "exec"), {})
    assert capsys.readouterr().out == printed
