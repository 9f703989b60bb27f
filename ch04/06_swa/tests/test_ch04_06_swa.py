"""Sliding windows: equal to the fused call with a band mask, cached = uncached for any chunks, one split of the layers everywhere."""

import importlib
import json
import random
import re
from pathlib import Path

import compare_swa
import gpt_with_kv_swa
import memory_estimator_swa
import plot_memory_estimates_swa
import pytest
import torch
import torch.nn.functional as F
from gpt_with_kv_mha import GPTModel as FullModel
from gpt_with_kv_mha import cache_bytes
from gpt_with_kv_swa import MultiHeadAttentionWithSWA
from memory_estimator_swa import distribute_layers, estimate_totals, parse_ratio
from previous_chapters import comparison_rows, generate_text_simple_cached

FOLDER = Path(gpt_with_kv_swa.__file__).parent
PAGE = (FOLDER / "README.md").read_text(encoding="utf-8")
CFG = {"vocab_size": 61, "context_length": 24, "emb_dim": 16, "n_heads": 4, "n_layers": 5, "drop_rate": 0.1, "qkv_bias": False}
CLOSE = {"atol": 2e-6, "rtol": 1e-5}
windows = pytest.mark.parametrize(("window", "stride"), [(1, -1), (2, 1), (5, 2), (5, -1), (23, 1), (24, 1), (1000, -1), (3, 0)])


def seeded(model_class=gpt_with_kv_swa.GPTModel, **changes):
    torch.manual_seed(7)
    return model_class({**CFG, **changes}).eval()


def windowed(window, stride):
    return seeded(sliding_window_size=window, sliding_window_stride=stride)


@torch.no_grad()
def plain(model, ids):
    return model(ids)


@torch.no_grad()
def in_chunks(model, ids, sizes):
    return torch.cat([model(piece, use_cache=True) for piece in ids.split(sizes, dim=1)], dim=1)


def random_sizes(rng, total):
    sizes = []
    while sum(sizes) < total:
        sizes.append(rng.randint(1, min(9, total - sum(sizes))))
    return sizes


@pytest.mark.parametrize("qkv_bias", [False, True])
@pytest.mark.parametrize("window", [1, 3, 7, 8, None])
def test_values_and_gradients_are_those_of_the_fused_call(window, qkv_bias):
    att, x = MultiHeadAttentionWithSWA(10, 24, 0.0, 4, qkv_bias, window), torch.randn(2, 7, 10, requires_grad=True)
    query, key, value = (w(x).view(2, 7, 4, 6).transpose(1, 2) for w in (att.W_query, att.W_key, att.W_value))
    allowed = torch.tensor([[0 <= i - j < (window or 99) for j in range(7)] for i in range(7)])
    fused = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed)
    expected, mine = att.out_proj(fused.transpose(1, 2).reshape(2, 7, 24)), att(x)
    torch.testing.assert_close(mine, expected, **CLOSE)
    weights = [x, att.W_query.weight, att.W_key.weight, att.W_value.weight]
    theirs = torch.autograd.grad(expected.square().sum(), weights)
    torch.testing.assert_close(torch.autograd.grad(mine.square().sum(), weights), theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("changes", [{}, {"sliding_window_size": 24}, {"sliding_window_size": 3, "sliding_window_stride": 0}])
def test_without_a_window_shorter_than_the_text_it_is_the_seeded_full_model(changes):
    base, model, ids = seeded(FullModel), seeded(**changes), torch.randint(61, (2, 24))
    assert list(base.state_dict()) == list(model.state_dict())
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(model.state_dict().values(), base.state_dict().values()))
    torch.testing.assert_close(plain(model, ids), plain(base, ids), **CLOSE)
    assert not torch.allclose(plain(windowed(3, -1), ids), plain(base, ids), atol=1e-4)


@windows
def test_any_chunking_gives_the_logits_without_a_cache_and_estimated_bytes(window, stride):
    rng, model = random.Random(window), windowed(window, stride)
    ratio = "1:0" if stride < 0 else f"{stride}:1"
    for trial in range(12):
        ids = torch.randint(61, (rng.randint(1, 4), rng.randint(1, 24)))
        model.reset_kv_cache()
        cached = in_chunks(model, ids, random_sizes(rng, ids.shape[1]))
        torch.testing.assert_close(cached, plain(model, ids), **CLOSE)
        found = estimate_totals(ids.shape[1], window, 16, 4, 5, None, ids.shape[0], "fp32", ratio)
        assert cache_bytes(model) == found["total_swa"]


@windows
def test_cropped_or_reordered_caches_continue_or_refuse(window, stride):
    rng, model = random.Random(3), windowed(window, stride)
    for trial in range(10):
        read = rng.randint(2, 20)
        ids, length = torch.randint(61, (3, 24)), rng.randint(1, read)
        model.reset_kv_cache()
        in_chunks(model, ids[:, :read], random_sizes(rng, read))
        if stride and window < read and length < read:
            with pytest.raises(ValueError, match=f"only the last {window} of {read}"):
                model.crop_kv_cache(length)
            length = read
        model.crop_kv_cache(length)
        rows = torch.tensor([2, 0, 2, 1])
        model.reorder_kv_cache(rows)
        text = torch.cat([ids[rows, :length], torch.randint(61, (4, 24 - length))], dim=1)
        cached = in_chunks(model, text[:, length:], random_sizes(rng, 24 - length))
        torch.testing.assert_close(cached, plain(model, text)[:, length:], **CLOSE)


