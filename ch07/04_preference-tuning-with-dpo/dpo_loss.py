"""The loss of direct preference optimization (DPO, arXiv 2305.18290), and the log-probability of an answer that it is made of.

dpo_from_scratch.py and gemma_dpo.py train with it. dpo-from-scratch.ipynb, section 4, builds it step by step.
"""

import torch
from instructions import logits_at
from preference_batches import SIDES
from torch import nn
from torch.nn.functional import cross_entropy, logsigmoid


def compute_logprobs(
    logits: torch.Tensor, labels: torch.Tensor, selection_mask: torch.Tensor | None = None, reduction: str = "mean"
) -> torch.Tensor:
    """Log-probability (b) of the selected labels: their mean, or with reduction="sum" that of the whole answer. Section 4.

    logits: (b, num_tokens, vocab_size), labels and selection_mask: (b, num_tokens); position t of the logits belongs to label
    t + 1. ValueError for a row in which nothing is selected.
    """
    labels = labels[:, 1:]  # (b, num_labels): the first id has no prediction
    log_probs = torch.log_softmax(logits[:, :-1].float(), dim=-1)  # (b, num_labels, vocab_size)
    chosen_log_probs = torch.gather(log_probs, dim=-1, index=labels.unsqueeze(-1)).squeeze(-1)  # (b, num_labels)
    if selection_mask is None:
        mask = torch.ones_like(labels, dtype=torch.bool)  # (b, num_labels)
    else:
        mask = selection_mask[:, 1:]  # (b, num_labels)
    sums = torch.where(mask, chosen_log_probs, 0.0).sum(dim=-1)  # (b)
    return reduce_sums(sums, mask.sum(dim=-1), reduction)


def reduce_sums(sums: torch.Tensor, counts: torch.Tensor, reduction: str) -> torch.Tensor:
    """Return sums (b) as they are, or divided by counts (b), as `reduction` says. Section 4."""
    if (counts == 0).any():
        raise ValueError("a text of the batch has no selected label")
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction is 'mean' or 'sum', not {reduction!r}")
    return sums / counts if reduction == "mean" else sums


def answer_logprobs(model: nn.Module, token_ids: torch.Tensor, mask: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    """Log-probability (b) that the model gives the ids of token_ids (b, num_tokens) where `mask`, same shape, is true. Section 4.

    It is what compute_logprobs returns, but the output layer sees the positions before those ids alone.
    """
    wanted = torch.zeros_like(mask)  # (b, num_tokens)
    wanted[:, :-1] = mask[:, 1:]
    logits = logits_at(model, token_ids, wanted)  # (num_answer_ids, vocab_size)
    log_probs = -cross_entropy(logits.float(), token_ids[:, 1:][mask[:, 1:]], reduction="none")  # (num_answer_ids)
    rows = wanted.nonzero()[:, 0]  # (num_answer_ids)
    sums = log_probs.new_zeros(len(token_ids)).index_add(0, rows, log_probs)  # (b)
    return reduce_sums(sums, wanted.sum(dim=-1), reduction)


def compute_dpo_loss(
    model_chosen_logprobs: torch.Tensor,
    model_rejected_logprobs: torch.Tensor,
    reference_chosen_logprobs: torch.Tensor,
    reference_rejected_logprobs: torch.Tensor,
    beta: float = 0.1,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (mean loss, mean chosen reward, mean rejected reward) from log-probabilities (b). Section 4.

    A reward is what the policy's log-probability has gained over the frozen copy's, without beta, and detached.
    """
    chosen_rewards = model_chosen_logprobs - reference_chosen_logprobs  # (b)
    rejected_rewards = model_rejected_logprobs - reference_rejected_logprobs  # (b)
    losses = -logsigmoid(beta * (chosen_rewards - rejected_rewards))  # (b)
    return losses.mean(), chosen_rewards.detach().mean(), rejected_rewards.detach().mean()


def compute_dpo_loss_batch(
    batch: dict, policy_model: nn.Module, reference_model: nn.Module, beta: float, reduction: str = "mean"
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (loss, chosen reward, rejected reward) of a batch of custom_collate_fn. Section 4."""
    policy = [answer_logprobs(policy_model, batch[side], batch[f"{side}_mask"], reduction) for side in SIDES]
    with torch.no_grad():
        reference = [answer_logprobs(reference_model, batch[side], batch[f"{side}_mask"], reduction) for side in SIDES]
    return compute_dpo_loss(*policy, *reference, beta)
