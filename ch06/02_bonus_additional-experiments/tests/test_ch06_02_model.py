"""The model and what is read from it: chapter 4's numbers, padding that nobody sees, and two faults that only appear when asked for."""

import pytest
import torch
from additional_experiments import (
    TRAINED_BLOCKS,
    LinearWithLoRA,
    LinearWithLoRAMerged,
    make_classifier,
    text_logits,
)
from previous_chapters import GPTModel as CausalGPT
from previous_chapters import MultiHeadAttention as CausalAttention
from previous_chapters import adamw
from unmasked_gpt import GPTModel, MultiHeadAttention, RememberingGPT, text_lengths

CPU = torch.device("cpu")
PAD = 50256
TINY = {"vocab_size": 50257, "context_length": 130, "emb_dim": 16, "n_layers": 3, "n_heads": 2, "drop_rate": 0.0, "qkv_bias": True}


def tiny_classifier(trainable_layers: str = "last_block", unmasked: bool = False, seed: int = 5) -> GPTModel:
    torch.manual_seed(seed)
    model = GPTModel(TINY, disable_causal_mask=unmasked)
    make_classifier(model, trainable_layers, lora_rank=4, lora_alpha=8)
    return model.eval()


def padded(rows: list[list[int]], length: int) -> torch.Tensor:
    return torch.tensor([row + [PAD] * (length - len(row)) for row in rows])


# ---- the model ----


@torch.no_grad()
def test_a_seed_gives_the_weights_and_the_logits_of_chapter_4():
    torch.manual_seed(7)
    theirs = CausalGPT(TINY).eval()
    torch.manual_seed(7)
    ours = GPTModel(TINY).eval()
    assert all(torch.equal(ours.state_dict()[name], tensor) for name, tensor in theirs.state_dict().items())
    ids = torch.randint(PAD, (2, 40))
    assert torch.allclose(ours(ids), theirs(ids), atol=1e-4)
    torch.manual_seed(7)
    unmasked = GPTModel(TINY, disable_causal_mask=True)
    assert torch.equal(unmasked.trf_blocks[2].ff.layers[2].weight, theirs.trf_blocks[2].ff.layers[2].weight)


@torch.no_grad()
def test_without_the_mask_attention_is_chapter_3s_with_nothing_blocked():
    width = (16, 16, 30, 0.0, 2)
    torch.manual_seed(3)
    oracle = CausalAttention(*width)
    oracle.mask.zero_()
    torch.manual_seed(3)
    ours, x = MultiHeadAttention(*width, disable_causal_mask=True), torch.randn(2, 9, 16)
    assert torch.allclose(ours(x), oracle(x), atol=1e-5)
    hidden = torch.ones(2, 9, dtype=torch.bool)
    hidden[:, 6:] = False
    assert torch.allclose(ours(x, hidden)[:, :6], oracle(x[:, :6]), atol=1e-5)  # hiding the end is leaving it out


@torch.no_grad()
@pytest.mark.parametrize("unmasked", [False, True])
def test_the_first_token_sees_later_ones_only_without_the_mask(unmasked):
    model = tiny_classifier(unmasked=unmasked)
    left, right = torch.tensor([[5, 6, 7]]), torch.tensor([[5, 9, 9]])
    same = torch.allclose(text_logits(model, left, "first"), text_logits(model, right, "first"), atol=1e-6)
    assert same is not unmasked


def test_a_width_that_heads_cannot_share_is_refused():
    with pytest.raises(ValueError, match="16 is not divisible by num_heads 3"):
        MultiHeadAttention(16, 16, 30, 0.0, 3)


# ---- padding ----


@torch.no_grad()
@pytest.mark.parametrize("reading", [{}, {"trainable_token_pos": "flexible"}, {"trainable_token_pos": 0}, {"average_embeddings": True}])
@pytest.mark.parametrize("unmasked", [False, True])
def test_one_text_padded_to_20_60_120_gives_equal_logits(reading, unmasked):
    model = tiny_classifier(unmasked=unmasked)
    for text in ([5, 900, 31, 7], [5], []):
        logits = [text_logits(model, padded([text], length), **reading) for length in (20, 60, 120)]
        assert all(torch.allclose(other, logits[0], atol=1e-5) for other in logits[1:]) and torch.isfinite(logits[0]).all()


@torch.no_grad()
def test_the_last_column_is_the_named_exception():
    model = tiny_classifier()
    logits = [text_logits(model, padded([[5, 900, 31, 7]], length), "last") for length in (4, 20, 60)]
    assert not torch.allclose(logits[1], logits[2], atol=1e-3)
    assert torch.allclose(logits[0], text_logits(model, padded([[5, 900, 31, 7]], 60)), atol=1e-5)  # without padding both are one


@torch.no_grad()
@pytest.mark.parametrize("unmasked", [False, True])
def test_a_text_has_the_same_logits_alone_and_in_a_batch(unmasked):
    model = tiny_classifier(unmasked=unmasked)
    rows = [[5, 6], [7] * 30, [], [1, 2, 3]]
    for reading in ({}, {"average_embeddings": True}):
        together = text_logits(model, padded(rows, 40), **reading)
        alone = torch.cat([text_logits(model, torch.tensor([row or [PAD]]), **reading) for row in rows])
        assert torch.allclose(together, alone, atol=1e-5)


def test_only_padding_at_the_end_is_padding_and_a_row_of_nothing_else_is_read_at_its_first_place():
    rows = torch.tensor([[5, PAD, 7, PAD, PAD], [PAD] * 5, [1, 2, 3, 4, 5], [PAD, 2, PAD, PAD, PAD]])
    assert text_lengths(rows).tolist() == [3, 1, 5, 2]


