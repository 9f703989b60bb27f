"""Batches count both answers with one end each, log-probabilities and loss agree with loops and closed forms, the frozen copy stays."""

import math
import warnings
from pathlib import Path
from types import SimpleNamespace

import dpo_from_scratch as dpo
import dpo_loss
import preference_batches as batches
import pytest
import torch
from instructions import RESPONSE_HEADER, format_input
from previous_chapters import GPTModel, generate, gpt2_tokenizer, softmax_with_temperature
from torch.nn import functional as F

FOLDER = Path(dpo.__file__).resolve().parent
END = 50256
TINY = {"vocab_size": 50257, "context_length": 160, "emb_dim": 16, "n_layers": 2, "n_heads": 2, "drop_rate": 0.0, "qkv_bias": True}
AWKWARD = ["", " ", "  \t", "7", "12 ", "\n", "\n\n", "é", "the", "<|endoftext|>", "### Response:\n"]


@pytest.fixture(scope="module")
def tokenizer():
    return gpt2_tokenizer()


def tiny_gpt(seed: int = 123, **changes) -> GPTModel:
    torch.manual_seed(seed)
    model = GPTModel({**TINY, **changes})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))  # so that no two answers are nearly as likely
    return model.eval()


def a_pair(instruction: str, chosen: str, rejected: str, given: str = "") -> dict:
    return {"instruction": instruction, "input": given, "output": rejected, "chosen": chosen, "rejected": rejected}


def some_pairs() -> list[dict]:
    """Pairs of unlike length: the longer answer is now the chosen one, now the rejected one."""
    return [
        a_pair("Say it.", "Gladly: it is cold outside, take a coat.", "cold"),
        a_pair("Name three colors.", "red, green, blue", "You could have named them alone: red, green, blue. Three!", given="in a row"),
        a_pair("Work out 3 + 4.", "7", "7. Was that hard?"),
    ]


def batch_of(module, pairs, tokenizer) -> dict:
    return module.custom_collate_fn(list(module.PreferenceDataset(pairs, tokenizer)))


# ---- properties, each a function, so that the mutants below have to face them, too ----


def selected_labels_are_answer_and_one_end(module, tokenizer):
    pairs = some_pairs() + [a_pair(f"Repeat{ending}", f"{ending}a{ending}b", f"c{ending}", given=ending) for ending in AWKWARD]
    batch = batch_of(module, pairs, tokenizer)
    assert batch["chosen"].shape == batch["rejected"].shape == batch["chosen_mask"].shape == batch["rejected_mask"].shape
    for row, pair in enumerate(pairs):
        prompt = tokenizer.encode_ordinary(format_input(pair) + RESPONSE_HEADER)  # what the model gets in use
        for side in ("chosen", "rejected"):
            ids, mask = batch[side][row], batch[f"{side}_mask"][row]
            labels = ids[1:][mask[1:]].tolist()  # position t predicts label t + 1
            assert labels == [*tokenizer.encode_ordinary(pair[side]), END], (row, side)
            assert ids[: len(prompt)].tolist() == prompt == batch["prompt"][row].tolist() and not mask[: len(prompt)].any()


def loop_loss(pairs, tokenizer, policy, reference, beta, reduction) -> float:
    """The loss as the paper writes it: pair by pair, id by id, without padding or masks."""

    def logprob(model, item, side):
        with torch.no_grad():
            log_probs = torch.log_softmax(model(torch.tensor([item[side]]))[0], dim=-1)  # (num_tokens, vocab_size)
        values = [log_probs[place - 1, item[side][place]].item() for place in range(len(item["prompt"]), len(item[side]))]
        return sum(values) / (len(values) if reduction == "mean" else 1)

    losses = []
    for item in batches.PreferenceDataset(pairs, tokenizer):
        gain = {side: logprob(policy, item, side) - logprob(reference, item, side) for side in ("chosen", "rejected")}
        losses.append(math.log(1 + math.exp(-beta * (gain["chosen"] - gain["rejected"]))))
    return sum(losses) / len(losses)


