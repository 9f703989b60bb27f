"""What chapter 1 says about the other folders is true there: sizes, tokens, what models write, minutes.

python -m pytest setup/tests/test_chapter_1.py
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
README = (REPO / "ch01/README.md").read_text(encoding="utf-8")
METHOD = (REPO / "ch01/reading-recommendations.md").read_text(encoding="utf-8")


def ask(folder, code):
    """What a program prints as JSON that runs in a folder of the course."""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO / folder, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def numbers_of_figures():
    code = "import json, figures as f; print(json.dumps([f.PROMPT, f.NEXT_TOKENS, f.LOOP_PROMPT, f.LOOP, f.COLORS, f.MODELS]))"
    return ask("ch01", code)


def test_the_colors_are_those_of_the_course():
    course = ask("ch02/01_main-chapter-code", "import json, plot_style; print(json.dumps(plot_style.COLORS))")
    assert {name: course[name] for name in numbers_of_figures()[4]} == numbers_of_figures()[4]


def test_tokens_of_the_examples():
    rows = re.findall(
        r"^\| (.+?) \| ?(\d*) \| (\d+) \| (\d+) \|$", README.partition("### Tokens, words, bytes")[2].partition("###")[0], flags=re.M
    )
    code = f"""
import json
from dataloader import gpt2_tokenizer
tokenizer = gpt2_tokenizer()
pieces = [tokenizer.decode([number]) for number in tokenizer.encode("strawberry")]
story = open("the-tide-clock.txt", encoding="utf-8").read()
print(json.dumps([[len(tokenizer.encode(text)) for text in {[row[0] for row in rows]}], pieces,
                  [len(story.encode()), len(story.split()), len(tokenizer.encode(story))]]))
"""
    counts, pieces, story = ask("ch02/01_main-chapter-code", code)
    assert len(rows) == 4 and counts == [int(tokens) for *_, tokens in rows] and pieces == ["st", "raw", "berry"]
    assert [len(text.encode()) for text, *_ in rows] == [int(size) for _, _, size, _ in rows]
    assert all(not words or len(text.split()) == int(words) for text, words, *_ in rows)
    assert f"{story[0]:,} bytes, {story[1]:,} words, and {story[2]:,} tokens" in README
    assert 3.5 < story[0] / story[2] < 4.5 and 0.7 < story[1] / story[2] < 0.8


@pytest.mark.slow
def test_sizes_are_what_chapter_4_counts():
    code = """
import json, torch
from gpt import GPT_CONFIG_124M, MODEL_SIZES, GPTModel, tie_weights
def count(module): return sum(p.numel() for p in module.parameters())
rows = []
with torch.device("meta"):
    for size in MODEL_SIZES.values():
        model = tie_weights(GPTModel({**GPT_CONFIG_124M, **size, "qkv_bias": True}))
        block = model.trf_blocks[0]
        rows.append([count(model), len(model.trf_blocks), model.tok_emb.weight.shape[1], count(block), count(block.att)])
print(json.dumps(rows))
"""
    counted = ask("ch04/01_main-chapter-code", code)
    said = re.findall(r"^\| GPT-2, \w+ \| 2019 \| ([\d.]+) (m|b)illion \| (\d+) \| ([\d,]+) \|", README, flags=re.M)
    assert len(said) == 4
    for (parameters, blocks, width, *_), (number, letter, said_blocks, said_width) in zip(counted, said):
        exact = parameters / (1e6 if letter == "m" else 1e9)
        assert f"{exact:.{len(number.partition('.')[2])}f}" == number
        assert [blocks, width] == [int(said_blocks), int(said_width.replace(",", ""))]
    block, attention = counted[0][3:]
    assert f"about {block / 1e6:.1f} million parameters, a third of them in attention" in README and abs(attention / block - 1 / 3) < 0.01


def test_sizes_of_our_own_models():
    models = {name: (parameters, tokens) for name, parameters, tokens, _ in numbers_of_figures()[5]}
    card = json.loads((REPO / "ch05/03_bonus_pretraining_on_gutenberg/gpt2-mini/results.json").read_text(encoding="utf-8"))
    folder = (REPO / "ch05/03_bonus_pretraining_on_gutenberg/gpt2-mini/README.md").read_text(encoding="utf-8")
    parameters, tokens = models["gpt2-mini (ours)"]
    assert tokens == card["tokens_seen_at_last_evaluation"] and round(card["hours"], 1) == 1.2 and f"{parameters:,}" in folder
    parameters, tokens = models["story model (ours)"]
    row = next(line for line in (REPO / "README.md").read_text(encoding="utf-8").splitlines() if line.startswith("story model"))
    assert f"{parameters:,}" in row and f"{tokens:,}" in row


def test_samples_are_those_of_the_log():
    lines = (REPO / "ch05/01_main-chapter-code/story-124m-log.txt").read_text(encoding="utf-8").splitlines()
    samples = [line.removeprefix("Mrs. Tamsett looked at the clock ") for line in lines if line.startswith("Mrs. Tamsett")]
    quoted = re.findall(r"^(\d)   (.+)$", README, flags=re.M)
    assert [epoch for epoch, _ in quoted] == ["1", "2", "7"]
    assert all(samples[int(epoch) - 1].startswith(text) for epoch, text in quoted)


def test_the_request_after_three_stages_is_in_the_logs():
    code = """
