"""Second outputs: what a service receives, that nothing paid is lost, and that each kind of faulty answer is named."""

import json
import re
import socket
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import ask_smollm2
import pytest
from instructions import read_list
from second_outputs import (
    SERVICES,
    build_prompt,
    collect_answers,
    connect,
    fault_of,
    find_faults,
    is_passive,
    own_similarities,
    run_chatgpt,
)

FOLDER = Path(__file__).resolve().parent.parent
KEY = "OPENAI_API_KEY"


class Service(BaseHTTPRequestHandler):
    """The part of OpenAI's protocol that run_chatgpt uses: it notes what it receives and answers from `server.replies`."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.received.append((self.path, self.headers["Authorization"], body))
        message = {"role": "assistant", "content": self.server.replies.pop(0)}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        reply = json.dumps({"id": "1", "object": "chat.completion", "created": 0, "model": body["model"], "choices": [choice]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *args):
        pass


@pytest.fixture
def service(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    server.received, server.replies = [], []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{server.server_port}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def modified():
    return read_list(FOLDER / "instruction-examples-modified.json")


# ---- asking ----


def test_a_service_receives_the_prompt_the_model_and_temperature_zero(service):
    service.replies[:] = ["  Honey is made by bees.\n", None]
    client = connect("ollama")
    assert run_chatgpt("Rewrite it.", client) == "Honey is made by bees."
    assert run_chatgpt("Rewrite it.", client, model="smollm2:135m") == ""  # a reply without text is an empty answer
    for (path, _, body), model in zip(service.received, ["gpt-4-turbo", "smollm2:135m"]):
        expected = {"model": model, "messages": [{"role": "user", "content": "Rewrite it."}], "temperature": 0.0}
        assert path == "/v1/chat/completions" and body == expected


def test_the_key_comes_from_the_environment_or_from_the_config_file(tmp_path, monkeypatch):
    config = tmp_path / "config.json"
    config.write_text((FOLDER / "config.example.json").read_text(encoding="utf-8").replace("put the key", "file-key: put the key"))
    monkeypatch.setenv(KEY, "key-of-the-environment")
    assert connect("openai", config).api_key == "key-of-the-environment"
    monkeypatch.delenv(KEY)
    assert connect("openai", config).api_key.startswith("file-key")
    assert connect("stored") is None


@pytest.mark.parametrize("text, complaint", [(None, "no key"), ("{}", "no key"), ("[]", "not a JSON object"), ("{", "not a JSON object")])
def test_a_missing_key_is_one_line(text, complaint, tmp_path, monkeypatch):
    monkeypatch.delenv(KEY, raising=False)
    config = tmp_path / "config.json"
    if text:
        config.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=complaint) as error:
        connect("openai", config)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=", ".join(SERVICES)):
        connect("gpt")


def test_an_ollama_that_is_not_running_is_one_line(monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, but nobody listens
        monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{closed.getsockname()[1]}")
        with pytest.raises(ValueError, match="nobody answers at http://127.0.0.1.*ollama serve") as error:
            connect("ollama")
    assert "\n" not in str(error.value)


def test_nothing_that_was_answered_is_asked_again(tmp_path):
    asked, log = [], tmp_path / "new" / "log.jsonl"

    def ask(prompt):
        asked.append(prompt)
        if len(asked) == 2:  # the answer before is on the disk already
            assert "A\\n" in log.read_text(encoding="utf-8")
        if len(asked) == 3:
            raise ConnectionError("the service is down")
        return prompt.upper() + "\nécole"

    with pytest.raises(ConnectionError):
        collect_answers(["a", "b", "c", "d"], ask, log)
    log.write_text(log.read_text(encoding="utf-8") + '["c", "cut o', encoding="utf-8")  # as after a power cut
    for _ in range(2):
        assert collect_answers(["a", "b", "c", "d", "a"], ask, log) == [f"{letter}\nécole" for letter in "ABCDA"]
    assert asked == ["a", "b", "c", "c", "d"]


def test_a_cut_first_line_does_not_swallow_the_next(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text('["a", "cut', encoding="utf-8")
    assert collect_answers(["a"], str.upper, log) == ["A"]
    assert collect_answers(["a"], lambda prompt: pytest.fail("asked again"), log) == ["A"]


def test_the_prompt_asks_for_the_other_voice_and_holds_the_sentence(modified):
    voices = Counter()
    for entry in modified:
        prompt = build_prompt(entry)
        voice = "active" if is_passive(entry["output"]) else "passive"
        assert prompt.endswith(f"\n\n{entry['output']}") and f"in the {voice} voice" in prompt and entry["output_2"] not in prompt
        voices[voice] += 1
    assert voices == {"passive": 140, "active": 60} and len({build_prompt(entry) for entry in modified}) == 200


# ---- checking ----

FIRST = "In May, Ravi repaired 3 pumps for the mill."


@pytest.mark.parametrize(
    "second, fault",
    [
        ("In May, 3 pumps were repaired by Ravi for the mill.", ""),
        ("3 pumps were repaired for the mill by Ravi in May.", ""),
        ("", "empty"),
        (" \n", "empty"),
        ("in may Ravi repaired 3 pumps for the mill", "copy"),
        ("I'm sorry, but that is not allowed.", "off task"),
        ("In May, 4 pumps were repaired by Ravi for the mill.", "other facts"),
        ("In May, 3 pumps were repaired for the mill.", "other facts"),
        ("In May, 3 pumps were repaired by Ravi for the mill and by Ana.", "other facts"),
        ("In May, Ravi quickly repaired 3 pumps for the mill.", "same voice"),
        ("Passive voice: In May, 3 pumps were repaired by Ravi for the mill.", "extra text"),
        ("In May, 3 pumps were repaired by Ravi for the mill.\n\nI hope this helps!", "extra text"),
        ("In May, 3 pumps were repaired by Ravi for the mill, which is the passive voice of the sentence that was given.", "extra text"),
    ],
)
def test_each_fault_is_named(second, fault):
    assert find_faults([{"output": FIRST, "output_2": second}]) == [fault]


def test_a_passive_first_answer_wants_an_active_second():
    first = "The mail carrier was chased by a goose."
    assert fault_of(first, "A goose chased the mail carrier.", 0.9) == ""
    assert fault_of(first, "The mail carrier was being chased by a goose.", 0.9) == "same voice"


def test_a_missing_answer_is_an_empty_one():
    assert find_faults([{"output": FIRST}, {"output": FIRST, "output_2": None}]) == ["empty", "empty"] and find_faults([]) == []


def test_stored_second_outputs_are_free_of_faults_and_planted_ones_are_counted(modified):
    assert set(find_faults(modified)) == {""}
    planted = [dict(entry) for entry in modified]
    for position in range(0, 30, 3):
        planted[position]["output_2"] = planted[position]["output"]
        planted[position + 1]["output_2"] = modified[position + 100]["output_2"]
        planted[position + 2]["output_2"] = ""
    assert Counter(find_faults(planted)) == {"": 170, "copy": 10, "off task": 10, "empty": 10}


def test_answers_of_smollm2_belong_to_the_examples_and_the_counts_of_the_page_are_true(modified):
    answered, page = read_list(FOLDER / "instruction-examples-smollm2.json"), (FOLDER / "README.md").read_text(encoding="utf-8")
    assert [{**entry, "output_2": ""} for entry in answered] == [{**entry, "output_2": ""} for entry in modified]
    counts = Counter(find_faults(answered))
    rows = dict(re.findall(r"^\| (nothing found|[a-z ]+) \| (\d+) \|$", page, re.MULTILINE))
    assert {name: int(count) for name, count in rows.items()} == {name or "nothing found": count for name, count in counts.items()}


@pytest.mark.slow
def test_smollm2_still_gives_the_stored_answers(tmp_path):
    output = tmp_path / "try.json"
    assert ask_smollm2.main(["--limit", "2", "--device", "cpu", "--output", str(output)]) == 0
    assert read_list(output) == read_list(FOLDER / "instruction-examples-smollm2.json")[:2]


@pytest.mark.parametrize("text, complaint", [('[{"input": "x"}]', "have an output"), ("[]", "have an output"), ("{}", "not a JSON list")])
def test_bad_entries_for_smollm2_are_one_line(text, complaint, tmp_path, capsys):
    source = tmp_path / "data.json"
    source.write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit) as stop:
        ask_smollm2.main(["--json_file", str(source), "--output", str(tmp_path / "out.json")])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and complaint in error and error.count("\n") == 1 and not (tmp_path / "out.json").exists()


def test_own_similarity_tells_a_rewrite_from_another_entry(modified):
    firsts, seconds = [[entry[key] for entry in modified] for key in ("output", "output_2")]
    assert min(own_similarities(firsts, seconds)) > 0.6 and max(own_similarities(firsts, seconds[1:] + seconds[:1])) < 0.45


@pytest.mark.parametrize(
    "sentence, passive",
    [
        ("The sails are caught by the wind.", True),
        ("The soup should be slowly heated.", True),
        ("The wind catches the sails.", False),
        ("The mill is old.", False),
        ("She has walked home.", False),
    ],
)
def test_is_passive_on_plain_sentences(sentence, passive):
    assert is_passive(sentence) is passive