def loss_of_a_batch_is_that_of_the_loop(module, tokenizer):
    policy, reference = tiny_gpt(1), tiny_gpt(2)
    batch = batch_of(module, some_pairs(), tokenizer)
    for reduction, beta in (("mean", 0.5), ("sum", 0.1), ("sum", 0.02)):
        loss, _, _ = module.compute_dpo_loss_batch(batch, policy, reference, beta, reduction)
        assert loss.item() == pytest.approx(loop_loss(some_pairs(), tokenizer, policy, reference, beta, reduction), rel=1e-4)


def loss_has_the_closed_form_and_its_gradient(module, _):
    torch.manual_seed(3)
    logprobs = [torch.randn(4, dtype=torch.float64, requires_grad=True) for _ in range(4)]
    for beta in (0.1, 0.7):
        loss, chosen_reward, rejected_reward = module.compute_dpo_loss(*logprobs, beta)
        gains = (logprobs[0] - logprobs[2]).detach(), (logprobs[1] - logprobs[3]).detach()
        margins = gains[0] - gains[1]
        assert loss.item() == pytest.approx(torch.log1p(torch.exp(-beta * margins)).mean().item())
        assert chosen_reward.item() == pytest.approx(gains[0].mean().item()) and not chosen_reward.requires_grad
        assert rejected_reward.item() == pytest.approx(gains[1].mean().item()) and not rejected_reward.requires_grad
        gradients = torch.autograd.grad(loss, logprobs[:2])
        expected = -beta * torch.sigmoid(-beta * margins) / 4  # (b): pushed most where the policy is most wrong
        torch.testing.assert_close(gradients[0], expected)
        torch.testing.assert_close(gradients[1], -expected)