@torch.no_grad()
def test_the_mean_is_that_of_the_texts_own_embeddings():
    model, rows, kept = tiny_classifier(), [[5, 6, 7, 8], [9]], []
    hook = model.final_norm.register_forward_hook(lambda module, inputs, output: kept.append(output))
    logits = text_logits(model, padded(rows, 12), average_embeddings=True)
    hook.remove()
    for i, row in enumerate(rows):
        embedding = kept[0][i, : len(row)].mean(dim=0)  # (emb_dim)
        assert torch.allclose(model.out_head(embedding), logits[i], atol=1e-5)
    # it wins over any position, the default included
    assert torch.equal(logits, text_logits(model, padded(rows, 12), "flexible", average_embeddings=True))


def test_an_unknown_position_is_refused():
    with pytest.raises(ValueError, match="got 3"):
        text_logits(tiny_classifier(), torch.tensor([[1, 2, 3, 4]]), 3)


# ---- less work, the same numbers ----


@torch.no_grad()
@pytest.mark.parametrize("unmasked", [False, True])
@pytest.mark.parametrize("reads_padding", [False, True])
@pytest.mark.parametrize("trainable_layers", TRAINED_BLOCKS)
def test_a_model_that_remembers_its_frozen_blocks_computes_the_same(trainable_layers, reads_padding, unmasked):
    model = tiny_classifier(trainable_layers, unmasked)
    quick = RememberingGPT(model, 3 - TRAINED_BLOCKS[trainable_layers], reads_padding)
    rows = [[5, 6], [7] * 30, [], [1, 2, 3]]
    readings = [{"trainable_token_pos": "last"}] if reads_padding else [{}, {"trainable_token_pos": 0}, {"average_embeddings": True}]
    for order, length in (([0, 1, 2, 3], 40), ([3, 2, 0], 40), ([1, 1], 30), ([0, 3], 3)):  # some rows known, some new, other padding
        batch = padded([rows[i] for i in order], length)
        for reading in readings:
            assert torch.allclose(text_logits(quick, batch, **reading), text_logits(model, batch, **reading), atol=1e-5)


def test_what_is_remembered_is_not_computed_again():
    model = tiny_classifier()
    quick, calls = RememberingGPT(model, 2, reads_padding=False), []
    model.trf_blocks[0].register_forward_hook(lambda *_: calls.append(1))
    for _ in range(3):
        quick(padded([[5, 6, 7]], 10))
    assert len(calls) == 1


# ---- what trains ----


def changed_by_one_step(model) -> set[str]:
    """Names of the weights that differ after a step of AdamW with a large learning rate."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = adamw(model, 0.1, 0.1, CPU)
    for _ in range(2):  # the first step moves an adapter's B alone, because the gradient of A is zero while B is
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(text_logits(model, torch.tensor([[5, 6, 7]])), torch.tensor([1])).backward()
        optimizer.step()
    return {name for name, tensor in model.state_dict().items() if not torch.equal(before[name], tensor)}


@pytest.mark.parametrize(
    "trainable_layers, starts",
    [
        ("last_layer", ["out_head."]),
        ("last_block", ["out_head.", "final_norm.", "trf_blocks.2."]),
        ("last_two_blocks", ["out_head.", "final_norm.", "trf_blocks.2.", "trf_blocks.1."]),
        ("all", [""]),
    ],
)
def test_one_step_changes_what_was_chosen_and_nothing_else(trainable_layers, starts):
    model = tiny_classifier(trainable_layers)
    expected = {name for name in model.state_dict() if name.startswith(tuple(starts))}
    assert changed_by_one_step(model) == expected


@pytest.mark.parametrize("trainable_layers, kind", [("lora", LinearWithLoRA), ("lora_alternative", LinearWithLoRAMerged)])
def test_adapters_of_one_kind_stand_in_every_block_and_they_and_the_head_train(trainable_layers, kind):
    model = tiny_classifier(trainable_layers)
    adapted = [module for module in model.modules() if isinstance(module, LinearWithLoRA)]
    assert len(adapted) == 3 * 6 and {type(module) for module in adapted} == {kind}
    assert {module.lora.alpha / module.lora.rank for module in adapted} == {2.0}
    linears = [module for module in model.trf_blocks.modules() if isinstance(module, torch.nn.Linear)]
    assert len(linears) == len(adapted) and type(model.out_head) is torch.nn.Linear
    changed = changed_by_one_step(model)
    assert changed == {name for name in model.state_dict() if ".lora." in name or name.startswith("out_head.")}


@torch.no_grad()
def test_adapters_change_nothing_before_training_and_both_forms_agree_after():
    plain, lora, merged = (tiny_classifier(kind) for kind in ("last_layer", "lora", "lora_alternative"))
    for model in (lora, merged):
        model.out_head.load_state_dict(plain.out_head.state_dict())
    batch = padded([[5, 6, 7], [8]], 10)
    assert torch.allclose(text_logits(lora, batch), text_logits(plain, batch), atol=1e-6)
    for name, tensor in lora.state_dict().items():
        if name.endswith("lora.B"):
            tensor.copy_(torch.randn_like(tensor))
    merged.load_state_dict(lora.state_dict())
    assert torch.allclose(text_logits(lora, batch), text_logits(merged, batch), atol=1e-4)
    assert not torch.allclose(text_logits(lora, batch), text_logits(plain, batch), atol=1e-2)
