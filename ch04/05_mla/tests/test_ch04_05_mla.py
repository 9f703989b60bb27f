"""Latent attention: equal to a plain loop, gradients included; absorbed = plain; cached = uncached for any chunks; one formula."""

import importlib
import random
import re
from pathlib import Path

import compare_mla
import gpt_with_kv_mla
import memory_estimator_mla
import plot_memory_estimates_mla
import pytest
import torch
from gpt_with_kv_mha import cache_bytes
from gpt_with_kv_mla import MultiHeadLatentAttention, absorbed_forward
from memory_estimator_mla import calc_mla_bytes_total
from previous_chapters import generate_text_simple_cached

FOLDER = Path(gpt_with_kv_mla.__file__).parent
PAGE = (FOLDER / "README.md").read_text(encoding="utf-8")
CFG = {"vocab_size": 61, "context_length": 24, "emb_dim": 16, "n_heads": 4, "n_layers": 3, "drop_rate": 0.1, "qkv_bias": False}
CLOSE = {"atol": 2e-6, "rtol": 1e-5}
widths = pytest.mark.parametrize("latent_dim", [1, 6, 40])


def seeded(**changes):
    torch.manual_seed(7)
    return gpt_with_kv_mla.GPTModel({**CFG, **changes}).eval()


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


def by_loops(att, x):
    """Every text, position and head on its own, from the definition."""
    rows = []
    for text in x:
        latent = [att.W_DKV(token) for token in text]
        out = []
        for i, token in enumerate(text):
            heads = []
            for head in range(att.num_heads):
                part = slice(head * att.head_dim, (head + 1) * att.head_dim)
                query = att.W_query(token)[part]
                scores = torch.stack([query @ att.W_UK(latent[j])[part] for j in range(i + 1)]) / att.head_dim**0.5
                weights = scores.softmax(0)
                heads.append(sum(weights[j] * att.W_UV(latent[j])[part] for j in range(i + 1)))
            out.append(att.out_proj(torch.cat(heads)))
        rows.append(torch.stack(out))
    return torch.stack(rows)


@pytest.mark.parametrize("qkv_bias", [False, True])
@widths
def test_values_and_gradients_are_those_of_plain_loops(latent_dim, qkv_bias):
    att, x = MultiHeadLatentAttention(10, 24, 0.0, 4, qkv_bias, latent_dim), torch.randn(2, 6, 10, requires_grad=True)
    expected, mine = by_loops(att, x), att(x)
    torch.testing.assert_close(mine, expected, **CLOSE)
    weights = [x, *att.parameters()]
    theirs = torch.autograd.grad(expected.square().sum(), weights)
    torch.testing.assert_close(torch.autograd.grad(mine.square().sum(), weights), theirs, atol=1e-5, rtol=1e-4)


@widths
def test_absorbed_weights_give_the_same_for_a_whole_text_and_for_its_last_token(latent_dim):
    att, x = MultiHeadLatentAttention(10, 24, 0.0, 4, latent_dim=latent_dim), torch.randn(2, 7, 10)
    with torch.no_grad():
        latent, expected = att.W_DKV(x), att(x)
        torch.testing.assert_close(absorbed_forward(att, x, latent), expected, **CLOSE)
        torch.testing.assert_close(absorbed_forward(att, x[:, -1:], latent), expected[:, -1:], **CLOSE)
    with pytest.raises(ValueError, match="without biases"):
        absorbed_forward(MultiHeadLatentAttention(10, 24, 0.0, 4, qkv_bias=True), x, latent)


@widths
def test_any_chunking_crop_and_order_gives_the_logits_without_a_cache_and_the_estimated_bytes(latent_dim):
    rng, model = random.Random(1), seeded(latent_dim=latent_dim)
    for trial in range(12):
        b, read = rng.randint(1, 4), rng.randint(2, 20)
        ids, length = torch.randint(61, (b, 24)), rng.randint(1, read)
        model.reset_kv_cache()
        torch.testing.assert_close(in_chunks(model, ids[:, :read], random_sizes(rng, read)), plain(model, ids[:, :read]), **CLOSE)
        assert cache_bytes(model) == calc_mla_bytes_total(b, read, 3, latent_dim, 4)
        model.crop_kv_cache(length)
        rows = torch.randint(b, (rng.randint(1, 5),))
        model.reorder_kv_cache(rows)
        assert model.trf_blocks[0].att.cache_c_kv.shape == (len(rows), length, latent_dim)
        text = torch.cat([ids[rows, :length], torch.randint(61, (len(rows), 24 - length))], dim=1)
        cached = in_chunks(model, text[:, length:], random_sizes(rng, 24 - length))
        torch.testing.assert_close(cached, plain(model, text)[:, length:], **CLOSE)