def logprobs_are_cross_entropies(module, _):
    torch.manual_seed(4)
    logits, labels = torch.randn(3, 7, 11), torch.randint(0, 11, (3, 7))
    mask = torch.zeros(3, 7, dtype=torch.bool)
    mask[0, 2:4], mask[1, 1:7], mask[2, 6] = True, True, True
    targets = labels.masked_fill(~mask, -100)
    for reduction in ("mean", "sum"):
        found = module.compute_logprobs(logits, labels, mask, reduction)
        expected = [-F.cross_entropy(logits[row, :-1], targets[row, 1:], reduction=reduction) for row in range(3)]
        torch.testing.assert_close(found, torch.stack(expected))
    whole = module.compute_logprobs(logits, labels)
    torch.testing.assert_close(whole, -F.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none").mean(dim=1))


def frozen_copy_is_frozen(module, tokenizer):
    policy = tiny_gpt(5, drop_rate=0.5).train()
    reference = module.frozen_copy(policy)
    assert not any(parameter.requires_grad for parameter in reference.parameters()) and all(p.requires_grad for p in policy.parameters())
    assert not any(part.training for part in reference.modules())
    ids = torch.tensor([[5, 6, 7]])
    expected = reference(ids)
    assert torch.equal(expected, reference(ids))  # no dropout
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(1.0)
    assert torch.equal(expected, reference(ids))  # no shared weights


PROPERTIES = [
    selected_labels_are_answer_and_one_end, loss_of_a_batch_is_that_of_the_loop, loss_has_the_closed_form_and_its_gradient,
    logprobs_are_cross_entropies, frozen_copy_is_frozen,
]  # fmt: skip
MASKS = 'result[f"{side}_mask"] = torch.tensor(masks, device=device)'
JOINED = "tokenizer.encode_ordinary(tokenizer.decode(prompt) + pair[side])"
MUTANTS = {  # what is wrong: (what the source says, what the mutant says, the property that must not hold)
    "mask of chosen used for rejected": (MASKS, MASKS + " if side == 'chosen' else result['chosen_mask']", 0),
    "inverted mask": (MASKS, MASKS.replace("torch.tensor", "~torch.tensor"), 0),
    "padding counts": ("[False] * padding", "[True] * padding", 0),
    "prompt of rejected counts": ("[not mask_prompt_tokens] * first", '[side == "rejected"] * first', 0),
    "edge two ids late": ('len(item["prompt"])\n', 'len(item["prompt"]) + 2\n', 0),
    "edge one id early": ('len(item["prompt"])\n', 'len(item["prompt"]) - 1\n', 0),
    "end token does not count": ("[True] * (len(ids) - first) +", "[True] * (len(ids) - first - 1) + [False] +", 0),
    "no end token": (" + [end_id]", "", 0),
    "prompt and answer encoded as one text": ("prompt + encode_answer(pair[side], tokenizer)", JOINED, 0),
    "padding in the denominator of a batch": ("wanted.sum(dim=-1)", "wanted.sum(dim=-1) * 0 + wanted.shape[1]", 1),
    "labels not shifted": ("wanted[:, :-1] = mask[:, 1:]", "wanted[:, :] = mask", 1),
    "policy and reference swapped": ("compute_dpo_loss(*policy, *reference, beta)", "compute_dpo_loss(*reference, *policy, beta)", 1),
    "chosen and rejected swapped": ('SIDES = ("chosen", "rejected")', 'SIDES = ("rejected", "chosen")', 1),
    "mean where the sum was asked for": ('sums / counts if reduction == "mean" else sums', "sums / counts", 1),
    "sum where the mean was asked for": ('sums / counts if reduction == "mean" else sums', "sums", 1),
    "beta with the wrong sign": ("-logsigmoid(beta *", "-logsigmoid(-beta *", 2),
    "beta ignored": ("-logsigmoid(beta *", "-logsigmoid(0.1 *", 2),
    "ratios instead of their logarithms": ("(chosen_rewards - rejected_rewards)", "(chosen_rewards.exp() - rejected_rewards.exp())", 2),
    "reference left out": ("model_chosen_logprobs - reference_chosen_logprobs", "model_chosen_logprobs", 2),
    "beta in the rewards": ("chosen_rewards.detach().mean()", "(beta * chosen_rewards).detach().mean()", 2),
    "rewards with gradients": ("chosen_rewards.detach().mean()", "chosen_rewards.mean()", 2),
    "padding in the denominator": ("mask.sum(dim=-1), reduction", "mask.sum(dim=-1) * 0 + mask.shape[1], reduction", 3),
    "probabilities for log-probabilities": ("torch.log_softmax(logits[", "torch.softmax(logits[", 3),
    "logits of the position itself": ("logits[:, :-1]", "logits[:, 1:]", 3),
    "reference with gradients": (".eval().requires_grad_(False)", ".eval()", 4),
    "reference with dropout": (".eval().requires_grad_(False)", ".requires_grad_(False)", 4),
    "reference shares its weights": ("copy.deepcopy(model)", "copy.copy(model)", 4),
}  # fmt: skip


def written_anew(old: str = "", new: str = "") -> SimpleNamespace:
    """The definitions of the three modules, with one piece of their source replaced."""
    names, places = {}, 0
    for module in (batches, dpo_loss, dpo):
        source = Path(module.__file__).read_text(encoding="utf-8").split("# ---- command line ----")[0]
        places += source.count(old) if old else 1
        own = {"__file__": module.__file__, "__name__": module.__name__}
        exec(compile(source.replace(old, new) if old else source, module.__file__, "exec"), own)
        own.update(names)
        names |= {name: value for name, value in own.items() if getattr(value, "__module__", None) == module.__name__ or name == "SIDES"}
    assert places, f"no module says {old!r}"
    return SimpleNamespace(**names)


@pytest.mark.parametrize("holds", PROPERTIES, ids=lambda check: check.__name__)
def test_property(holds, tokenizer):
    assert holds(written_anew(), tokenizer) is None  # its own assertions have passed


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_rejected(name, tokenizer):
    old, new, number = MUTANTS[name]
    mutant = written_anew(old, new)
    with pytest.raises((AssertionError, RuntimeError, ValueError)):
        PROPERTIES[number](mutant, tokenizer)


# ---- pairs and batches ----


def test_length_padding_and_masks_of_a_batch(tokenizer):
    items = [
        {"prompt": [1, 2], "chosen": [1, 2, 3, END], "rejected": [1, 2, END]},
        {"prompt": [4], "chosen": [4, END], "rejected": [4, 5, 6, 7, END]},
    ]
    batch = batches.custom_collate_fn(items)
    assert batch["chosen"].tolist() == [[1, 2, 3, END, END], [4, END, END, END, END]]
    assert batch["rejected"].tolist() == [[1, 2, END, END, END], [4, 5, 6, 7, END]]
    assert batch["chosen_mask"].tolist() == [[False, False, True, True, False], [False, True, False, False, False]]
    assert batch["rejected_mask"].tolist() == [[False, False, True, False, False], [False, True, True, True, True]]
    with_prompt = batches.custom_collate_fn(items, mask_prompt_tokens=False)
    assert with_prompt["chosen_mask"].tolist() == [[True, True, True, True, False], [True, True, False, False, False]]


def test_long_texts_are_cut_with_a_warning_and_a_prompt_that_fills_the_room_is_refused(tokenizer):
    items = list(batches.PreferenceDataset(some_pairs(), tokenizer))
    longest_prompt = max(len(item["prompt"]) for item in items)
    with pytest.warns(UserWarning, match="no end"):
        batch = batches.custom_collate_fn(items, allowed_max_length=longest_prompt + 1)
    assert batch["chosen"].shape == batch["rejected"].shape == (3, longest_prompt + 1)
    model = tiny_gpt()
    for side in batches.SIDES:
        assert torch.isfinite(dpo_loss.answer_logprobs(model, batch[side], batch[f"{side}_mask"])).all()
    with pytest.raises(ValueError, match="no room for an answer"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        batches.custom_collate_fn(items, allowed_max_length=longest_prompt)
    with pytest.raises(ValueError, match="at least one pair"):
        batches.custom_collate_fn([])


def test_a_text_without_selected_labels_is_an_error_and_not_a_division_by_zero():
    nothing = torch.zeros(1, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match="no selected label"):
        dpo_loss.compute_logprobs(torch.randn(1, 4, 9), torch.ones(1, 4, dtype=torch.long), nothing)
    with pytest.raises(ValueError, match="no selected label"):
        dpo_loss.answer_logprobs(tiny_gpt(), torch.ones(1, 4, dtype=torch.long), nothing)
    with pytest.raises(ValueError, match="'mean' or 'sum'"):
        dpo_loss.compute_logprobs(torch.randn(1, 4, 9), torch.ones(1, 4, dtype=torch.long), reduction="max")


def test_what_is_masked_cannot_spoil_the_sum():
    logits = torch.randn(1, 4, 9)
    logits[0, 2, 1:] = float("-inf")  # the last label would have probability 0
    labels, mask = torch.tensor([[0, 1, 2, 3]]), torch.tensor([[False, True, True, False]])
    assert torch.isfinite(dpo_loss.compute_logprobs(logits, labels, mask)).all()


def test_identical_pairs_are_dropped_and_counted():
    pairs = some_pairs()
    same = [a_pair("Say it.", "cold", "cold"), a_pair("Say it.", "cold", "cold ")]
    assert batches.drop_identical([same[0], *pairs, same[1]]) == (pairs, 2)
    assert batches.drop_identical(batches.load_pairs())[1] == 0  # the course's data has none


def test_data_without_the_five_fields_is_named(tmp_path):
    path = tmp_path / "pairs.json"
    path.write_text('[{"instruction": "a", "input": "", "output": "b", "chosen": "b"}]', encoding="utf-8")
    with pytest.raises(ValueError, match="entry 0 has no text field 'rejected'"):
        batches.load_pairs(path)


def test_texts_of_a_row_are_decoded(tokenizer):
    batch = batch_of(batches, some_pairs(), tokenizer)
    text = batches.decode_tokens_from_batch(batch["chosen"][0], tokenizer)
    assert text.startswith(format_input(some_pairs()[0]) + RESPONSE_HEADER + some_pairs()[0]["chosen"] + "<|endoftext|>")


# ---- log-probabilities and loss ----


def test_fast_and_plain_log_probabilities_and_their_gradients_agree(tokenizer):
    model, batch = tiny_gpt(), batch_of(batches, some_pairs(), tokenizer)
    for reduction in ("mean", "sum"):
        model.zero_grad()
        fast = dpo_loss.answer_logprobs(model, batch["chosen"], batch["chosen_mask"], reduction)
        fast.sum().backward()
        gradients = [parameter.grad.clone() for parameter in model.parameters()]
        model.zero_grad()
        plain = dpo_loss.compute_logprobs(model(batch["chosen"]), batch["chosen"], batch["chosen_mask"], reduction)
        plain.sum().backward()
        torch.testing.assert_close(fast, plain)
        for found, parameter in zip(gradients, model.parameters()):
            torch.testing.assert_close(found, parameter.grad, rtol=1e-3, atol=1e-4)


def test_loss_starts_at_ln_2_with_zero_rewards_whatever_beta_is(tokenizer):
    policy, batch = tiny_gpt(), batch_of(batches, some_pairs(), tokenizer)
    for beta in (0.01, 0.1, 5.0):
        loss, *rewards = dpo_loss.compute_dpo_loss_batch(batch, policy, dpo.frozen_copy(policy), beta)
        assert loss.item() == pytest.approx(math.log(2), abs=1e-7) and [reward.item() for reward in rewards] == [0.0, 0.0]


def test_gradients_reach_the_policy_alone(tokenizer):
    policy, batch = tiny_gpt(), batch_of(batches, some_pairs(), tokenizer)
    reference = tiny_gpt(2)  # its weights could learn: the loss must not ask them
    dpo_loss.compute_dpo_loss_batch(batch, policy, reference, 0.1)[0].backward()
    assert all(parameter.grad is not None for parameter in policy.parameters())
    assert all(parameter.grad is None for parameter in reference.parameters())


def test_means_over_a_loader_do_not_depend_on_the_batches_and_an_empty_one_gives_three_nans(tokenizer):
    policy, reference = tiny_gpt(1), tiny_gpt(2)
    found = []
    for size in (1, 2, 3):
        _, loader = dpo.create_preference_loaders(some_pairs(), some_pairs(), tokenizer, size)
        found.append(dpo.compute_dpo_loss_loader(loader, policy, reference, 0.5))
        assert len(found[-1]) == 3
    assert found[0] == pytest.approx(found[1], rel=1e-4) and found[0] == pytest.approx(found[2], rel=1e-4)
    one = dpo.compute_dpo_loss_loader(loader, policy, reference, 0.5, num_batches=0)
    empty = dpo.compute_dpo_loss_loader([], policy, reference, 0.5)
    assert len(one) == len(empty) == 3 and all(math.isnan(value) for value in (*one, *empty))


def test_the_mean_of_a_longer_answer_hides_what_the_sum_shows():
    logits = torch.zeros(2, 9, 4)  # every id has probability 1/4
    labels, mask = torch.ones(2, 9, dtype=torch.long), torch.zeros(2, 9, dtype=torch.bool)
    mask[0, 1:3], mask[1, 1:9] = True, True
    assert dpo_loss.compute_logprobs(logits, labels, mask).tolist() == pytest.approx([-math.log(4)] * 2)
    assert dpo_loss.compute_logprobs(logits, labels, mask, "sum").tolist() == pytest.approx([-2 * math.log(4), -8 * math.log(4)])


# ---- training ----


def trained(tokenizer, beta: float = 0.1, epochs: int = 12, **changes) -> tuple:
    """(tracking, policy, reference) of a tiny model that trains on three pairs."""
    policy = tiny_gpt(7, **changes)
    reference = dpo.frozen_copy(policy)
    loaders = dpo.create_preference_loaders(some_pairs(), some_pairs(), tokenizer, 3)
    torch.manual_seed(123)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3)
    prompt = format_input(some_pairs()[0]) + RESPONSE_HEADER
    return dpo.train_model_dpo_simple(policy, reference, *loaders, optimizer, epochs, beta, 4, None, prompt, tokenizer), policy, reference


def test_training_prefers_the_chosen_answers_and_keeps_the_reference(tokenizer, capsys):
    before = tiny_gpt(7)
    tracking, policy, reference = trained(tokenizer)
    names = [f"{part}_{kind}" for part in ("train", "val") for kind in ("losses", "chosen_rewards", "rejected_rewards")]
    assert list(tracking) == [*names, "tokens_seen"] and {len(values) for values in tracking.values()} == {4}  # before, after 4, 8, 12
    assert tracking["train_losses"][0] == pytest.approx(math.log(2), abs=1e-6) and tracking["tokens_seen"][0] == 0
    margins = [chosen - rejected for chosen, rejected in zip(tracking["val_chosen_rewards"], tracking["val_rejected_rewards"])]
    assert margins == sorted(margins) and margins[0] == pytest.approx(0, abs=1e-6) and margins[-1] > 0.5
    assert tracking["val_losses"] == sorted(tracking["val_losses"], reverse=True)
    state = before.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in reference.state_dict().items())
    assert not policy.training and "step    4: train loss" in capsys.readouterr().out


