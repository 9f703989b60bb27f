"""KVCache behaves like a list of concatenated tensors, also after crop, reorder, update and reset; the stream ends in time."""

import random

import pytest
import torch
from gpt_with_kv_cache_object import GPTModel, generate_text_simple
from kv_cache import KVCache, generate_text_simple_stream

CFG = {"vocab_size": 61, "context_length": 24, "emb_dim": 16, "n_heads": 4, "n_layers": 3, "drop_rate": 0.0, "qkv_bias": False}


def new_model():
    torch.manual_seed(7)
    return GPTModel(CFG).eval()


def new_pair(b=2, tokens=1, heads=3, width=4):
    return torch.rand(b, heads, tokens, width), torch.rand(b, heads, tokens, width + 1)


def assert_holds(cache, expected):
    """expected: per layer the pair of tensors that plain concatenation gives."""
    for layer, pair in enumerate(expected):
        assert torch.equal(cache.get(layer)[0], pair[0]) and torch.equal(cache.get(layer)[1], pair[1])


@pytest.mark.parametrize("max_length", [None, 500])
def test_random_operations_leave_what_concatenation_would(max_length):
    rng = random.Random(3)
    cache, n_layers, b = KVCache(2, max_length), 2, 2
    expected = [new_pair(b, 0) for _ in range(n_layers)]
    for _ in range(150):
        length, action = expected[0][0].shape[2], rng.random()
        if length == 0 or action < 0.6:
            tokens = rng.randint(1, 12)
            for layer in range(n_layers):
                new = new_pair(b, tokens)
                expected[layer] = tuple(torch.cat([old, part], dim=2) for old, part in zip(expected[layer], new))
                returned = cache.append(layer, *new)
                assert torch.equal(returned[0], expected[layer][0]) and torch.equal(returned[1], expected[layer][1])
        elif action < 0.75:
            keep = rng.randint(1, length)
            cache.crop(keep)
            expected = [tuple(part[:, :, :keep] for part in pair) for pair in expected]
        elif action < 0.9:
            rows = torch.tensor([rng.randrange(b) for _ in range(rng.randint(1, 4))])
            cache.reorder(rows)
            expected, b = [tuple(part[rows] for part in pair) for pair in expected], len(rows)
        else:
            pairs = [new_pair(b, rng.randint(1, 5)) for _ in range(n_layers)]
            pairs = [tuple(part[:, :, : pairs[0][0].shape[2]] for part in pair) for pair in pairs]
            tokens = min(pair[0].shape[2] for pair in pairs)
            expected = [tuple(part[:, :, :tokens].clone() for part in pair) for pair in pairs]
            for layer, pair in enumerate(expected):
                cache.update(layer, tuple(part.clone() for part in pair))
        assert_holds(cache, expected)
        assert len(cache) == expected[0][0].shape[2] and len(cache.get_all()) == n_layers and cache.get_all() is cache.cache


def test_what_is_put_into_the_cache_by_hand_is_where_append_continues():
    cache = KVCache(1)
    cache.append(0, *new_pair(tokens=5))
    keys, values = cache.get(0)
    later, earlier = (keys[:, :, 1:], values[:, :, 1:]), (keys[:, :, :3], values[:, :, :3])
    for entry in ((keys[:1], values[:1]), (keys.flip(0), values.flip(0)), later, earlier):
        kept = tuple(part.clone() for part in entry)
        cache.cache[0] = entry
        new = new_pair(b=entry[0].shape[0])
        cache.append(0, *new)
        assert_holds(cache, [tuple(torch.cat([old, part], dim=2) for old, part in zip(kept, new))])
        cache.update(0, (keys, values))


def test_room_doubles_and_never_exceeds_the_limit():
    cache, rooms = KVCache(1, max_length=100), []
    for _ in range(100):
        cache.append(0, *new_pair(b=1))
        rooms.append(cache.buffers[0][0].shape[2])
    assert sorted(set(rooms)) == [64, 100]
    with pytest.raises(ValueError, match="100 cached \\+ 1 new tokens are more than max_length 100"):
        cache.append(0, *new_pair(b=1))
    assert len(cache) == 100
    free = KVCache(1)
    before = [free.append(0, *new_pair(tokens=3))[0].data_ptr() for _ in range(300)]
    assert len(set(before)) <= 5  # copied a few times, not 300 times


def test_reset_frees_and_accepts_another_batch_and_dtype():
    cache = KVCache(2)
    cache.append(0, *new_pair())
    cache.reset()
    assert cache.get_all() == [None, None] and len(cache) == 0 and cache.buffers == [None, None]
    keys, values = new_pair(b=5)
    cache.append(0, keys.double(), values.double())
    assert cache.get(0)[0].dtype == torch.float64
    cache.crop(0)
    assert cache.get_all() == [None, None]


