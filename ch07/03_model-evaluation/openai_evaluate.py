"""The same judging through the API of a service: OpenAI's protocol, spoken by OpenAI, by Ollama, and by the local server.

llm-instruction-eval-openai.ipynb builds and explains these functions. Set up the key first (see `api_key`), then in Python:

    client = connect()
    scores = generate_model_scores(entries, "model 1 response", client)
"""

import json
import os
from pathlib import Path

from instructions import judge_prompt, parse_score
from previous_chapters import read_text
from tqdm import tqdm


def api_key(config_file: str | Path = "config.json") -> str:
    """Return the key from the environment variable OPENAI_API_KEY, or else from a file like config.example.json. Section 1.

    ValueError in one line if there is none, or if the file is not of that form.
    """
    key = os.environ.get("OPENAI_API_KEY")
    if not key and Path(config_file).is_file():
        try:
            key = json.loads(read_text(config_file)).get("OPENAI_API_KEY")
        except (ValueError, AttributeError):
            raise ValueError(f"{config_file} is not a JSON object; config.example.json shows its form") from None
    if not key:
        raise ValueError(f"no key: set the environment variable OPENAI_API_KEY, or copy config.example.json to {config_file}")
    return key


def connect(address: str | None = None, config_file: str | Path = "config.json"):
    """Return a client of openai's package: for the server at `address`, or for OpenAI with your key. Section 1."""
    from openai import OpenAI  # here, so that everything else works without the package

    if address:
        return OpenAI(base_url=f"{address}/v1", api_key="none", timeout=120)  # a local server asks for no key, the package does
    return OpenAI(api_key=api_key(config_file), timeout=120)


def run_chatgpt(prompt: str, client, model: str = "gpt-4-turbo") -> str:
    """Send one prompt and return the answer, the likeliest words each time. Section 2."""
    messages = [{"role": "user", "content": prompt}]
    reply = client.chat.completions.create(model=model, messages=messages, temperature=0.0, seed=123)
    return reply.choices[0].message.content or ""


def generate_model_scores(json_data: list[dict], json_key: str, client, model: str = "gpt-4-turbo") -> list[int | None]:
    """Return one score an entry: from 0 to 100, or None where the reply holds no such score; 0 for an empty answer. Section 3.

    ValueError, naming the entry, before anything is sent, where the field json_key is missing.
    """
    for index, entry in enumerate(json_data):
        if not isinstance(entry.get(json_key), str):
            raise ValueError(f"entry {index} has no text in the field {json_key!r}")
    scores = []
    for entry in tqdm(json_data, desc=f"scoring {json_key}", unit="answers", mininterval=1, disable=None):
        answer = entry[json_key]
        scores.append(parse_score(run_chatgpt(judge_prompt(entry, answer), client, model)) if answer.strip() else 0)
    return scores
