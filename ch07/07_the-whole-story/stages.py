"""The first three stages of the whole story: a GPT learns a text, a pretrained one writes, and learns to find spam.

Each stage takes (run, plan, device), prints what it finds, and returns {"rows": [[model, parameters, tokens read, what it can do]]}.
The models, loops and settings are those of chapters 5 and 6.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn as nn
from classifier import (
    CLASS_NAMES,
    CLASSIFIER_SIZES,
    TEST_CONFIG,
    add_classification_head,
    calc_accuracy_loader,
    create_loaders,
    load_spam_messages,
    spam_probability,
    train_classifier_simple,
)
from instructions import INSTRUCTION_SIZES
from previous_chapters import (
    RUNS,
    STORY_FILE,
    GPTModel,
    adamw,
    calc_loss_loader,
    create_split_loaders,
    evaluate_model,
    fuse_gelu,
    generate,
    gpt2_tokenizer,
    load_pretrained_gpt,
    read_text,
    save_atomically,
    train_model_simple,
    use_precision,
)
from run_folder import RunFolder

BEGINNING = "Every summer somebody in a good hat"
OPENING = "The Tide Clock\n\n" + BEGINNING  # of the story, with its title
RECITED = 40  # tokens that the story model adds to it
ENOUGH = 0.5  # loss at which a text is known nearly by heart
NEVER = 10**9  # measure inside a pass at its first update only
EOS_ID = 50256
MESSAGES = ("You won! Text CLAIM to 80082 now for your free prize.", "Are we still on for lunch at one?")
TEST_SIZE = {"context_length": 64, "emb_dim": 12, "n_heads": 2, "n_layers": 1}


@dataclass
class Plan:
    """The sizes of a run; few_characters, few_messages (of each kind) and few_entries cut the data, None takes all."""

    story_config: dict
    story: dict  # epochs, batch_size, lr, precision
    seed: int = 123
    pretrained: bool = True  # False: a tiny random model in place of gpt2-mini
    few_characters: int | None = None
    few_messages: int | None = None
    few_entries: int | None = None
    spam_lr: float = CLASSIFIER_SIZES["laptop"]["lr"]
    spam_passes: int = 5
    answer_lr: float = INSTRUCTION_SIZES["laptop"]["lr"]
    answer_passes: int = INSTRUCTION_SIZES["laptop"]["num_epochs"]
    answer_tokens: int = 40


def make_plan(story_model: str, seed: int, test_mode: bool) -> Plan:
    """The plan that a command line asks for."""
    config, how = RUNS[story_model]
    plan = Plan(config, how, seed)
    if not test_mode:
        return plan
    small = {"story_config": {**config, **TEST_SIZE}, "story": {**how, "epochs": 2}, "pretrained": False}
    few = {"few_characters": 4000, "few_messages": 60, "few_entries": 10}
    passes = {"spam_lr": 3e-3, "spam_passes": 2, "answer_lr": 3e-3, "answer_passes": 2, "answer_tokens": 4}
    return replace(plan, **small, **few, **passes)


def load_gpt(plan: Plan) -> tuple[GPTModel, dict]:
    """Return (gpt2-mini in eval mode, its configuration), seeded as the chapters' programs do it."""
    torch.manual_seed(plan.seed)
    model, cfg = load_pretrained_gpt({}, "mini") if plan.pretrained else (GPTModel(TEST_CONFIG).eval(), TEST_CONFIG)
    torch.manual_seed(plan.seed)
    return model, cfg


def count_parameters(model: nn.Module) -> int:
    """Number of weights; an output layer that equals the token embedding counts once."""
    total = sum(parameter.numel() for parameter in model.parameters())  # a parameter that two layers share is in there once
    head, embedding = model.out_head.weight, model.tok_emb.weight
    return total - head.numel() if head is not embedding and torch.equal(head, embedding) else total


def one_line(text: str, width: int = 88) -> str:
    """A text without line breaks, cut where it is too long."""
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 3] + "..."


# ---- 1: a story ----


def recite(model: nn.Module, text: str, context_length: int, device: torch.device) -> tuple[str, int]:
    """Return (how the model goes on after the story's opening, how many of its first tokens are those of the story)."""
    tokenizer = gpt2_tokenizer()
    opening, story = tokenizer.encode(OPENING), tokenizer.encode(text)
    was_training = model.training
    ids = generate(model.eval(), torch.tensor([opening], device=device), RECITED, context_length)[0].tolist()
    model.train(was_training)
    same = next((n for n, (said, true) in enumerate(zip(ids, story)) if said != true), len(ids)) - len(opening)
    return tokenizer.decode(ids[len(opening) :]), same


