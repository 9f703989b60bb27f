"""Figures and numbers of chapter 1: drawn from the published values that the text names, and computed from them correctly.

python -m pytest ch01
"""

import math
import re
from pathlib import Path

import figures
import pytest

FOLDER = Path(__file__).resolve().parents[1]
README = (FOLDER / "README.md").read_text(encoding="utf-8")
WORDS = {"thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12}


def number(text):
    """ "1.4 trillion", "3,640", "34%" or "3.5 times" as a number."""
    digits, word = re.match(r"([\d.,]+)\s*(\w+)?", text).groups()
    return float(digits.replace(",", "")) * WORDS.get(word, 1)


def table(heading):
    """Rows of the table whose head line starts with these words, as lists of cells."""
    lines = README[README.index(f"\n| {heading}") :].strip().split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def says(*snippets):
    """Fail on what the text does not say, word for word."""
    missing = [snippet for snippet in snippets if snippet not in README]
    assert missing == []


# ---- figures ----


def labels(svg):
    """The texts of a figure in order: matplotlib draws letters as paths and leaves each text in a comment."""
    return re.findall(r"<!-- (.*?) -->", svg.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_figures_are_those_of_figures_py_and_all_are_shown(tmp_path):
    assert figures.main(["--output", str(tmp_path)]) == 0
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {path.name for path in (FOLDER / "figures").iterdir()} == set(re.findall(r"\(figures/([\w.-]+)\)", README))
    for name in names:
        stored, drawn = FOLDER / "figures" / name, tmp_path / name
        assert labels(stored) == labels(drawn) != []
        assert stored.stat().st_size == pytest.approx(drawn.stat().st_size, rel=0.05)


def test_figures_that_cannot_be_written_end_in_one_line(tmp_path, capsys):
    (tmp_path / "taken").write_text("a file, not a folder", encoding="utf-8")
    with pytest.raises(SystemExit) as stopped:
        figures.main(["--output", str(tmp_path / "taken")])
    assert stopped.value.code == 2 and len(capsys.readouterr().err.strip().splitlines()) == 1


def test_help_names_the_options(capsys):
    with pytest.raises(SystemExit) as stopped:
        figures.main(["--help"])
    assert stopped.value.code == 0 and "--output DIR" in capsys.readouterr().out


def test_alt_texts_tell_the_numbers_of_their_figures():
    alt = dict(reversed(pair) for pair in re.findall(r"!\[(.+?)\]\(figures/([\w-]+)\.svg\)", README))
    assert all(f"{word} {percent}%" in alt["next-token"] for word, percent in figures.NEXT_TOKENS.items())
    assert f"{100 - sum(figures.NEXT_TOKENS.values()):.1f}% to any other of 49,144 tokens" in alt["next-token"]
    assert [int(n) for n in re.findall(r"(\d+)%", alt["loop"])] == [percent for _, percent in figures.LOOP]
    assert all(name.split()[0] in alt["scale"] for name, *_ in figures.MODELS)
    shares = [value for _, tokens, weight in figures.GPT3_DATA for value in (100 * tokens / 499, weight)]
    assert [float(n) for n in re.findall(r"([\d.]+)%", alt["data-mixture"])] == pytest.approx(shares, abs=0.5)


def test_the_weights_of_the_attention_picture_add_up_to_one():
    weights = [float(text.get_text()) for text in figures.attention().axes[0].texts if re.fullmatch(r"0\.\d\d", text.get_text())]
    assert len(weights) == 7 and sum(weights) == pytest.approx(1) and max(weights) == 0.55


# ---- tables ----


def test_the_table_of_models_is_what_the_chart_shows():
    rows = {row[0]: row for row in table("model | parameters | training tokens |")}
    assert set(rows) == {name for name, *_ in figures.MODELS}
    for name, parameters, tokens, _ in figures.MODELS:
        _, said_parameters, said_tokens, ratio, source = rows[name]
        assert number(said_parameters) == pytest.approx(parameters, rel=0.04) and number(said_tokens) == pytest.approx(tokens, rel=0.01)
        assert number(ratio) == pytest.approx(tokens / parameters, rel=0.03) and re.fullmatch(r"\[.+\]\(.+\)", source)


def test_the_first_table_of_sizes_agrees_with_it():
    rows = {
        name: (number(parameters), number(tokens)) for name, parameters, tokens in table("model | parameters | tokens read in training |")
    }
    known = {name: pytest.approx(values, rel=0.04) for name, *values, _ in figures.MODELS}
    assert rows == {
        "the story model of chapter 5": known["story model (ours)"],
        "`gpt2-mini`, trained for this course": known["gpt2-mini (ours)"],
        "SmolLM2-135M": known["SmolLM2 135M"],
        "GPT-3 (2020)": known["GPT-3"],
        "Llama 3.1 405B (2024)": known["Llama 3.1 405B"],
    }


def test_the_table_of_gpt3s_data_is_computed_from_the_published_columns():
    total = sum(tokens for _, tokens, _ in figures.GPT3_DATA)
    rows = table("corpus |")
    assert total == 499 and sum(weight for *_, weight in figures.GPT3_DATA) == 101 and len(rows) == 5
    for (name, tokens, weight), row in zip(figures.GPT3_DATA, rows):
        drawn = figures.GPT3_TRAINING_TOKENS * weight / 100
        assert row[0] == name and [number(row[1]) / 1e9, number(row[2]), number(row[3]) / 1e9] == [tokens, weight, drawn]
        assert number(row[4]) == pytest.approx(drawn / tokens, abs=0.05)
    often = [(tokens, weight) for _, tokens, weight in figures.GPT3_DATA if weight * 3 > tokens]
    says(f"= {sum(n for n, _ in often)} billion tokens, 34/499 = {100 * 34 / 499:.1f}%", f"make up {sum(w for _, w in often)}%")


def test_shares_of_instructgpts_computing():
    spent = [3640, 4.9, 60]
    assert [row[2] for row in table("stage |")] == [f"{100 * part / sum(spent):.1f}%" for part in spent]
    says("3,640, 4.9, and 60 petaflop/s-days")


# ---- numbers in the text ----


def softmax(scores, temperature=1):
    powers = [math.exp(score / temperature) for score in scores]
    return [power / sum(powers) for power in powers]


def test_losses_of_section_1():
    day, night = figures.NEXT_TOKENS["day"] / 100, figures.NEXT_TOKENS["night"] / 100
    says(f"got {day:.3f}, so the loss is {-math.log(day):.2f}", f"got {night:.3f}, the loss would have been {-math.log(night):.1f}")
    says(f"has a loss of {math.log(49152):.1f}", "49,144", "49,152")
    assert 50257**5 == pytest.approx(3e23, rel=0.1) and 49152 - len(figures.NEXT_TOKENS) == 49144


def test_probabilities_of_the_counted_sentences():
    follow = {}
    for sentence in re.search(r"> (the boat .+)", README)[1].split(" / "):
        for word, after in zip(sentence.split(), sentence.split()[1:]):
            follow.setdefault(word, []).append(after)
    assert follow["the"].count("boat") / len(follow["the"]) == 2 / 3
    assert sorted(follow["came"]) == ["home", "in", "late"]


def test_years_of_reading():
    a_year = 365 * 120 * 340 / 0.75  # pages of 340 words, a page a minute for two hours a day
    assert a_year == pytest.approx(20e6, rel=0.05) and 2e12 / 20e6 == 100_000 and 9_799_680 / a_year == pytest.approx(0.5, rel=0.05)
    says("some 20 million tokens a year", "take you 100,000 years", "as much as the reader above does in half a year")


def test_costs():
    parameters, tokens = 12_368_064, 9_799_680
    gpt3, mini, llama = 6 * 175e9 * 300e9, 6 * parameters * tokens, 6 * 405e9 * 15.6e12
    assert (gpt3, mini, llama) == pytest.approx((3.2e23, 7.3e14, 3.8e25), rel=0.02)
    says("≈ 3.2 × 10²³", "7.3 × 10¹⁴", "3.8 × 10²⁵")
    assert 1.2 * gpt3 / mini / 8766 == pytest.approx(59_000, rel=0.01) and 30.84e6 / 8766 == pytest.approx(3500, rel=0.01)
    says("some 59,000 years", "3,500 years", "1.2 × 10²⁰")
    assert 6 * 1e9 * 20e9 == pytest.approx(1.2e20)


def test_examples_on_the_page_of_formulas():
    page = README.partition("## 1.8")[2].partition("## Check yourself")[0]
    numbers = {
        "probability 0.036": 0.5 * 0.2 * 0.9 * 0.4 == pytest.approx(0.036),
        "0.67, 0.24 and 0.09": softmax([2, 1, 0]) == pytest.approx([0.67, 0.24, 0.09], abs=0.006),
        "0.87, 0.12 and 0.02": softmax([2, 1, 0], 0.5) == pytest.approx([0.87, 0.12, 0.02], abs=0.006),
        "50,257 × 768 = 38,597,376": 50257 * 768 == 38_597_376,
        "divided by 8": math.sqrt(64) == 8,
        "has a loss of 10.82": math.log(50257) == pytest.approx(10.82, abs=0.006),
        "a perplexity of 20": math.exp(3) == pytest.approx(20, abs=0.5),
        "12,288 learning numbers instead of 589,824": (2 * 768 * 8, 768 * 768) == (12288, 589824),
        "the loss is 0.13; if 2 points lower, 2.13": [math.log1p(math.exp(-d)) for d in (2, -2)] == pytest.approx([0.13, 2.13], abs=0.006),
        "ln 2 = 0.69": math.log(2) == pytest.approx(0.69, abs=0.006),
        "61%, with a standard error of 2.6 points": 206 / 340 == pytest.approx(0.61, abs=0.006),
        "2 × 12 × 12 × 64 × 4 = 73,728 bytes, 75 MB": (2 * 12 * 12 * 64 * 4, round(73728 * 1024 / 1e6)) == (73728, 75),
    }
    assert [text for text, right in numbers.items() if not right or text not in page] == []
    assert math.sqrt(0.606 * 0.394 / 340) == pytest.approx(0.026, abs=0.0006)


# ---- form ----


def test_anchors_that_other_chapters_link_stay():
    assert re.findall(r'<a id="([\w-]+)"></a>\n\n## 1\.(\d)', README) == [("stages", "3"), ("gpt-family", "6"), ("course-map", "7")]


def test_the_core_is_read_in_forty_minutes():
    core = re.sub(r"<!-- map:start -->.*?<!-- map:end -->|\$\$.*?\$\$|!\[.*?\]", "", README.partition("## 1.8")[0], flags=re.DOTALL)
    assert 4500 < len(core.split()) < 40 * 150  # 150 words a minute leave time for the figures


def test_every_question_is_answered_behind_a_fold():
    questions = re.findall(r"^\*\*(\d+)\.\*\* .+?</details>", README.partition("## Check yourself")[2], flags=re.M | re.DOTALL)
    assert questions == [str(n) for n in range(1, 11)] and README.count("<details><summary>Answer</summary>") == 10
