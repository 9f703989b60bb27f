"""Judging through an API: the request, replies without a score, keys. The ordinary client talks to the local server.

Run it:  pytest ch07/03_model-evaluation/tests/test_ch07_03_openai_evaluate.py
"""

import json
from types import SimpleNamespace

import openai
import pytest
from instructions import judge_prompt
from local_server import create_server
from openai_evaluate import api_key, connect, generate_model_scores, run_chatgpt

ENTRY = {"instruction": "Name a color.", "input": "", "output": "Blue."}


class FakeClient:
    """Replies with what it is given, in turn, and keeps the requests."""

    def __init__(self, *replies):
        self.replies, self.requests = list(replies), []
        self.chat = SimpleNamespace(completions=self)

    def create(self, **request):
        self.requests.append(request)
        return SimpleNamespace(choices=[SimpleNamespace(message=SimpleNamespace(content=self.replies.pop(0)))])


def test_the_request_is_repeatable_and_a_reply_without_text_is_empty():
    client = FakeClient("85", None)
    assert run_chatgpt("Hello", client) == "85" and run_chatgpt("Hello", client, "other") == ""
    message = [{"role": "user", "content": "Hello"}]
    assert client.requests[0] == {"model": "gpt-4-turbo", "messages": message, "temperature": 0.0, "seed": 123}
    assert client.requests[1]["model"] == "other"


def test_scores_stay_in_step_with_the_data():
    client = FakeClient("85", "I cannot say.", "7")
    data = [{**ENTRY, "answer": text} for text in ("Red.", " ", "Green.", "Blue.")]
    assert generate_model_scores(data, "answer", client) == [85, 0, None, 7]
    assert [request["messages"][0]["content"] for request in client.requests] == [
        judge_prompt(entry, entry["answer"]) for entry in (data[0], data[2], data[3])
    ]


def test_a_missing_answer_is_named_before_anything_is_paid_for():
    client = FakeClient()
    with pytest.raises(ValueError, match="entry 1 .*'answer'"):
        generate_model_scores([{**ENTRY, "answer": "x"}, ENTRY], "answer", client)
    assert client.requests == []


def test_the_key_comes_from_the_environment_or_from_a_file(tmp_path, monkeypatch):
    file = tmp_path / "config.json"
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ValueError, match="OPENAI_API_KEY, or copy config.example.json"):
        api_key(file)
    for broken in ("{", "[]", '"key"'):
        file.write_text(broken, encoding="utf-8")
        with pytest.raises(ValueError, match="config.example.json shows its form"):
            api_key(file)
    file.write_text(json.dumps({"OPENAI_API_KEY": "from the file"}), encoding="utf-8")
    assert api_key(file) == "from the file" and connect(config_file=file).api_key == "from the file"
    monkeypatch.setenv("OPENAI_API_KEY", "from outside")
    assert api_key(file) == "from outside"


@pytest.mark.slow
def test_the_ordinary_client_gets_the_same_score_twice_from_the_local_server():
    data = [{**ENTRY, "answer": "Red."}]
    with create_server(port=0) as server:
        address = server.start()
        client = connect(address)
        first = run_chatgpt(judge_prompt(data[0], "Red."), client, "smollm2:135m")
        assert first.strip() and run_chatgpt(judge_prompt(data[0], "Red."), client, "smollm2:135m") == first
        with pytest.raises(openai.NotFoundError):
            run_chatgpt("Hello", client, "gpt-4-turbo")
