"""The report of Gemma's tuning: logs are joined without loss, answers meet their own questions, counts are right."""

import json
import re

import gemma_report as report
import matplotlib.pyplot as plt
import pytest
from instruction_data_checks import load_data, load_verifiable_test

RUN = {
    "settings": {"data": "my.json", "seed": 7}, "updates": 60, "eval_freq": 29, "train_losses": [3 - 0.01 * i for i in range(60)],
    "val_losses": [2.5, 2.0, 1.5],
}  # fmt: skip


@pytest.fixture(scope="module")
def questions() -> list[dict]:
    return report.asked_questions()


def answered(questions, answer, ended: bool = True) -> dict:
    """The same kind of answer to every question: answer(question) says which."""
    return {"answers": [answer(question) for question in questions], "ended": [ended] * len(questions), "seconds": 1.5}


@pytest.fixture
def logs(tmp_path, questions) -> list[str]:
    """Three log.json files as the training script writes them: untuned, a perfect model, one that repeats the instruction."""
    parts = {
        "before": {"before": answered(questions, lambda question: (question["output"] + "\n\n### Response:\n") * 9, ended=False)},
        "good": {"run": RUN, "after": answered(questions, lambda question: question["output"])},
        "echo": {"run": RUN, "after": answered(questions, lambda question: question["instruction"])},
    }
    for name, log in parts.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(log, ensure_ascii=False), encoding="utf-8")
    return ["before.json", "good=good.json", "echo, again=echo.json"]


@pytest.fixture
def joined(logs, questions) -> dict:
    assert report.command_line(["--log", "joined.json", "--join", *logs]) == 0
    return report.load_gemma_log("joined.json")


# ---- joining and reading ----


def test_joining_keeps_every_answer_and_cuts_what_never_ended(joined, questions):
    assert [run["name"] for run in joined["runs"]] == ["good", "echo, again"] and joined["runs"][0]["run"] == RUN
    assert joined["runs"][0]["after"]["answers"] == [question["output"] for question in questions]
    for answer, question in zip(joined["before"]["answers"], questions):
        assert len(answer) <= report.CUT and ((question["output"] + "\n\n### Response:\n") * 9).startswith(answer)


def test_the_file_has_one_answer_a_line_and_names_model_and_terms(joined, tmp_path, questions):
    text = (tmp_path / "joined.json").read_text(encoding="utf-8")
    assert json.loads(text) == joined and text.endswith("}\n")
    assert "Gemma 3 270M" in joined["model"] and "https://ai.google.dev/gemma/terms" in joined["terms"]
    assert 3 * len(questions) < len(text.splitlines()) < 3 * len(questions) + 100


def test_texts_that_look_like_lists_survive_the_layout(logs, tmp_path, questions):
    hard = ["[\n1,\n2]", "true", "[ true, 1 ]", "a\n-1,\n", '"[1,\\n2,"']
    log = json.loads((tmp_path / "good.json").read_text(encoding="utf-8"))
    log["after"]["answers"][: len(hard)] = hard
    (tmp_path / "good.json").write_text(json.dumps(log), encoding="utf-8")
    text = report.join(logs[0], logs[1:], questions)
    assert json.loads(text)["runs"][0]["after"]["answers"][: len(hard)] == hard


def test_the_questions_are_the_test_split_and_the_verifiable_test_in_order(questions):
    data = load_data()[935:1045]
    assert [report.question_of(question) for question in questions] == [
        report.question_of(entry) for entry in data + load_verifiable_test()
    ]
    assert [question["group"] for question in questions[:110]] == ["test"] * 110 and all("check" in question for question in questions)


def test_answers_to_other_questions_are_refused(joined, tmp_path):
    log = json.loads((tmp_path / "joined.json").read_text(encoding="utf-8"))
    (tmp_path / "joined.json").write_text(json.dumps({**log, "questions": "0" * 64}), encoding="utf-8")
    with pytest.raises(ValueError, match="other questions"):
        report.load_gemma_log("joined.json")


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda log: log["before"]["answers"].pop(), "before does not have 592 answers"),
        (lambda log: log["runs"][1]["after"].update(ended=[1] * 592), "echo, again does not have 592 ended"),
        (lambda log: log["runs"][0]["after"].pop("ended"), "good does not have 592 ended"),
        (lambda log: log.pop("runs"), "no part 'runs'"),
        (lambda log: log.pop("questions"), "no part 'questions'"),
    ],
)
def test_a_damaged_log_is_one_line(joined, tmp_path, capsys, change, words):
    change(joined)
    (tmp_path / "joined.json").write_text(json.dumps(joined), encoding="utf-8")
    assert_exits_with_one_line(capsys, ["--log", "joined.json"], words)


def assert_exits_with_one_line(capsys, options: list[str], words: str) -> None:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        report.command_line(options)
    error = capsys.readouterr().err.strip()
    assert stop.value.code == 2 and words in error and "\n" not in error.split("error:")[-1]


