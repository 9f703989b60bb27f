"""llama_generate.py: streams against hand-made loops, one cache for several calls, stop ids, batches of unequal prompts.

Run it:  pytest ch05/07_gpt_to_llama/tests/test_ch05_07_generate.py
"""

import pytest
import torch
from llama import KVCache, Llama3Model, Llama3ModelFast, generate_batch, generate_text_basic_stream, generate_text_simple, greedy
from llama_generate import left_pad

TINY = {"vocab_size": 97, "context_length": 64, "emb_dim": 48, "n_heads": 6, "n_layers": 3, "hidden_dim": 80, "n_kv_groups": 2,
        "rope_base": 10_000.0, "rope_freq": None, "dtype": torch.float32}
BOTH = pytest.mark.parametrize("model_class", [Llama3Model, Llama3ModelFast])


def tiny(model_class=Llama3ModelFast):
    torch.manual_seed(5)
    return model_class(TINY).eval()


def random_ids(*shape, seed=0):
    return torch.randint(0, 97, shape, generator=torch.Generator().manual_seed(seed))


def streamed(model, ids, new_tokens, *args, **options):
    return torch.cat(list(generate_text_basic_stream(model, ids, new_tokens, *args, **options)), dim=1)


def scripted(*steps):
    """A `choose` that ignores the logits and plays back rows of ids."""
    script = iter(steps)
    return lambda logits, token_ids: torch.tensor(next(script))[:, None]


@pytest.fixture
def passes(monkeypatch):
    """Number of tokens of each pass through the fast model."""
    lengths, forward = [], Llama3ModelFast.forward

    def counted(self, in_idx, *args, **options):
        lengths.append(in_idx.shape[1])
        return forward(self, in_idx, *args, **options)

    monkeypatch.setattr(Llama3ModelFast, "forward", counted)
    return lengths


# ---- the cache ----


@BOTH
@torch.no_grad()
def test_a_cache_with_reordered_rows_goes_on_with_the_right_text(model_class):
    model, ids, more = tiny(model_class), random_ids(2, 9), random_ids(2, 1, seed=1)
    for swap in ("update", "reorder"):
        cache, rows = KVCache(3), torch.tensor([1, 0])
        model(ids, cache=cache)
        if swap == "update":
            for layer, (keys, values) in enumerate(list(cache.get_all())):
                cache.update(layer, (keys[rows], values[rows]))
        else:
            cache.reorder(rows)
        expected = model(torch.cat([ids[rows], more], dim=1))[:, -1]  # (2, 97)
        assert torch.allclose(model(more, cache=cache)[:, -1], expected, atol=1e-5), swap


@torch.no_grad()
def test_plain_and_fast_model_share_one_cache():
    plain, fast, ids = tiny(Llama3Model), tiny(), random_ids(2, 20)
    for order in ([fast, plain, fast], [plain, fast, plain], [fast, plain, plain, fast]):
        cache, parts = KVCache(3), ids.split([6, 5, 5, 4] if len(order) == 4 else [6, 5, 9], dim=1)
        logits = torch.cat([model(part, cache=cache) for model, part in zip(order, parts, strict=True)], dim=1)
        assert torch.allclose(logits, plain(ids), atol=1e-5)


@BOTH
@torch.no_grad()
def test_a_cropped_cache_goes_on_from_there(model_class):
    model, ids = tiny(model_class), random_ids(1, 20)
    cache = KVCache(3, 64)
    model(ids, cache=cache)
    for length in (12, 11, 0):
        cache.crop(length)
        assert torch.allclose(model(ids[:, length:15], cache=cache), model(ids)[:, length:15], atol=1e-5)


@torch.no_grad()
def test_a_stream_reads_only_what_the_cache_does_not_hold(passes):
    model, ids, cache = tiny(), random_ids(1, 12), KVCache(3, 64)
    fresh = streamed(model, ids, 8)
    assert passes == [12] + [1] * 7
    passes.clear()
    model(ids[:, :7], cache=cache)
    assert torch.equal(streamed(model, ids, 8, cache=cache), fresh) and passes == [7, 5] + [1] * 7
    assert len(cache) == 12 + 7  # the last new token was never read
    passes.clear()
    text = torch.cat([ids, fresh], dim=1)
    again = streamed(model, text, 4, cache=cache)  # goes on where the cache stands
    assert passes == [1] * 4 and torch.equal(again, streamed(model, ids, 12)[:, 8:])


def test_a_cache_must_leave_a_token_to_read():
    model, ids, cache = tiny(), random_ids(1, 6), KVCache(3)
    with torch.no_grad():
        model(ids, cache=cache)
    with pytest.raises(ValueError, match=r"holds 6 tokens.*text has 6.*crop"):
        next(generate_text_basic_stream(model, ids, 3, cache=cache))


def test_the_cache_makes_no_room_beyond_the_context(monkeypatch):
    sizes, larger = [], KVCache._larger

    def spied(self, *args):
        buffer = larger(self, *args)
        sizes.append(buffer[0].shape[2])
        return buffer

    monkeypatch.setattr(KVCache, "_larger", spied)
    streamed(tiny(), random_ids(1, 40), 24)
    assert set(sizes) == {64}