def learn_story(run: RunFolder, plan: Plan, device: torch.device) -> dict:
    """Chapter 5's training, until the loss on the training text is below ENOUGH."""
    text, cfg, how = read_text(STORY_FILE)[: plan.few_characters], plan.story_config, plan.story
    train_loader, val_loader = create_split_loaders(text, cfg, how["batch_size"])
    torch.manual_seed(plan.seed)
    model = GPTModel(cfg)
    fuse_gelu(model)
    use_precision(model.to(device), how["precision"], device)
    optimizer = adamw(model, how["lr"], 0.1, device)

    def one_pass(state, after_step: Callable) -> str:
        how_far = (state.epoch + 1, NEVER, 1, OPENING, gpt2_tokenizer())
        train_model_simple(model, train_loader, val_loader, optimizer, device, *how_far, state, after_step)
        train_loss, val_loss = evaluate_model(model, train_loader, val_loader, device, len(train_loader))
        state.train_losses.append(train_loss)
        state.val_losses.append(val_loss)
        state.track_tokens_seen.append(state.tokens_seen)
        return f"loss {train_loss:5.2f}  {one_line(recite(model, text, cfg['context_length'], device)[0], 70)}"

    def known(state) -> bool:
        return bool(state.train_losses) and state.train_losses[-1] < ENOUGH

    print(f'What follows each loss is how the model continues "{BEGINNING}".')
    state = run.train("story", model, optimizer, how["epochs"], len(train_loader), one_pass, known)
    (run.folder / "story-model").mkdir(exist_ok=True)
    (run.folder / "story-model" / "config.json").write_text(json.dumps(cfg, indent=2) + "\n", encoding="utf-8")
    save_atomically(model.state_dict(), run.folder / "story-model" / "model.pth")
    said, same = recite(model, text, cfg["context_length"], device)
    print(f'It recites, {same} of {RECITED} tokens as in the story:\n  "{one_line(BEGINNING + said, 400)}"')
    can = f"recites {same} of {RECITED} tokens; loss {state.train_losses[-1]:.2f}, but {state.val_losses[-1]:.2f} on the end it never read"
    return {"rows": [["story model", count_parameters(model), f"{state.tokens_seen:,}", can]]}


# ---- 2: a pretrained model ----


def let_mini_write(run: RunFolder, plan: Plan, device: torch.device) -> dict:
    """Chapter 5's sampling, and the loss on the part of the story that the first model never read."""
    model, cfg = load_gpt(plan)
    model.to(device)
    tokenizer = gpt2_tokenizer()
    prompt = torch.tensor([tokenizer.encode("Once upon a time")], device=device)
    ids = generate(model, prompt, 60, cfg["context_length"], temperature=0.8, top_k=40, eos_id=EOS_ID)
    print(f'  "{one_line(tokenizer.decode(ids[0].tolist()), 400)}"')
    _, unread = create_split_loaders(read_text(STORY_FILE)[: plan.few_characters], plan.story_config, plan.story["batch_size"])
    with torch.no_grad():
        loss = calc_loss_loader(unread, model, device)
    can = f"writes new tales; loss {loss:.2f} on the same end of the story"
    return {"rows": [["gpt2-mini", count_parameters(model), "9.8 million", can]]}


# ---- 3: spam ----


def find_spam(run: RunFolder, plan: Plan, device: torch.device) -> dict:
    """Chapter 6's training: a new head and the last block."""
    model, cfg = load_gpt(plan)
    add_classification_head(model)
    model.to(device)
    messages, folder = load_spam_messages(), run.folder / "spam-classifier"
    messages = messages.groupby("Label").head(plan.few_messages) if plan.few_messages else messages
    (train_loader, val_loader, test_loader), max_length = create_loaders(messages, folder, cfg["context_length"], 8)
    optimizer = adamw(model, plan.spam_lr, 0.1, device)

    def one_pass(state, after_step: Callable) -> str:
        how = (1, NEVER, 5, after_step)
        _, _, _, val_accs, seen = train_classifier_simple(model, train_loader, val_loader, optimizer, device, *how)
        state.epoch += 1
        state.tokens_seen += seen * max_length
        return f"{val_accs[-1]:.1%} of {5 * 8} validation messages right"

    state = run.train("spam", model, optimizer, plan.spam_passes, len(train_loader), one_pass)
    checkpoint = {"model_state_dict": model.state_dict(), "gpt_config": cfg, "max_length": max_length}
    save_atomically(checkpoint, folder / "review_classifier.pth")
    accuracy = calc_accuracy_loader(test_loader, model, device)
    print(f"It is right on {accuracy:.2%} of the {len(test_loader.dataset)} test messages. Two more:")
    model.eval()
    for text in MESSAGES:
        spam = spam_probability(text, model, gpt2_tokenizer(), device, max_length)
        print(f"  {CLASS_NAMES[spam > 0.5]:8}  {max(spam, 1 - spam):4.0%} sure   {text}")
    can = f"right on {accuracy:.1%} of {len(test_loader.dataset)} messages it has not seen"
    return {"rows": [["gpt2-mini for spam", count_parameters(model), f"+ {state.tokens_seen:,}", can]]}