@pytest.mark.slow
def test_a_larger_beta_holds_the_policy_nearer_to_the_frozen_copy(tokenizer, capsys):
    margins = []
    for beta in (0.1, 20.0):  # once beta * margin is large, nothing pulls any more
        tracking, *_ = trained(tokenizer, beta, epochs=20)
        margins.append(tracking["val_chosen_rewards"][-1] - tracking["val_rejected_rewards"][-1])
    assert margins[1] < 0.7 * margins[0]


def test_measuring_more_often_does_not_change_the_training(tokenizer, capsys):
    def weights(eval_freq):
        policy = tiny_gpt(7)
        loaders = dpo.create_preference_loaders(some_pairs(), some_pairs(), tokenizer, 2)
        torch.manual_seed(1)
        optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3)
        dpo.train_model_dpo_simple(policy, dpo.frozen_copy(policy), *loaders, optimizer, 3, 0.1, eval_freq, 1, "a", tokenizer)
        return policy.state_dict()

    often, seldom = weights(1), weights(100)
    assert all(torch.equal(often[name], seldom[name]) for name in often)


def test_the_sample_is_the_given_models_own_and_stops_at_the_end_token(tokenizer):
    model = tiny_gpt()
    prompt = torch.tensor([tokenizer.encode_ordinary("abc")])
    expected = generate(model, prompt, 5, 160, eos_id=END)[0, prompt.shape[1] :].tolist()
    assert dpo.sample_answer(model, "abc", tokenizer, 5) == tokenizer.decode(expected).strip()
    assert dpo.sample_answer(tiny_gpt(9), "abc", tokenizer, 5) != tokenizer.decode(expected).strip()
    with torch.no_grad():
        model.out_head.weight.zero_()
        model.out_head.weight[END] = model.final_norm.shift + 1  # the end token is always the likeliest
        model.final_norm.scale.zero_()
        model.final_norm.shift.fill_(1.0)
        model.out_head.weight[END] = 1.0
    assert dpo.sample_answer(model, "abc", tokenizer, 5) == ""


def test_sampling_follows_the_softmax_of_logits_over_the_temperature():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])

    def model(idx):
        return logits.expand(*idx.shape, 4)

    torch.manual_seed(0)
    ids = generate(model, torch.zeros(4000, 1, dtype=torch.long), 1, 8, temperature=2.0)[:, 1]
    shares = torch.bincount(ids, minlength=4) / 4000
    torch.testing.assert_close(shares, softmax_with_temperature(logits, 2.0), rtol=0, atol=0.03)