import json
from gemma_report import asked_questions, load_gemma_log
log = load_gemma_log()
place, question = next((i, q) for i, q in enumerate(asked_questions()) if "queen" in q["instruction"] + q["input"])
tuned = json.load(open("../04_preference-tuning-with-dpo/gemma-dpo-log.json", encoding="utf-8"))
assert log["questions"] == tuned["questions"] and question["group"] == "unseen"
answers = [part["answers"][place] for part in (log["before"], log["runs"][0]["after"], tuned["runs"][0]["after"])]
print(json.dumps([(question["instruction"] + " " + question["input"]).strip(), log["before"]["ended"][place], *answers]))
"""
    request, ended, base, instructed, preferred = ask("ch07/01_main-chapter-code", code)
    cells = re.findall(r"^\| (?:the request|after .+?) \| (.+) \|$", README, flags=re.M)
    quoted = [re.findall(r"\*(.+?)\*", cell) for cell in cells]
    assert quoted == [[request], base.split("\n\n")[:3], [instructed], [preferred]] and not ended
    assert "[Gemma Terms of Use](https://ai.google.dev/gemma/terms)" in README


@pytest.mark.slow  # SmolLM2 is loaded and asked
def test_probabilities_of_smollm2():
    prompt, tokens, start, steps, *_ = numbers_of_figures()
    code = f"""
import json, torch
from llama import load_smollm2
model, tokenizer = load_smollm2()[:2]
def probabilities(ids):
    with torch.inference_mode():
        return torch.softmax(model(torch.tensor([ids]))[0, -1], dim=-1)
def named(p, count):
    return [(tokenizer.decode([i]), 100 * p[i].item()) for i in p.topk(count).indices.tolist()]
ids, loop = tokenizer.encode({start!r}), []
for _ in range(10):
    p = probabilities(ids)
    loop += named(p, 1)
    ids.append(p.argmax().item())
cold = dict(named(probabilities(tokenizer.encode("The opposite of hot is")), 1))
chat = [{{"role": "system", "content": "You are a helpful assistant."}}, {{"role": "user", "content": "What is the capital of Kenya?"}}]
print(json.dumps([len(p), named(probabilities(tokenizer.encode({prompt!r})), {len(tokens)}), loop, tokenizer.decode(ids), cold,
                  tokenizer.decode(tokenizer.encode_chat(chat))]))
"""
    size, following, loop, sentence, cold, chat = ask("ch05/07_gpt_to_llama", code)
    assert size == 49152 and [word.strip() for word, _ in following] == list(tokens)
    assert [p for _, p in following] == pytest.approx(list(tokens.values()), abs=0.15)
    assert [token for token, _ in loop[: len(steps)]] == [token for token, _ in steps]
    assert [p for _, p in loop[: len(steps)]] == pytest.approx([p for _, p in steps], abs=1)
    assert f"*{sentence}*" in README and cold[" cold"] == pytest.approx(68, abs=1)
    assert f"```text\n{chat.strip()}\n```" in README


def test_minutes_and_hours():
    budgets = json.loads((REPO / "setup/tools/budgets.json").read_text(encoding="utf-8"))
    main = {n: budgets[f"ch0{n}/01_main-chapter-code/ch0{n}.ipynb"] for n in range(2, 8)}
    assert all(main[n]["seconds"] < 30 and main[n]["peak_mb"] < 1500 for n in (2, 3, 4))
    assert all(main[n]["seconds"] < 180 and main[n]["peak_mb"] < 3500 for n in (5, 6, 7))
    assert max(row["seconds"] for row in budgets.values()) < 180
    hours = dict(re.findall(r"^\| (\d), .+ \| ([\d.]+) \|$", METHOD, flags=re.M))
    assert sorted(hours) == list("234567")
    for chapter, said in hours.items():
        notebook = (REPO / f"ch0{chapter}/01_main-chapter-code/exercise-solutions.ipynb").read_text(encoding="utf-8")
        assert sum(map(int, re.findall(r"about (\d+) minutes\*", notebook))) / 60 == pytest.approx(float(said), abs=0.5)
