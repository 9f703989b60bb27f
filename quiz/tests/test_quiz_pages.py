"""The pages are those of the sources, need no network, and can be used with the keyboard alone.

Run it:  pytest quiz/tests/test_quiz_pages.py
"""

import html
import os
import re
import shutil
from collections import Counter

import make_pages
import pytest
from make_pages import inline, main, outdated, pages
from playwright.sync_api import Error, expect, sync_playwright
from questions import FOLDER, find_quizzes, read_quiz

NAMES = [path.stem for path in find_quizzes().values()]
each_quiz = pytest.mark.parametrize("name", NAMES)


def test_every_page_is_what_its_source_gives(capsys):
    assert outdated() == [] and main(["--check"]) == 0
    assert f"{2 * len(NAMES)} quiz pages, 0 out of date" in capsys.readouterr().out


def test_a_page_out_of_date_is_seen_and_written_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(make_pages, "FOLDER", tmp_path)
    for path in [find_quizzes()["2"], FOLDER / "page-template.html"]:
        shutil.copy(path, tmp_path)
    assert main(["--check"]) == 1 and not (tmp_path / "ch02.md").exists()
    assert main([]) == 0 and main(["--check"]) == 0
    (tmp_path / "ch02.html").write_text("changed by hand", encoding="utf-8")
    (tmp_path / "ch09.md").write_text("of a quiz that is gone", encoding="utf-8")
    assert main(["--check"]) == 1 and "ch09.md: has no source" in capsys.readouterr().out


@each_quiz
def test_the_readme_leads_to_every_page(name):
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert f"({name}.md)" in text and f"({name}.html)" in text


@each_quiz
def test_answers_are_folded_and_favor_no_letter(name):
    text = (FOLDER / f"{name}.md").read_text(encoding="utf-8")
    open_part = re.sub(r"<details>.*?</details>", "", text, flags=re.S)
    answers = re.findall(r"<summary>Answer</summary>\n\n\*\*([a-d](?: and [a-d])*)\.\*\*", text)
    assert len(answers) == 30 == text.count("</details>") and open_part.count("## Question") == 30
    places = Counter(answer for answer in answers if len(answer) == 1)
    assert set(places) == set("abcd") and max(places.values()) - min(places.values()) <= 1
    for question in read_quiz(FOLDER / f"{name}.toml").questions:
        assert all(choice.text in open_part and choice.why in text and choice.why not in open_part for choice in question.choices)


def test_markup_of_a_question_cannot_leave_its_place():
    assert inline("*a* `<b> & c*d*` < d") == "<em>a</em> <code>&lt;b&gt; &amp; c*d*</code> &lt; d"
    for text in pages().values():
        assert text.count("</script>") in (0, 2)  # of a page: its data and its program


@each_quiz
def test_a_page_names_no_other_address(name):
    text = (FOLDER / f"{name}.html").read_text(encoding="utf-8")
    assert re.findall(r"""(?:src|href)=["']?(?!data:,)[^"'> ]+|url\(|@import|https?://""", text) == []


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        path = shutil.which("chromium") or shutil.which("chromium-browser")
        where = {"executable_path": path} if path else {"channel": "chrome"}
        try:
            yield playwright.chromium.launch(**where, args=["--no-sandbox", "--disable-background-networking"])
        except Error as error:
            if os.environ.get("CI") == "true":
                raise
            pytest.skip(f"no browser to drive: install Chromium or Chrome ({str(error).splitlines()[0]})")


def visit(browser, name):
    """(page, what it asked for besides itself, its errors)."""
    page, others, errors = browser.new_page(), [], []
    page.on("request", lambda request: others.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.goto((FOLDER / f"{name}.html").as_uri())
    return page, others, errors


def type_answer(page, source, right=True):
    """Answer the question on the page with keys alone, as the source says or not; returns the question."""
    shown = page.evaluate("queue[at]")
    (question,) = [q for q in source.questions if (inline(q.ask), html.escape(q.code, quote=False)) == (shown["ask"], shown["code"])]
    holds = {inline(choice.text) for choice in question.choices if choice.right}
    letters = [letter for letter, choice in zip("abcd", shown["choices"]) if (choice["text"] in holds) == right]
    for letter in letters if right else letters[:1]:
        page.keyboard.press(letter)
    page.keyboard.press("Enter")
    return question


@pytest.mark.slow
@each_quiz
def test_a_page_is_played_to_its_end_with_the_keyboard(browser, name):
    source = read_quiz(FOLDER / f"{name}.toml")
    page, others, errors = visit(browser, name)
    missed = []
    for number in range(30):
        expect(page.locator("#place")).to_contain_text(f"Question {number + 1} of 30")
        question = type_answer(page, source, right=number not in (3, 7))
        missed += [question.ask] if number in (3, 7) else []
        expect(page.locator("#verdict")).to_have_text("Not yet. This question comes back." if number in (3, 7) else "Right.")
        page.keyboard.press("Enter")
    expect(page.locator("#verdict")).to_contain_text("Score at the first try: 28 of 30")
    page.keyboard.press("Enter")
    again = []
    for number in range(2):
        expect(page.locator("#place")).to_contain_text(f"Once more: question {number + 1} of 2")
        again.append(type_answer(page, source).ask)
        expect(page.locator("#verdict")).to_have_text("Right.")
        page.keyboard.press("Enter")
    expect(page.locator("#verdict")).to_contain_text("28 of 30")
    expect(page.locator("#verdict")).to_contain_text("Nothing is left to repeat.")
    assert sorted(again) == sorted(missed)
    assert others == [page.url] and errors == []


@pytest.mark.slow
def test_a_page_explains_what_was_chosen_and_what_holds(browser):
    source = read_quiz(FOLDER / f"{NAMES[0]}.toml")
    page, _, _ = visit(browser, NAMES[0])
    page.keyboard.press("Enter")
    expect(page.locator("#verdict")).to_have_text("Choose an answer first.")
    question = type_answer(page, source, right=False)
    expect(page.locator("label.wrong .why")).to_have_count(1)
    expect(page.locator("label.right .why")).to_have_text([c.why.replace("`", "") for c in question.choices if c.right])
    assert page.evaluate("document.activeElement.id") == "go" and page.locator("input:enabled").count() == 0


@pytest.mark.slow
def test_a_page_is_usable_with_tab_arrows_and_space(browser):
    page, _, _ = visit(browser, NAMES[0])
    assert page.evaluate("document.activeElement.value") == "0"
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    expect(page.locator("#go")).to_have_text("Next")
    assert page.evaluate("[...document.querySelectorAll('input')].map(input => input.checked)") == [False, True, False, False]