def test_keys_that_do_not_continue_the_text_are_refused():
    cache = KVCache(1)
    cache.append(0, *new_pair(b=2))
    keys, values = new_pair(b=2)
    wrong = [new_pair(b=3), new_pair(heads=2), new_pair(width=5), (keys.double(), values.double()), (keys.to("meta"), values.to("meta"))]
    for pair in wrong:
        with pytest.raises(ValueError, match="reset"):
            cache.append(0, *pair)
    assert len(cache) == 1
    for length in (-1, 2):
        with pytest.raises(ValueError, match="cannot crop a cache of 1 tokens"):
            cache.crop(length)
    for rows in ([2], [-1], []):
        with pytest.raises(ValueError, match="rows"):
            cache.reorder(torch.tensor(rows, dtype=torch.long))
    with pytest.raises(ValueError, match="0 rows"):
        KVCache(2).reorder(torch.tensor([0]))


@torch.no_grad()
def test_a_model_continues_a_cropped_or_reordered_text_as_if_it_had_read_it():
    model, rng = new_model(), random.Random(5)
    for trial in range(20):
        cache, ids = KVCache(3), torch.randint(61, (3, 10))
        model(ids[:, :4], cache=cache)
        model(ids[:, 4:], cache=cache)
        keep, rows = rng.randint(1, 10), torch.tensor([rng.randrange(3) for _ in range(rng.randint(1, 4))])
        cache.crop(keep)
        if trial % 2:
            cache.reorder(rows)
        else:
            rows = torch.arange(3)
        more = torch.randint(61, (len(rows), rng.randint(1, 14)))
        text = torch.cat([ids[rows, :keep], more], dim=1)
        found = torch.cat([model(piece, cache=cache) for piece in more.split(rng.randint(1, 5), dim=1)], dim=1)
        torch.testing.assert_close(found, model(text)[:, keep:], atol=2e-6, rtol=1e-5)
        assert len(cache) == model.current_pos == text.shape[1]


@torch.no_grad()
def test_two_texts_take_turns_in_one_model():
    model, texts, caches = new_model(), [torch.randint(61, (1, 12)), torch.randint(61, (2, 12))], [KVCache(3), KVCache(3)]
    logits = [[], []]
    for step in range(12):
        for i, text in enumerate(texts):
            logits[i].append(model(text[:, step : step + 1], cache=caches[i]))
    for i, text in enumerate(texts):
        torch.testing.assert_close(torch.cat(logits[i], dim=1), model(text), atol=2e-6, rtol=1e-5)


def test_the_stream_yields_the_ids_of_the_whole_generation_one_by_one():
    model, ids = new_model(), torch.randint(61, (3, 5))
    pieces = list(generate_text_simple_stream(model, ids, 9))
    assert [tuple(piece.shape) for piece in pieces] == [(3, 1)] * 9
    assert torch.equal(torch.cat([ids, *pieces], dim=1), generate_text_simple(model, ids, 9, use_cache=False))
    stream = generate_text_simple_stream(model, ids, 9)
    next(stream)
    assert len(list(stream)) == 8  # the first was there before the others were computed


def test_the_stream_stops_when_all_rows_have_ended():
    model, ids = new_model(), torch.randint(61, (2, 5))
    full = torch.cat(list(generate_text_simple_stream(model, ids, 19)), dim=1)  # (2, 19)
    eos = int(full[0, 2])
    ends = [next((i for i, token in enumerate(row.tolist()) if token == eos), 19) for row in full]
    found = list(generate_text_simple_stream(model, ids, 19, eos_token_id=eos))
    assert len(found) == max(ends)
    for row, end in enumerate(ends):
        answer = torch.cat(found, dim=1)[row]
        assert torch.equal(answer[:end], full[row, :end]) and (answer[end:] == eos).all()
    alone = list(generate_text_simple_stream(model, ids[:1], 19, eos_token_id=eos))
    assert len(alone) == ends[0] < 19


def test_streaming_calls_do_not_disturb_each_other():
    model, ids = new_model(), torch.randint(61, (1, 5))
    expected = [int(token) for token in generate_text_simple_stream(model, ids, 6)]
    pairs = zip(generate_text_simple_stream(model, ids, 6), generate_text_simple_stream(model, ids, 6))
    assert [(int(one), int(two)) for one, two in pairs] == [(token, token) for token in expected]
