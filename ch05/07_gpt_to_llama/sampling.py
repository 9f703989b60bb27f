"""Choosing the next token: repetition penalty, temperature, top-k, top-p and min-p, applied in this order.

    choose = make_sampler(temperature=0.8, top_p=0.9, generator=torch.Generator().manual_seed(123))
    stream = generate_text_basic_stream(model, ids, 80, eos_token_id, choose=choose)

The order is Hugging Face's. The penalty comes first, because it changes what is likely; the three filters see probabilities
at the temperature that is asked for, so a high temperature lets more tokens pass top-p and min-p.
"""

import math
from collections.abc import Callable

import torch
from previous_chapters import keep_top_k


def penalize_repetition(logits: torch.Tensor, token_ids: torch.Tensor, penalty: float) -> torch.Tensor:
    """Make the ids that a row's text already has less likely: logits (b, vocab_size), token_ids (b, num_tokens) -> new logits.

    Positive logits are divided by the penalty and negative ones multiplied, so that both sink (Keskar et al. 2019,
    https://arxiv.org/abs/1909.05858). How often an id came up does not matter. Standalone notebook, section 5.3.
    """
    seen = logits.gather(1, token_ids)  # (b, num_tokens)
    return logits.scatter(1, token_ids, torch.where(seen > 0, seen / penalty, seen * penalty))


def keep_top_p(logits: torch.Tensor, top_p: float) -> torch.Tensor:
    """Keep the fewest tokens whose probabilities reach top_p together, the likeliest first; set the others to minus infinity.

    Logits (b, vocab_size), shape kept; of equal logits the smaller id comes first. Also called nucleus sampling (Holtzman et
    al. 2019, https://arxiv.org/abs/1904.09751). Standalone notebook, section 5.3.
    """
    if top_p >= 1:
        return logits  # rounding could cut off the last of 49,152 tiny probabilities
    ranked, order = torch.softmax(logits, dim=-1).sort(dim=-1, descending=True, stable=True)
    before = ranked.cumsum(dim=-1) - ranked  # (b, vocab_size): what the likelier tokens reach without this one
    removed = before >= top_p  # (b, vocab_size), in the order of rank
    return logits.masked_fill(removed.scatter(1, order, removed), -torch.inf)


def keep_min_p(logits: torch.Tensor, min_p: float) -> torch.Tensor:
    """Keep tokens with at least min_p times the probability of the likeliest; set the others to minus infinity.

    Logits (b, vocab_size), shape kept (Nguyen et al. 2024, https://arxiv.org/abs/2407.01082). Standalone notebook, section 5.3.
    """
    probas = torch.softmax(logits, dim=-1)  # (b, vocab_size)
    return logits.masked_fill(probas < min_p * probas.max(dim=-1, keepdim=True).values, -torch.inf)


def check_sampling(temperature: float, top_k: int | None, top_p: float | None, min_p: float | None, repetition_penalty: float) -> None:
    """ValueError that names the first setting that makes no sense, and what is allowed. Standalone notebook, section 5.3."""
    for name, value, fits, allowed in (
        ("temperature", temperature, 0 <= temperature < math.inf, "0 or more"),
        ("top_k", top_k, top_k is None or top_k >= 1, "at least 1"),
        ("top_p", top_p, top_p is None or 0 < top_p <= 1, "above 0 and at most 1"),
        ("min_p", min_p, min_p is None or 0 <= min_p <= 1, "from 0 to 1"),
        ("repetition_penalty", repetition_penalty, 0 < repetition_penalty < math.inf, "above 0"),
    ):
        if not fits:
            raise ValueError(f"{name} is {value}; it must be {allowed}")


def make_sampler(
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    generator: torch.Generator | None = None,
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """A function `choose` from logits (b, vocab_size) and the text so far (b, num_tokens) to ids (b, 1).

    Temperature 0 takes the likeliest token, after the penalty. None and 1.0 switch a dial off. generator: on the device of
    the logits; without one, PyTorch's global random numbers. Errors: `check_sampling`. Standalone notebook, section 5.3.
    """
    check_sampling(temperature, top_k, top_p, min_p, repetition_penalty)

    def choose(logits: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
        logits = logits.float()  # sums of probabilities in bfloat16 would be too coarse
        if repetition_penalty != 1:
            logits = penalize_repetition(logits, token_ids, repetition_penalty)  # (b, vocab_size)
        if temperature == 0:
            return logits.argmax(dim=-1, keepdim=True)  # (b, 1)
        logits = (logits - logits.max(dim=-1, keepdim=True).values) / temperature  # at most 0: a tiny temperature cannot overflow
        if top_k is not None:
            logits = keep_top_k(logits, top_k)  # (b, vocab_size)
        if top_p is not None:
            logits = keep_top_p(logits, top_p)  # (b, vocab_size)
        if min_p is not None:
            logits = keep_min_p(logits, min_p)  # (b, vocab_size)
        return torch.multinomial(torch.softmax(logits, dim=-1), num_samples=1, generator=generator)  # (b, 1)

    return choose
