"""The last two stages of the whole story: gpt2-mini learns to answer, and two larger models answer the same questions.

The questions are of chapter 7's verifiable test, so a program says which answers are right. Stages are called as in stages.py.
"""

import json
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn as nn
from instructions import (
    answer_entries,
    create_loaders,
    load_data,
    load_families,
    load_verifiable_test,
    question_of,
    split_data,
    train_on_answers,
    verify,
)
from llama import Conversation, load_smollm2
from previous_chapters import adamw, gpt2_tokenizer, read_text, save_atomically
from run_folder import RunFolder
from stages import Plan, count_parameters, load_gpt, one_line
from tqdm import tqdm

QUESTIONS_FILE = Path(__file__).resolve().parent / "questions.json"


def read_questions() -> tuple[list[dict], dict]:
    """Return (the three questions with their checks, the stored answers of the tuned Gemma)."""
    stored = json.loads(read_text(QUESTIONS_FILE))
    known = {question_of(entry): entry for entry in load_verifiable_test()}
    return [known[question_of(entry)] for entry in stored["questions"]], stored["gemma"]


def is_right(entry: dict, answer: str) -> bool:
    return verify(entry["check"], answer, question_of(entry))


def show_answers(answers: dict[str, list[str]], questions: list[dict]) -> None:
    """Print each question with everybody's answer and the verifier's verdict."""
    for number, entry in enumerate(questions):
        print(f"  {one_line(question_of(entry))}   (its words were {'in' if entry['group'] == 'seen' else 'not in'} the tuning data)")
        for name, said in answers.items():
            verdict = "right" if is_right(entry, said[number]) else "wrong"
            print(f"    {name:8} {verdict:6} {one_line(said[number], 70)}")


def count_right(model: nn.Module, group: str, plan: Plan, device: torch.device) -> tuple[int, int]:
    """Return (right answers, questions) of a group of the verifiable test. An answer that does not end is wrong."""
    entries = [entry for entry in load_verifiable_test() if entry["group"] == group][: plan.few_entries and 4]
    entries.sort(key=lambda entry: len(question_of(entry)))  # prompts of one length share a batch
    right = 0
    for start in tqdm(range(0, len(entries), 32), desc=f"{group} words", leave=False):
        part = entries[start : start + 32]
        answers, ended = answer_entries(model, part, gpt2_tokenizer(), device, plan.answer_tokens)
        right += sum(end and is_right(entry, answer) for entry, answer, end in zip(part, answers, ended))
    return right, len(entries)


def follow_instructions(run: RunFolder, plan: Plan, device: torch.device) -> dict:
    """Chapter 7's training on the plain instructions, and three questions before and after it."""
    tokenizer, (questions, _) = gpt2_tokenizer(), read_questions()
    train_data, _, val_data = split_data(load_data())
    train_data = [entry for entry, row in zip(train_data, load_families()) if row["check"] is not None]
    model, cfg = load_gpt(plan)
    model.to(device)
    loaders = create_loaders(train_data[: plan.few_entries], val_data[: plan.few_entries], tokenizer, 8, cfg["context_length"], device)
    optimizer = adamw(model, plan.answer_lr, 0.1, device)
    before, _ = answer_entries(model, questions, tokenizer, device, plan.answer_tokens)

    def one_pass(state, after_step: Callable) -> str:
        losses, _, seen = train_on_answers(model, *loaders, optimizer, 1, len(loaders[0]), 5, after_step)
        state.epoch += 1
        state.tokens_seen += seen[-1]
        (answer,), _ = answer_entries(model, questions[:1], tokenizer, device, plan.answer_tokens)
        return f"loss {losses[-1]:.2f}  {one_line(answer, 70)}"

    print(f"What follows each loss is the answer to: {question_of(questions[0])}")
    state = run.train("instructions", model, optimizer, plan.answer_passes, len(loaders[0]), one_pass)
    (run.folder / "instruction-model").mkdir(exist_ok=True)
    checkpoint = {"model_state_dict": model.state_dict(), "gpt_config": cfg}
    save_atomically(checkpoint, run.folder / "instruction-model" / "gpt2-mini-sft-standalone.pth")
    model.eval()
    after, _ = answer_entries(model, questions, tokenizer, device, plan.answer_tokens)
    show_answers({"before": before, "after": after}, questions)
    (seen, of_seen), (unseen, of_unseen) = (count_right(model, group, plan, device) for group in ("seen", "unseen"))
    can = f"right on {seen / of_seen:.0%} of {of_seen} questions with words of its tuning, {unseen / of_unseen:.0%} of {of_unseen} others"
    return {"rows": [["gpt2-mini, tuned", count_parameters(model), f"+ {state.tokens_seen:,}", can]]}


def let_larger_models_answer(run: RunFolder, plan: Plan, device: torch.device) -> dict:
    """SmolLM2 answers here; what the tuned Gemma answered was stored by chapter 7."""
    questions, gemma = read_questions()
    model, tokenizer = load_smollm2()
    conversation = Conversation(model.to(device), tokenizer, max_new_tokens=plan.answer_tokens)
    answers = []
    for entry in tqdm(questions, desc="SmolLM2", leave=False):
        conversation.forget()
        answers.append("".join(conversation.ask(question_of(entry))).strip())
    show_answers({"SmolLM2": answers, "Gemma": gemma["answers"]}, questions)
    print(f"  The second answers are stored ones of {gemma['model']}.\n  {gemma['terms']}")
    right = [sum(map(is_right, questions, said)) for said in (answers, gemma["answers"])]
    unseen = f"{gemma['right_unseen'] / gemma['of_unseen']:.0%} of {gemma['of_unseen']} with words not in its tuning"
    smollm2 = ["SmolLM2-135M-Instruct", count_parameters(model), "2 trillion", f"right on {right[0]} of the three questions"]
    tuned = ["Gemma 3 270M, tuned", gemma["parameters"], "6 trillion", f"right on {right[1]} of the three, {unseen}"]
    return {"rows": [smollm2, tuned]}