def test_bfloat16_generation_and_the_number_type_of_the_cache():
    model, ids = windowed(4, 2).to(torch.bfloat16), torch.randint(61, (2, 9))
    torch.testing.assert_close(in_chunks(model, ids, [4, 1, 4]), plain(model, ids), atol=0.05, rtol=0.05)
    assert model.trf_blocks[0].att.cache_k.dtype == torch.bfloat16 and model.trf_blocks[0].att.cache_k.shape == (2, 4, 4, 4)
    model = model.float()
    expected = generate_text_simple_cached(model, ids, 12, use_cache=False)
    for again in range(2):
        assert torch.equal(generate_text_simple_cached(model, ids, 12), expected)


@pytest.mark.parametrize(("window", "n_layers"), [(2, 3), (4, 2), (4, 5), (1, 5)])
def test_what_reaches_the_last_token_is_one_window_less_one_for_each_layer(window, n_layers):
    model = seeded(n_layers=n_layers, sliding_window_size=window, sliding_window_stride=-1)
    ids = torch.randint(61, (1, 24))
    before = plain(model, ids)[0, -1]
    changed = [not torch.equal(plain(model, torch.where(torch.arange(24) == n, (ids + 1) % 61, ids))[0, -1], before) for n in range(24)]
    assert changed.index(True) == max(0, 23 - n_layers * (window - 1)) and all(changed[changed.index(True) :])


def test_model_and_estimator_split_the_layers_alike():
    assert distribute_layers(16, 5, 1) == (14, 2) and distribute_layers(48, 5, 1) == (40, 8) and distribute_layers(3, 0, 1) == (0, 3)
    for stride in (-1, 0, 1, 2, 5):
        model = seeded(n_layers=13, sliding_window_size=3, sliding_window_stride=stride)
        sliding = [block.att.sliding_window_size == 3 for block in model.trf_blocks]
        assert (sum(sliding), 13 - sum(sliding)) == distribute_layers(13, *((1, 0) if stride < 0 else (stride, 1)))
        assert stride <= 0 or not sliding[stride]


def test_the_formula_gives_the_known_sizes():
    found = estimate_totals(32768, 1024, 4096, 16, 48, 8, 1, "bf16", "5:1")
    assert (found["n_swa_layers"], found["n_full_layers"], found["total_full"], found["total_swa"]) == (40, 8, 12884901888, 2483027968)
    assert parse_ratio("5:1") == (5, 1)
    for wrong in ("5", "0:0", "-1:2", "a:b", "1:2:3", ""):
        with pytest.raises(ValueError, match="no ratio"):
            parse_ratio(wrong)


def test_plot_and_estimator_give_the_same_bytes(tmp_path):
    fig = plot_memory_estimates_swa.plot_swa_bytes(96, 6, 13, 2, "fp32", tmp_path / "a.svg", 500, tmp_path / "b.svg")
    assert (tmp_path / "b.svg").stat().st_size > 1000
    drawn = {line.get_label().partition(": ")[0]: line for line in fig.axes[0].lines}
    assert list(drawn) == ["0:1", "1:1", "5:1", "1:0"]
    for ratio, line in drawn.items():
        expected = [estimate_totals(int(n), 500, 96, 6, 13, None, 2, "fp32", ratio)["total_swa"] for n in line.get_xdata()]
        assert list(line.get_ydata()) == expected


def test_every_command_of_the_readme_runs_and_prints_what_stands_there(capsys):
    commands = re.findall(r"^python (\w+)\.py *(.*)$", PAGE, re.MULTILINE)
    assert {name for name, _ in commands} == {"gpt_with_kv_swa", "memory_estimator_swa", "plot_memory_estimates_swa", "compare_swa"}
    for name, options in commands:
        if name == "compare_swa":
            options += " --steps 10 --seeds 1"
        assert importlib.import_module(name).main(options.split()) == 0
        lines = [line for line in capsys.readouterr().out.splitlines() if not re.match(r"time:|wrote", line)]
        assert name == "compare_swa" or "\n".join(lines) in PAGE


def test_the_readme_quotes_the_committed_log():
    log = json.loads((FOLDER / "story-comparison.json").read_text(encoding="utf-8"))
    assert list(log["runs"]) == list(compare_swa.BUILDERS) and len(log["seeds"]) == 3 and log["processor"] in PAGE
    assert "\n".join(comparison_rows(log)) in PAGE


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (gpt_with_kv_swa, ["--sliding_window_size", "0"], "0 is too small"),
        (gpt_with_kv_swa, ["--emb_dim", "10", "--n_heads", "4"], "not divisible"),
        (memory_estimator_swa, ["--emb_dim", "10", "--n_heads", "4", "--n_layers", "1"], "10 is not divisible"),
        (memory_estimator_swa, ["--emb_dim", "8", "--n_heads", "4", "--n_layers", "1", "--swa_ratio", "0:0"], "no ratio"),
        (plot_memory_estimates_swa, ["--emb_dim", "10", "--n_heads", "4"], "10 is not divisible"),
        (plot_memory_estimates_swa, ["--patterns", "nowhere/x.pdf"], "no such folder"),
    ],
)
def test_bad_input_ends_in_one_line(module, options, message, capsys):
    with pytest.raises(SystemExit) as stop:
        module.main(options)
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("device:")]
    assert stop.value.code == 2 and len(lines) == 1 and message in lines[0]
    with pytest.raises(ValueError, match="at least 1"):
        MultiHeadAttentionWithSWA(8, 8, 0.0, 2, sliding_window_size=0)