def test_bfloat16_generation_and_a_wrong_text():
    model, ids = seeded().to(torch.bfloat16), torch.randint(61, (2, 9))
    torch.testing.assert_close(in_chunks(model, ids, [4, 1, 4]), plain(model, ids), atol=0.05, rtol=0.05)
    assert model.trf_blocks[0].att.cache_c_kv.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="reset"):
        model(ids[:1, :1], use_cache=True)
    model = model.float()
    expected = generate_text_simple_cached(model, ids, 12, use_cache=False)
    for again in range(2):
        assert torch.equal(generate_text_simple_cached(model, ids, 12), expected)


def test_default_width_names_and_refusals():
    assert [MultiHeadLatentAttention(8, d, 0.0, 4).latent_dim for d in (16, 128, 768)] == [16, 16, 96]
    names = {name.split(".")[0] for name, _ in MultiHeadLatentAttention(8, 16, 0.0, 4).named_parameters()}
    assert names == {"W_query", "W_DKV", "W_UK", "W_UV", "out_proj"}
    with pytest.raises(ValueError, match="10 is not divisible"):
        MultiHeadLatentAttention(8, 10, 0.0, 4)
    with pytest.raises(ValueError, match="at least 1"):
        MultiHeadLatentAttention(8, 8, 0.0, 4, latent_dim=0)


def test_the_formula_gives_the_known_sizes_and_the_plot_has_them(tmp_path):
    assert calc_mla_bytes_total(1, 1, 61, 512, 2) == 62464 and calc_mla_bytes_total(1, 1, 61, 512 + 64, 2) == 70272
    fig = plot_memory_estimates_mla.plot_abs_kv_vs_context_multiple(96, 6, 5, 2, "fp32", tmp_path / "a.svg", (12, 8))
    mha, *latents = fig.axes[0].lines
    assert list(mha.get_ydata()) == [2 * 2 * n * 5 * 96 * 4 for n in mha.get_xdata()]
    for line, width in zip(latents, (12, 8), strict=True):
        assert list(line.get_ydata()) == [calc_mla_bytes_total(2, int(n), 5, width, 4) for n in line.get_xdata()]


def test_compared_variants_cache_what_their_names_say():
    for name, build in compare_mla.BUILDERS.items():
        model = build({**CFG, "emb_dim": 64}).eval()
        in_chunks(model, torch.randint(61, (1, 10)), [9, 1])
        assert f"{cache_bytes(model) // (4 * 10 * 3)} numbers" in name


def test_every_command_of_the_readme_runs_and_prints_what_stands_there(capsys):
    commands = re.findall(r"^python (\w+)\.py *(.*)$", PAGE, re.MULTILINE)
    assert {name for name, _ in commands} == {"gpt_with_kv_mla", "memory_estimator_mla", "plot_memory_estimates_mla", "compare_mla"}
    for name, options in commands:
        if name == "compare_mla":
            options += " --steps 10 --seeds 1"
        assert importlib.import_module(name).main(options.split()) == 0
        lines = [line for line in capsys.readouterr().out.splitlines() if not re.match(r"time:|wrote", line)]
        assert name == "compare_mla" or "\n".join(lines) in PAGE


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (gpt_with_kv_mla, ["--latent_dim", "0"], "0 is too small"),
        (gpt_with_kv_mla, ["--emb_dim", "10", "--n_heads", "4"], "not divisible"),
        (memory_estimator_mla, ["--emb_dim", "10", "--n_heads", "4", "--n_layers", "1", "--latent_dim", "4"], "10 is not divisible"),
        (memory_estimator_mla, ["--emb_dim", "8", "--n_heads", "4", "--n_layers", "1"], "--latent_dim"),
        (plot_memory_estimates_mla, ["--emb_dim", "10", "--n_heads", "4"], "10 is not divisible"),
        (compare_mla, ["--draw_only", "--log", "missing.json"], "missing.json"),
    ],
)
def test_bad_input_ends_in_one_line(module, options, message, capsys):
    with pytest.raises(SystemExit) as stop:
        module.main(options)
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("device:")]
    assert stop.value.code == 2 and len(lines) == 1 and message in lines[0]
