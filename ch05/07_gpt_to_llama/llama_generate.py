"""Token by token with a KV cache, for one text or a padded batch; llama.py offers these functions under its own name.

They work with every model that has `cfg` and is called as `model(ids, cache, attention_mask, only_last=True)`. The cache is
chapter 4's. Which token comes next is up to the function `choose`: `greedy` here, or one that sampling.py makes.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import takewhile

import torch
from previous_chapters import KVCache


def greedy(logits: torch.Tensor, token_ids: torch.Tensor | None = None) -> torch.Tensor:
    """Logits (b, vocab_size) -> the likeliest id of each row, (b, 1), whatever the text so far. Standalone notebook, section 3.11."""
    return logits.argmax(dim=-1, keepdim=True)  # (b, 1)


def left_pad(prompts: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Lists of ids -> (ids, attention_mask), both (b, num_tokens of the longest); the mask is 0 at the padding on the left.

    The padding repeats a prompt's first id: the mask hides it from the model, and a repetition penalty meets no id that the
    prompt does not have. ValueError if there is no prompt, or an empty one. Standalone notebook, section 5.5.
    """
    if not prompts or not all(prompts):
        raise ValueError("a batch needs prompts, each of at least one token")
    longest = max(len(prompt) for prompt in prompts)
    missing = [longest - len(prompt) for prompt in prompts]
    ids = torch.tensor([prompt[:1] * gap + prompt for prompt, gap in zip(prompts, missing)])  # (b, num_tokens)
    attention_mask = torch.tensor([[0] * gap + [1] * (longest - gap) for gap in missing])  # (b, num_tokens)
    return ids, attention_mask


def check_request(model, token_ids: torch.Tensor, max_new_tokens: int, cache: KVCache | None) -> None:
    """ValueError for ids without a token, a text that cannot fit the context, and a cache that leaves nothing to read. Section 3.11."""
    if token_ids.dim() != 2 or token_ids.numel() == 0:
        raise ValueError(f"a prompt has the shape (b, num_tokens) and at least one token a row, not {tuple(token_ids.shape)}")
    num_tokens, context, held = token_ids.shape[1], model.cfg["context_length"], 0 if cache is None else len(cache)
    if num_tokens + max_new_tokens > context:
        raise ValueError(f"{num_tokens} + {max_new_tokens} tokens do not fit the context of {context}")
    if held >= num_tokens:
        raise ValueError(f"the cache holds {held} tokens, the text has {num_tokens}: crop the cache, so that one is left to read")


@torch.inference_mode()
def generate_text_basic_stream(
    model,
    token_ids: torch.Tensor,
    max_new_tokens: int,
    eos_token_id: int | Iterable[int] | None = None,
    attention_mask: torch.Tensor | None = None,
    choose: Callable = greedy,
    cache: KVCache | None = None,
) -> Iterator[torch.Tensor]:
    """Yield the next id of each row, (b, 1), as soon as it is known.

    token_ids (b, num_tokens): the whole text; attention_mask (b, num_tokens): 0 = padding on its left. cache: a KVCache that
    holds the first len(cache) tokens of this text; only the others are read, and it is extended. Without it, a new one is made.
    choose: logits (b, vocab_size) and the text so far (b, num_tokens) -> ids (b, 1).

    eos_token_id: the id, or the ids, that end a row. The stream stops when the last row ends, before that id is yielded; a
    row that ended earlier repeats its own. Errors: `check_request`. Standalone notebook, sections 3.11 and 5.4.
    """
    check_request(model, token_ids, max_new_tokens, cache)
    if cache is None:
        cache = KVCache(model.cfg["n_layers"], max_length=model.cfg["context_length"])
    ends = [eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id or [])
    ends = torch.tensor(ends, dtype=token_ids.dtype, device=token_ids.device)
    finished = torch.zeros_like(token_ids[:, :1], dtype=torch.bool)  # (b, 1)
    for _ in range(max_new_tokens):
        unread = token_ids[:, len(cache) :]  # first the prompt, then one token at a time
        logits = model(unread, cache, attention_mask, only_last=True)[:, -1]  # (b, vocab_size)
        next_ids = torch.where(finished, token_ids[:, -1:], choose(logits, token_ids))  # (b, 1)
        finished = torch.isin(next_ids, ends)  # (b, 1)
        if finished.all():
            return
        yield next_ids
        token_ids = torch.cat([token_ids, next_ids], dim=1)
        if attention_mask is not None:
            attention_mask = torch.cat([attention_mask, torch.ones_like(attention_mask[:, :1])], dim=1)


@torch.inference_mode()
def generate_text_simple(model, idx: torch.Tensor, max_new_tokens: int, context_size: int | None = None, use_cache: bool = True):
    """Greedy continuation: ids (b, num_tokens) -> (b, num_tokens + max_new_tokens); without the cache, in a sliding window.

    Errors as of `generate_text_basic_stream`. Standalone notebook, section 3.11.
    """
    if use_cache:
        return torch.cat([idx, *generate_text_basic_stream(model, idx, max_new_tokens)], dim=1)
    check_request(model, idx[..., -1:], 0, None)
    for _ in range(max_new_tokens):
        window = idx[:, -(context_size or model.cfg["context_length"]) :]
        idx = torch.cat([idx, greedy(model(window, only_last=True)[:, -1])], dim=1)
    return idx


def generate_batch(
    model, prompts: list[list[int]], max_new_tokens: int, eos_token_id: int | Iterable[int] | None = None, choose: Callable = greedy
) -> list[list[int]]:
    """Continue several prompts, lists of ids of any lengths, at once: the new ids of each, up to its own end id.

    Errors as of `left_pad` and `generate_text_basic_stream`. Standalone notebook, section 5.5.
    """
    ids, attention_mask = (part.to(model.tok_emb.weight.device) for part in left_pad(prompts))  # (b, num_tokens) each
    new = torch.cat([ids[:, :0], *generate_text_basic_stream(model, ids, max_new_tokens, eos_token_id, attention_mask, choose)], dim=1)
    ends = [eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id or [])
    return [list(takewhile(lambda number: number not in ends, row)) for row in new.tolist()]