# ---- stop ids and input ----


def test_several_stop_ids_end_each_row_with_its_own(passes):
    steps = ([1, 2, 3], [9, 3, 3], [4, 8, 3], [5, 5, 3], [6, 6, 9])
    ids = streamed(tiny(), random_ids(3, 4), 12, (8, 9), choose=scripted(*steps))
    assert ids.tolist() == [[1, 9, 9, 9], [2, 3, 8, 8], [3, 3, 3, 3]]  # the step in which the last row ends is not yielded
    assert len(passes) == 5
    for eos in (9, [9], {9}):
        assert streamed(tiny(), random_ids(1, 4), 12, eos, choose=scripted([1], [8], [9])).tolist() == [[1, 8]]


def test_a_prompt_that_ends_with_a_stop_id_is_answered():
    ids = torch.tensor([[4, 9]])
    assert streamed(tiny(), ids, 5, 9, choose=scripted([1], [9])).tolist() == [[1]]


def test_choose_sees_the_text_so_far():
    seen = []

    def choose(logits, token_ids):
        seen.append(token_ids.clone())
        assert logits.shape == (2, 97)
        return greedy(logits, token_ids)

    ids = random_ids(2, 5)
    new = streamed(tiny(), ids, 4, choose=choose)
    assert all(torch.equal(text, torch.cat([ids, new], dim=1)[:, : 5 + step]) for step, text in enumerate(seen)) and len(seen) == 4


@pytest.mark.parametrize("ids, new_tokens, message", [
    (torch.zeros(1, 0, dtype=torch.long), 3, "at least one token"),
    (torch.zeros(0, 3, dtype=torch.long), 3, "at least one token"),
    (torch.zeros(3, dtype=torch.long), 3, r"\(b, num_tokens\)"),
    (torch.zeros(1, 60, dtype=torch.long), 5, "context of 64"),
])
@pytest.mark.parametrize("use_cache", [True, False])
def test_impossible_prompts_end_in_one_line(ids, new_tokens, message, use_cache):
    model = tiny()
    if use_cache or "context" not in message:  # without a cache the text slides through a window
        with pytest.raises(ValueError, match=message) as error:
            generate_text_simple(model, ids, new_tokens, use_cache=use_cache)
        assert "\n" not in str(error.value)


# ---- batches ----


PROMPTS = [random_ids(length, seed=length).tolist() for length in (4, 11, 1, 7)]


def unseen(logits, token_ids):
    """Greedy among the ids that the row does not have yet: it depends on every id of the text."""
    return greedy(logits.scatter(1, token_ids, -torch.inf))


@BOTH
@pytest.mark.parametrize("choose, padding", [(greedy, None), (greedy, 96), (unseen, None)])
def test_each_row_of_a_padded_batch_is_the_row_alone(model_class, choose, padding):
    model = tiny(model_class)
    ids, mask = left_pad(PROMPTS)  # (4, 11), (4, 11)
    assert ids.shape == mask.shape == (4, 11) and mask.sum(dim=1).tolist() == [4, 11, 1, 7]
    if padding is not None:
        ids = ids.masked_fill(mask == 0, padding)
    alone = [streamed(model, torch.tensor([prompt]), 15, choose=choose) for prompt in PROMPTS]
    assert torch.equal(streamed(model, ids, 15, attention_mask=mask, choose=choose), torch.cat(alone))


@BOTH
@pytest.mark.slow
def test_a_batch_gives_each_prompt_what_it_gets_alone(model_class):
    model = tiny(model_class)
    ends = [int(streamed(model, torch.tensor([PROMPTS[0]]), 6)[0, -1]), 3]  # so that the first row ends before the others
    for eos, choose in ((None, greedy), (ends, greedy), (ends[0], unseen)):
        alone = [generate_batch(model, [prompt], 15, eos, choose)[0] for prompt in PROMPTS]
        together = generate_batch(model, PROMPTS, 15, eos, choose)
        assert together == alone and all(row == streamed(model, torch.tensor([prompt]), 15, eos, choose=choose)[0].tolist()
                                         for row, prompt in zip(alone, PROMPTS, strict=True) if row)
        assert (eos is None) == (set(map(len, together)) == {15})
    assert generate_batch(model, [[3, 4], [5]], 9, (8, 9), scripted([8, 9])) == [[], []]


def test_left_pad_keeps_the_prompts_and_refuses_an_empty_one():
    ids, mask = left_pad([[5, 6, 7], [8]])
    assert ids.tolist() == [[5, 6, 7], [8, 8, 8]] and mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    for prompts in ([], [[]], [[1], []]):
        with pytest.raises(ValueError, match="at least one token"):
            left_pad(prompts)


@pytest.mark.parametrize("mask", [[[1, 1, 1], [1, 1, 0]], [[1, 1, 1], [0, 0, 0]], [[1, 1, 1], [1, 0, 1]]])
def test_padding_anywhere_but_at_the_left_is_refused(mask):
    with pytest.raises(ValueError, match="left") as error:
        next(generate_text_basic_stream(tiny(), random_ids(2, 3), 4, attention_mask=torch.tensor(mask)))
    assert "\n" not in str(error.value)