@pytest.mark.parametrize(
    "options, words",
    [
        (["--log", "absent.json"], "absent.json does not exist"),
        (["--log", "text.json"], "text.json is not a JSON file"),
        (["--log", "list.json"], "no part 'questions'"),
        (["--log", "new.json", "--join", "absent.json"], "absent.json"),
        (["--log", "new.json", "--join", "good.json"], "good.json has no part 'before'"),
        (["--log", "new.json", "--join", "before.json", "good.json"], "not of the form NAME=PATH"),
        (["--log", "new.json", "--join", "before.json", "good=before.json"], "before.json has no part 'run'"),
        (["--log", "new.json", "--join", "before.json", "=good.json"], "not of the form NAME=PATH"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(logs, tmp_path, capsys, options, words):
    (tmp_path / "text.json").write_text("no JSON", encoding="utf-8")
    (tmp_path / "list.json").write_text("[]", encoding="utf-8")
    assert_exits_with_one_line(capsys, options, words)
    assert not (tmp_path / "new.json").exists()


# ---- marking ----


def test_a_perfect_model_is_right_everywhere_and_an_echo_nowhere(joined, questions):
    good, echo = (report.mark(run["after"], questions) for run in joined["runs"])
    assert report.count(good, group="unseen") == (340, 340) and report.count(good, group="seen") == (102, 102)
    assert report.count(good, group="rephrased") == (40, 40) and report.count(good, group="test") == (85, 85)
    assert report.count(good, "well_formed") == report.count(good, "ended") == (592, 592)
    assert report.count(echo)[0] == 0
    assert report.shares(good) == [1.0, 1.0, 1.0] and report.shares(echo)[1:] == [0.0, 0.0]


def test_an_answer_without_an_end_is_never_right_but_its_first_line_may_be(joined, questions):
    before = report.mark(joined["before"], questions)
    assert report.count(before)[0] == report.count(before, "well_formed")[0] == 0
    right, of = report.right_first_lines(before, group="unseen")
    assert of == 340 and right == 340
    assert report.right_first_lines(before, group="unseen", family="capitals") == (20, 20)


def test_counts_by_family_are_those_counted_by_hand(questions):
    pattern = [i % 3 == 0 for i in range(len(questions))]
    answers = [question["output"] if right else "no idea" for question, right in zip(questions, pattern)]
    rows = report.mark({"answers": answers, "ended": [True] * len(answers)}, questions)
    nothing = report.mark(answered(questions, lambda question: ""), questions)
    table = report.by_family({"before": nothing, "after": rows})
    for family, of, before, after in table:
        places = [i for i, question in enumerate(questions) if question["group"] == "unseen" and question["family"] == family]
        assert (of, before, after) == (len(places), 0, sum(pattern[i] for i in places))
    assert len(table) == 17 and [row[3] for row in table] == sorted((row[3] for row in table), reverse=True)


def test_gpt2_mini_is_read_from_the_experiments_and_may_be_missing(tmp_path):
    marks = {group: {"of": 10, "right": right, "well_formed": 9, "ended": 10} for group, right in (("seen", 5), ("unseen", 1))}
    lines = [{"run": "baseline", "marks": {}}, {"run": "mask-instructions", "marks": marks}]
    path = tmp_path / "log.jsonl"
    assert report.mini_marks(path) is None
    path.write_text(json.dumps(lines[0]) + "\n", encoding="utf-8")
    assert report.mini_marks(path) is None
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert report.mini_shares(report.mini_marks(path)) == [0.9, 0.5, 0.1]


# ---- figures ----


def test_figures_show_the_numbers(joined, questions):
    marked = {"before": report.mark(joined["before"], questions)}
    marked |= {run["name"]: report.mark(run["after"], questions) for run in joined["runs"]}
    families = report.draw_families(marked).axes[0]
    points = {artist.get_label(): artist.get_offsets()[:, 0].tolist() for artist in families.collections if artist.get_label() in marked}
    assert points == {"before": [0.0] * 17, "good": [1.0] * 17, "echo, again": [0.0] * 17}
    assert "0 of 340 right before, 0 to 340 after" in families.get_title() + families.get_title(loc="left")
    mini = {group: {"of": 10, "right": right, "well_formed": 9, "ended": 10} for group, right in (("seen", 5), ("unseen", 1))}
    bars = report.draw_form_recall_rule(marked, mini).axes[0]
    assert [text.get_text() for text in bars.texts][:9] == ["90%", "50%", "10%", "0%", "0%", "0%", "100%", "100%", "100%"]
    train, val = report.draw_losses(joined).axes
    assert val.lines[0].get_xydata().tolist() == [[1, 2.5], [29, 2.0], [58, 1.5]]
    assert train.lines[0].get_xdata().tolist() == list(range(report.WINDOW, 61))
    assert train.lines[0].get_ydata()[0] == pytest.approx(sum(RUN["train_losses"][: report.WINDOW]) / report.WINDOW)
    plt.close("all")


# ---- the committed log ----


def test_the_committed_log_shows_what_the_notebook_says(questions, capsys):
    log = report.load_gemma_log()
    assert report.LOG_FILE.stat().st_size < 300_000 and re.search(r"gemma/terms", log["terms"])
    assert len(log["runs"]) >= 2 and not re.search(r"/(?:tmp|home|work|root|Users)/", report.LOG_FILE.read_text(encoding="utf-8"))
    before, *after = (report.mark(answers, questions) for answers in (log["before"], *(run["after"] for run in log["runs"])))
    assert report.count(before, group="unseen")[0] < 0.15 * 340
    for rows in after:
        assert report.count(rows, "ended")[0] >= 0.99 * 592 and report.count(rows, group="unseen")[0] > 0.5 * 340
    assert report.command_line([]) == 0 and "Right on unseen words" in capsys.readouterr().out
