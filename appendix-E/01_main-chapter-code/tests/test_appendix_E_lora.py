"""What lora.py promises: same outputs right after replacement, one scale, exact counts, merging and taking out, adapters alone saved."""

import copy
import re
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn as nn
from lora import (
    LinearWithLoRA,
    LinearWithLoRAMerged,
    LoRALayer,
    find_linear_layers,
    load_lora_state_dict,
    lora_state_dict,
    merge_lora,
    replace_linear_with_lora,
    unmerge_lora,
)
from previous_chapters import GPT_CONFIG_124M, GPTModel, tie_weights

TINY = {"vocab_size": 60, "context_length": 16, "emb_dim": 24, "n_heads": 3, "n_layers": 2, "drop_rate": 0.0, "qkv_bias": True}
TOKEN_IDS = torch.tensor([[3, 59, 7, 7, 21], [0, 1, 2, 3, 4]])


def tiny_gpt() -> nn.Module:
    """A frozen GPT in eval mode; 6 linear layers in each block and the head make 13."""
    model = GPTModel(TINY).eval()
    for parameter in model.parameters():
        parameter.requires_grad = False
    return model


def disturb(model: nn.Module) -> None:
    """Give every B numbers, as training does."""
    for module in model.modules():
        if isinstance(module, LoRALayer):
            nn.init.normal_(module.B)


