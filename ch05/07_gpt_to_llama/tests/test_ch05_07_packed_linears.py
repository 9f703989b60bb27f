"""Packed weights change how fast a model writes, and neither its numbers nor its names; what makes them stale is noticed."""

import copy

import pytest
import torch
from llama import KVCache, Llama3ModelFast, load_weights_into_llama
from llama_oracles import hugging_face
from packed_linears import linear_outputs, pack, pack_for_decoding, still_packed
from torch import nn

TINY = {"vocab_size": 97, "context_length": 64, "emb_dim": 48, "n_heads": 6, "n_layers": 2, "hidden_dim": 80, "n_kv_groups": 2,
        "rope_base": 10_000.0, "rope_freq": None, "dtype": torch.float32}


def tiny(seed=5, **changes):
    torch.manual_seed(seed)
    return Llama3ModelFast({**TINY, **changes}).eval()


def packed_parts(model):
    """All groups of the model: (linear layers, packed matrix)."""
    return [([getattr(module, part) for part in parts], getattr(module, name))
            for module in model.modules() for name, parts in getattr(module, "packs", {}).items()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_the_layers_become_views_of_one_matrix_and_keep_their_numbers(dtype):
    torch.manual_seed(1)
    layers = [nn.Linear(6, rows, bias=False, dtype=dtype) for rows in (4, 2, 3)]
    before, x = [layer.weight.clone() for layer in layers], torch.randn(2, 5, 6).to(dtype)
    packed = pack(layers)
    assert packed.shape == (9, 6) and still_packed(layers, packed)
    assert all(torch.equal(layer.weight, old) for layer, old in zip(layers, before))
    assert packed.untyped_storage().nbytes() == 9 * 6 * packed.element_size()
    assert len({layer.weight.untyped_storage().data_ptr() for layer in layers}) == 1
    for part, layer in zip(linear_outputs(x, layers, packed), layers):
        assert torch.allclose(part, layer(x), atol=1e-6 if dtype == torch.float32 else 1e-2)


@torch.no_grad()
def test_a_packed_model_writes_the_same_logits_under_the_same_names():
    plain, packed, ids = tiny(), pack_for_decoding(tiny()), torch.randint(0, 97, (2, 20))
    assert list(plain.state_dict()) == list(packed.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), packed.state_dict().values()))
    assert len(packed_parts(packed)) == 4 and all(still_packed(*group) for group in packed_parts(packed))
    cache = KVCache(n_layers=2)
    in_portions = torch.cat([packed(part, cache) for part in ids.split([9, 1, 1, 9], dim=1)], dim=1)
    assert torch.allclose(in_portions, plain(ids), atol=1e-5)


@torch.no_grad()
def test_a_packed_model_is_loaded_saved_and_tied_like_any_other(tmp_path):
    model, reference, ids = pack_for_decoding(tiny()), hugging_face(TINY, tied=True), torch.randint(0, 97, (1, 12))
    weights = {name: tensor for name, tensor in reference.state_dict().items() if name != "lm_head.weight"}
    load_weights_into_llama(model, TINY, weights)
    assert all(still_packed(*group) for group in packed_parts(model))
    assert torch.allclose(model(ids), reference(ids).logits, atol=1e-5)
    pack_for_decoding(model)
    assert model.out_head.weight is model.tok_emb.weight
    assert torch.allclose(model(ids), reference(ids).logits, atol=1e-5)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    again = tiny(seed=6)
    again.load_state_dict(torch.load(tmp_path / "weights.pth", weights_only=True))
    assert torch.allclose(again(ids), model(ids), atol=1e-5)


def moved(model):
    return model.to(torch.float64)


def copied_and_changed(model):
    model = copy.deepcopy(model)
    with torch.no_grad():
        model.trf_blocks[0].att.W_value.weight.mul_(2)
    return model


def with_an_exchanged_layer(model):
    model.trf_blocks[1].ff.fc2 = nn.Linear(48, 80, bias=False)
    return model


def with_another_weight(model):
    model.trf_blocks[1].att.W_key.weight = nn.Parameter(torch.randn(16, 48))
    return model


def with_a_wrapped_layer(model):
    model.trf_blocks[0].att.W_query = nn.Sequential(model.trf_blocks[0].att.W_query, nn.Dropout(0.0), nn.Linear(48, 48))
    return model


@pytest.mark.parametrize("change", [moved, copied_and_changed, with_an_exchanged_layer, with_another_weight, with_a_wrapped_layer])
@torch.no_grad()
def test_a_packed_matrix_that_no_longer_fits_is_not_used(change):
    ids = torch.randint(0, 97, (1, 12))
    torch.manual_seed(9)
    expected = change(tiny())(ids)
    torch.manual_seed(9)
    changed = change(pack_for_decoding(tiny()))
    assert not all(still_packed(*group) for group in packed_parts(changed))
    assert torch.allclose(changed(ids), expected, atol=1e-5)


def test_a_packed_model_trains_and_the_packed_matrix_follows():
    model, ids = pack_for_decoding(tiny()), torch.randint(0, 97, (2, 10))
    plain = tiny()
    for one in (plain, model):
        optimizer = torch.optim.SGD(one.parameters(), lr=0.1)
        one(ids).square().mean().backward()
        assert all(parameter.grad is not None for parameter in one.parameters())
        optimizer.step()
    with torch.no_grad():
        assert all(still_packed(*group) for group in packed_parts(model))
        assert torch.allclose(model(ids), plain(ids), atol=1e-5)
        assert not torch.allclose(model(ids), tiny()(ids), atol=1e-3)