def trainable(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def train(model: nn.Module, steps: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(TOKEN_IDS).flatten(0, 1), TOKEN_IDS.flatten()).backward()
        optimizer.step()


class TwoParents(nn.Module):
    """One linear layer under three names, two of them in the same parent."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.again = self.first
        self.deeper = nn.Sequential(nn.ReLU(), self.first)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.deeper(self.again(self.first(x)))


# ---- the adapter ----


def test_adapter_equals_the_formula_written_out():
    layer = LoRALayer(5, 4, rank=2, alpha=6)
    nn.init.normal_(layer.B)
    x = torch.randn(3, 7, 5)
    want = torch.einsum("bni,ir,ro->bno", x, layer.A, layer.B) * 3  # alpha / rank
    assert torch.allclose(layer(x), want, atol=1e-6)
    assert torch.allclose(x @ layer.delta_weight().T, want, atol=1e-6)
    assert torch.allclose(layer(x[0, 0]), want[0, 0], atol=1e-6)  # any number of leading dimensions


def test_start_of_the_two_matrices():
    layer = LoRALayer(400, 30, rank=16, alpha=16)
    torch.manual_seed(123)
    want = torch.empty(400, 16)
    nn.init.kaiming_uniform_(want, a=5**0.5)
    torch.manual_seed(123)
    assert torch.equal(LoRALayer(400, 30, 16, 16).A, want)
    assert layer.A.abs().max() <= 0.25 and layer.A.std() > 0.1  # uniform between -1 and 1 over the root of the rank
    assert torch.equal(layer.B, torch.zeros(16, 30))
    assert (layer.rank, layer.alpha) == (16, 16)


def test_doubling_rank_and_alpha_leaves_the_scale():
    small, large = LoRALayer(6, 6, rank=2, alpha=3), LoRALayer(6, 6, rank=4, alpha=6)
    with torch.no_grad():
        small.B.normal_()
        large.A.copy_(torch.cat([small.A, torch.zeros(6, 2)], dim=1))  # the same product, A B
        large.B.copy_(torch.cat([small.B, torch.randn(2, 6)]))
    x = torch.randn(2, 3, 6)
    assert torch.allclose(small(x), large(x), atol=1e-6)


@pytest.mark.parametrize(("rank", "alpha"), [(0, 1), (-3, 1), (9, 1), (2, 0), (2, -1.0), (2, float("nan"))])
def test_rank_or_alpha_that_cannot_work(rank, alpha):
    with pytest.raises(ValueError, match="rank must be|alpha must be"):
        LoRALayer(8, 4, rank, alpha)
    model = tiny_gpt()
    with pytest.raises(ValueError, match="rank must be|alpha must be"):
        replace_linear_with_lora(model, 1000 if rank == 9 else rank, alpha)
    assert not any(isinstance(module, LinearWithLoRA) for module in model.modules())  # nothing is changed


def test_rank_above_the_smaller_dimension_gives_a_warning():
    with pytest.warns(UserWarning, match="rank 5 for a layer 8 -> 4: rank 4 could do the same"):
        LoRALayer(8, 4, rank=5, alpha=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LoRALayer(8, 4, rank=4, alpha=1)


# ---- a layer with an adapter ----


@pytest.mark.parametrize("kind", [LinearWithLoRA, LinearWithLoRAMerged])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_adapter_has_the_dtype_and_the_device_of_its_layer(kind, dtype):
    linear = nn.Linear(8, 6).to(dtype)
    layer = kind(linear, rank=2, alpha=2)
    assert {p.dtype for p in layer.parameters()} == {dtype}
    x = torch.randn(2, 3, 8).to(dtype)
    assert torch.equal(layer(x), linear(x))
    nn.init.normal_(layer.lora.B)
    assert layer(x).dtype == dtype and not torch.equal(layer(x), linear(x))
    on_meta = kind(nn.Linear(8, 6, device="meta", dtype=dtype), rank=2, alpha=2)
    assert {p.device.type for p in on_meta.parameters()} == {"meta"}


@pytest.mark.gpu
def test_adapter_is_on_the_gpu_of_its_layer():
    model = tiny_gpt().to("cuda")
    replace_linear_with_lora(model, rank=2, alpha=2)
    assert {p.device.type for p in model.parameters()} == {"cuda"}


@pytest.mark.parametrize("bias", [True, False])
def test_both_forms_are_one_function(bias):
    linear, x = nn.Linear(8, 6, bias=bias), torch.randn(2, 3, 8)
    beside = LinearWithLoRA(linear, rank=3, alpha=5)
    added = LinearWithLoRAMerged(linear, rank=3, alpha=5)
    nn.init.normal_(beside.lora.B)
    added.lora.load_state_dict(beside.lora.state_dict())
    assert torch.allclose(beside(x), added(x), atol=1e-5) and not torch.allclose(beside(x), linear(x), atol=1e-2)
    for layer in (beside, added):
        layer(x).square().sum().backward()
    assert torch.allclose(beside.lora.A.grad, added.lora.A.grad, rtol=1e-3, atol=1e-4)
    assert torch.allclose(beside.lora.B.grad, added.lora.B.grad, rtol=1e-3, atol=1e-4)


# ---- a whole model ----


@pytest.mark.parametrize("alternative", [False, True])
def test_outputs_are_equal_right_after_the_replacement(alternative):
    model = tiny_gpt()
    before = model(TOKEN_IDS)  # (2, 5, 60)
    replace_linear_with_lora(model, rank=4, alpha=8, alternative=alternative)
    assert torch.equal(model(TOKEN_IDS), before)
    kind = LinearWithLoRAMerged if alternative else LinearWithLoRA
    found = [module for module in model.modules() if isinstance(module, LinearWithLoRA)]
    assert len(found) == 13 and {type(module) for module in found} == {kind}
    assert isinstance(model.out_head, kind)


def test_counts_of_gpt2_small_on_the_meta_device():
    with torch.device("meta"):
        model = GPTModel({**GPT_CONFIG_124M, "qkv_bias": True})
        model.out_head = nn.Linear(GPT_CONFIG_124M["emb_dim"], 2)
    assert trainable(model) == 124_441_346
    for parameter in model.parameters():
        parameter.requires_grad = False
    assert trainable(model) == 0
    with pytest.warns(UserWarning, match="layer 768 -> 2"):
        replace_linear_with_lora(model, rank=16, alpha=16)
    assert trainable(model) == 2_666_528 == 12 * (4 * 16 * 1536 + 2 * 16 * 3840) + 16 * 770


def test_training_changes_the_adapters_alone():
    model = tiny_gpt()
    replace_linear_with_lora(model, rank=2, alpha=4)
    before = copy.deepcopy(model.state_dict())
    train(model, steps=2)  # after one step A is what it was: its gradient is zero as long as B is
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == set(lora_state_dict(model)) and len(changed) == 26


def test_second_call_wraps_nothing_again():
    model = tiny_gpt()
    replace_linear_with_lora(model, rank=2, alpha=2)
    names = [name for name, _ in model.named_modules()]
    replace_linear_with_lora(model, rank=2, alpha=2)
    replace_linear_with_lora(model.out_head, rank=2, alpha=2)  # not from inside either
    assert [name for name, _ in model.named_modules()] == names


def test_targets_choose_by_parts_of_names():
    emb_dim, rank = TINY["emb_dim"], 3
    attention = TINY["n_layers"] * 4 * rank * 2 * emb_dim
    feed_forward = TINY["n_layers"] * 2 * rank * 5 * emb_dim
    head = rank * (emb_dim + TINY["vocab_size"])
    cases = {("att",): attention, ("ff",): feed_forward, ("out_head",): head, ("att", "ff"): attention + feed_forward}
    cases |= {("trf_blocks",): attention + feed_forward, "W_query": attention // 4, ("trf_blocks.1.att.W_key",): attention // 8}
    for targets, count in cases.items():
        model = tiny_gpt()
        replace_linear_with_lora(model, rank, alpha=1, targets=targets)
        assert trainable(model) == count
    replace_linear_with_lora(model, rank, alpha=1, targets=("att",))  # what has an adapter keeps it, the others get one
    assert trainable(model) == attention
    replace_linear_with_lora(model, rank, alpha=1, targets=("att",))
    assert trainable(model) == attention


@pytest.mark.parametrize("targets", [("attention",), ("att", "head"), ("W_quer",), (), "", ("trf_blocks.2",)])
def test_targets_without_a_match_are_an_error(targets):
    model = tiny_gpt()
    with pytest.raises(ValueError, match="targets"):
        replace_linear_with_lora(model, rank=2, alpha=2, targets=targets)
    assert trainable(model) == 0


@pytest.mark.parametrize("model", [nn.Sequential(nn.Embedding(5, 4), nn.ReLU()), nn.Linear(3, 3)])
def test_model_without_linear_layers_inside(model):
    with pytest.raises(ValueError, match="contains no linear layers"):
        replace_linear_with_lora(model, rank=2, alpha=2)


def test_shared_layer_gets_one_adapter():
    model, x = TwoParents(), torch.randn(2, 3, 6)
    before = model(x)
    replace_linear_with_lora(model, rank=2, alpha=2)
    assert isinstance(model.first, LinearWithLoRA) and isinstance(model.first.linear, nn.Linear)
    assert model.first is model.again is model.deeper[1]
    assert torch.equal(model(x), before)
    disturb(model)
    weight, delta, outputs = model.first.linear.weight.clone(), model.first.lora.delta_weight(), model(x)
    adapted = merge_lora(model)
    assert torch.allclose(model.first.weight, weight + delta) and model.first is model.again is model.deeper[1]
    assert torch.allclose(model(x), outputs, atol=1e-4)
    unmerge_lora(model, adapted)
    assert torch.allclose(model.first.linear.weight, weight, atol=1e-5) and model.first is model.again is model.deeper[1]


def test_tied_head_is_refused_and_can_be_left_out():
    model = tie_weights(tiny_gpt())
    with pytest.raises(ValueError, match="out_head shares its weight with tok_emb"):
        replace_linear_with_lora(model, rank=2, alpha=2)
    assert not any(isinstance(module, LinearWithLoRA) for module in model.modules())
    replace_linear_with_lora(model, rank=2, alpha=2, targets=("trf_blocks",))
    disturb(model)
    table = model.tok_emb.weight.clone()
    merge_lora(model)
    assert model.out_head.weight is model.tok_emb.weight and torch.equal(model.tok_emb.weight, table)


# ---- merging, saving ----


@pytest.mark.parametrize("alternative", [False, True])
def test_merged_equals_unmerged_after_training_and_can_be_taken_out(alternative):
    model = tiny_gpt()
    plain_names, weights = set(model.state_dict()), copy.deepcopy(model.state_dict())
    before = model(TOKEN_IDS)  # (2, 5, 60)
    replace_linear_with_lora(model, rank=4, alpha=8, alternative=alternative)
    train(model, steps=5)
    trained, adapters = model(TOKEN_IDS), copy.deepcopy(lora_state_dict(model))
    assert not torch.allclose(trained, before, atol=1e-2)
    adapted = merge_lora(model)
    assert torch.allclose(model(TOKEN_IDS), trained, atol=1e-5)
    assert set(model.state_dict()) == plain_names and not any(isinstance(module, LoRALayer) for module in model.modules())
    GPTModel(TINY).load_state_dict(model.state_dict())  # an ordinary model again
    unmerge_lora(model, adapted)
    assert torch.allclose(model(TOKEN_IDS), trained, atol=1e-5)
    assert lora_state_dict(model).keys() == adapters.keys()
    for name, tensor in model.state_dict().items():
        want = adapters[name] if name in adapters else weights[name.replace(".linear.", ".")]
        assert torch.allclose(tensor, want, atol=1e-6)


def test_merging_what_has_no_adapters_and_taking_out_what_is_not_merged():
    model = tiny_gpt()
    for refuse in (merge_lora, lora_state_dict):
        with pytest.raises(ValueError, match="contains no adapters"):
            refuse(model)
    replace_linear_with_lora(model, rank=2, alpha=2)
    disturb(model)
    adapted = merge_lora(model)
    other = copy.deepcopy(model)
    weight = other.out_head.weight.clone()
    with pytest.raises(ValueError, match="was not merged from these adapters"):
        unmerge_lora(other, adapted)
    assert torch.equal(other.out_head.weight, weight)
    unmerge_lora(model, adapted)
    with pytest.raises(ValueError, match="was not merged from these adapters"):
        unmerge_lora(model, adapted)


def test_adapters_alone_are_saved_and_loaded(tmp_path):
    base = tiny_gpt()
    model = copy.deepcopy(base)
    replace_linear_with_lora(model, rank=2, alpha=4)
    disturb(model)
    adapters = lora_state_dict(model)
    assert sum(tensor.numel() for tensor in adapters.values()) == trainable(model)
    torch.save(adapters, tmp_path / "adapters.pth")
    other = copy.deepcopy(base)
    replace_linear_with_lora(other, rank=2, alpha=4)
    load_lora_state_dict(other, torch.load(tmp_path / "adapters.pth", weights_only=True))
    assert torch.equal(other(TOKEN_IDS), model(TOKEN_IDS))


def test_adapters_that_do_not_fit_change_nothing():
    model = tiny_gpt()
    replace_linear_with_lora(model, rank=2, alpha=2)
    disturb(model)
    saved = copy.deepcopy(lora_state_dict(model))
    wrong = {"missing": dict(list(saved.items())[1:]), "unknown": {**saved, "more.A": torch.zeros(1)}}
    wrong["shape"] = {**saved, "out_head.lora.B": torch.zeros(3, 60)}
    for state_dict in wrong.values():
        with pytest.raises(ValueError, match="the model has .*, the saved adapters have"):
            load_lora_state_dict(model, {name: tensor + 1 for name, tensor in state_dict.items()})
    assert all(torch.equal(tensor, saved[name]) for name, tensor in lora_state_dict(model).items())


def test_find_linear_layers_names_every_layer_once_used():
    layers = find_linear_layers(tiny_gpt())
    assert len(layers) == 13 and list(layers)[-1] == "out_head" and "trf_blocks.0.att.W_query" in layers
    assert set(find_linear_layers(TwoParents())) == {"first", "again", "deeper.1"}


# ---- README ----


def test_readme_prints_what_its_example_prints(capsys):
    text = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
    example, printed = re.search(r"```python\n(import torch\n.*?)```\n\n```\n(.*?)```", text, flags=re.DOTALL).groups()
    exec(compile(example, "README.md", "exec"), {})
    assert capsys.readouterr().out == printed


def test_readme_lists_every_file():
    folder = Path(__file__).resolve().parents[1]
    text = (folder / "README.md").read_text(encoding="utf-8")
    listed = {name for row in text.splitlines() if row.startswith("| [") for name in re.findall(r"\]\(([^)]+)\)", row)}
    assert listed == {path.name for path in folder.iterdir() if path.suffix in (".py", ".ipynb", ".txt", ".jsonl", ".png")}
