"""Chapter 7 in one file: a pretrained GPT, which only continues texts, learns to answer instructions.

It adds to chapter 5 a prompt with a fixed form, batches of texts of unlike length, and a loss that counts the answers alone.
instruction_batches.py makes the batches; instruction_data_checks.py marks the answers.

Run it:  python gpt_instruction_finetuning.py                  (gpt2-mini, two minutes on two cores)
         python gpt_instruction_finetuning.py --size full       (GPT-2 355M; needs its weights and, better, a GPU)
         python gpt_instruction_finetuning.py --data my.json    (instructions of your own)
"""

import contextlib
import json
import sys
from pathlib import Path

import torch
from instruction_batches import RESPONSE_HEADER, create_loaders, encode_prompt, format_input, split_data
from instruction_data_checks import DATA_FILE, load_data
from previous_chapters import (
    MODELS_DIR,
    GPTModel,
    OneLineParser,
    PrintAboveBar,
    adamw,
    generate,
    gpt2_tokenizer,
    int_at_least,
    load_pretrained_gpt,
    pick_device,
    plot_losses,
    positive_float,
    save_atomically,
    train_model_simple,
)
from tqdm import tqdm

INSTRUCTION_SIZES = {
    "laptop": {"choose_model": "gpt2-mini (mini)", "lr": 1e-3, "num_epochs": 3},
    "full": {"choose_model": "gpt2-medium (355M)", "lr": 5e-5, "num_epochs": 2},
}
TEST_CONFIG = {"vocab_size": 50257, "context_length": 120, "emb_dim": 12, "n_layers": 1, "n_heads": 2, "drop_rate": 0.0, "qkv_bias": False}
TEST_MODE = {"learning_rate": 3e-3, "num_epochs": 2, "eval_freq": 1, "max_new_tokens": 8, "device": "cpu"}


# ---- answers ----


def extract_response(response_text: str, input_text: str) -> str:
    """Return the answer in a generated text that begins with the prompt input_text. Section 7.5.

    The prompt goes, and the first response header, no later one: an answer may speak of headers. ValueError if the text
    begins otherwise.
    """
    if not response_text.startswith(input_text):
        raise ValueError("the text does not begin with the prompt")
    answer = response_text[len(input_text) :].lstrip()
    return answer.removeprefix(RESPONSE_HEADER.strip()).strip()


@torch.no_grad()
def answer_entries(
    model: GPTModel, entries: list[dict], tokenizer, device: str | torch.device, max_new_tokens: int = 100, eos_id: int = 50256
) -> tuple[list[str], list[bool]]:
    """Return (the greedy answer to each entry, whether it ended by itself). Section 7.7.

    Prompts with equally many tokens share a batch: without padding, an answer is the same as alone. Raises ValueError for a
    prompt that fills the context.
    """
    context_size = model.pos_emb.weight.shape[0]
    groups = {}  # number of tokens -> positions
    prompts = [encode_prompt(entry, tokenizer) for entry in entries]
    for position, prompt in enumerate(prompts):
        if len(prompt) >= context_size:
            raise ValueError(
                f"the prompt has {len(prompt)} tokens and leaves no room in the context of {context_size}: {entries[position]}"
            )
        groups.setdefault(len(prompt), []).append(position)
    answers, ended = [""] * len(entries), [False] * len(entries)
    for length, positions in sorted(groups.items()):
        idx = torch.tensor([prompts[position] for position in positions], device=device)  # (b, num_tokens)
        room = min(max_new_tokens, context_size - length)
        new = generate(model, idx, room, context_size, eos_id=eos_id)[:, length:]  # (b, num_new)
        for position, row in zip(positions, new.tolist()):
            ended[position] = len(row) < room or eos_id in row
            row = row[: row.index(eos_id)] if eos_id in row else row
            answers[position] = tokenizer.decode(row).strip()
    return answers, ended


def load_tuned_gpt(path: str | Path, device: str | torch.device = "cpu") -> tuple[GPTModel, dict]:
    """Return (tuned model in eval mode, its configuration) from a file that this chapter has saved. Section 7.7.

    Raises ValueError with one clear line for a file that is missing, damaged or something else.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path} does not exist; this writes it: python gpt_instruction_finetuning.py")
    try:
        checkpoint = dict(torch.load(path, map_location=device, weights_only=True))
        model = GPTModel(checkpoint["gpt_config"])
        model.load_state_dict(checkpoint["model_state_dict"])
    except Exception as error:  # a file can be damaged in many ways
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is not a tuned model of this chapter: {what}") from None
    return model.to(device).eval(), checkpoint["gpt_config"]


# ---- command line ----


def main(test_mode: bool = False, settings: dict | None = None) -> list[dict]:
    """Tune a model as the settings say, answer the test entries, write everything to output_dir; returns entries with answers.

    Raises ValueError or OSError, in one line, for input it cannot use.
    """
    settings = {**vars(build_parser().parse_args([])), **(settings or {}), "test_mode": test_mode}
    settings.update(TEST_MODE if test_mode else {})
    size = INSTRUCTION_SIZES[settings["size"]]
    lr, num_epochs = settings["learning_rate"] or size["lr"], settings["num_epochs"] or size["num_epochs"]
    folder, device = Path(settings["output_dir"]), pick_device(settings["device"])
    if folder.exists() and any(folder.iterdir()) and not settings["overwrite"]:
        raise ValueError(f"{folder} exists: add --overwrite to replace it, or name another folder")
    train_data, test_data, val_data = split_data(load_data(settings["data"]))
    tokenizer = gpt2_tokenizer()
    torch.manual_seed(settings["seed"])
    if test_mode:
        train_data, test_data, val_data = train_data[:10], test_data[:10], val_data[:10]
        model, cfg, name = GPTModel(TEST_CONFIG), TEST_CONFIG, "small-test-model"
    else:
        model, cfg = load_pretrained_gpt({}, size["choose_model"], settings["models_dir"])
        name = size["choose_model"].replace(" (mini)", "").replace(" (", "").removesuffix(")")
    model.to(device)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "log.txt").unlink(missing_ok=True)
    torch.manual_seed(settings["seed"])
    loaders = create_loaders(train_data, val_data, tokenizer, settings["batch_size"], cfg["context_length"], device)
    optimizer = adamw(model, lr, 0.1, device)
    bar = tqdm(total=num_epochs * len(loaders[0]), unit="updates", mininterval=1)
    with bar, contextlib.redirect_stdout(PrintAboveBar(sys.stdout, folder / "log.txt")):
        how = (num_epochs, settings["eval_freq"], settings["eval_iter"], format_input(val_data[0]) + RESPONSE_HEADER, tokenizer)
        train_losses, val_losses, seen = train_model_simple(
            model, *loaders, optimizer, device, *how, after_step=lambda state: bar.update() and False
        )
    epochs = torch.linspace(0, num_epochs, len(train_losses) + 1)[1:].tolist()
    plot_losses(epochs, seen, train_losses, val_losses, folder / "loss-plot-standalone.pdf")
    save_atomically({"model_state_dict": model.state_dict(), "gpt_config": cfg}, folder / f"{name}-sft-standalone.pth")
    model.eval()
    answers, ended = answer_entries(model, test_data, tokenizer, device, settings["max_new_tokens"])
    answered = [{**entry, "model_response": answer} for entry, answer in zip(test_data, answers)]
    target = folder / "instruction-data-with-response-standalone.json"
    target.write_text(json.dumps(answered, indent=1, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")
    print(f"{sum(ended)} of {len(ended)} answers to the test entries ended by themselves")
    return answered


def build_parser() -> OneLineParser:
    parser = OneLineParser("Fine-tune a pretrained GPT to follow instructions.")
    parser.add_argument("--size", choices=INSTRUCTION_SIZES, default="laptop", help="laptop: gpt2-mini; full: GPT-2 355M")
    parser.add_argument("--data", default=str(DATA_FILE), help="JSON list of entries with instruction, input and output")
    parser.add_argument("--test_mode", action="store_true", help="a tiny random model and few entries, to see that all runs")
    parser.add_argument("--num_epochs", type=int_at_least(1), help="passes over the training entries; decided by --size if not given")
    parser.add_argument("--batch_size", type=int_at_least(1), default=8, help="entries per update")
    parser.add_argument("--learning_rate", type=positive_float, help="of AdamW; decided by --size if not given")
    parser.add_argument("--eval_freq", type=int_at_least(1), default=5, help="updates from one measurement to the next")
    parser.add_argument("--eval_iter", type=int_at_least(1), default=5, help="batches per measurement")
    parser.add_argument("--max_new_tokens", type=int_at_least(1), default=256, help="longest answer")
    parser.add_argument("--models_dir", default=str(MODELS_DIR), help="folder of downloaded weights")
    parser.add_argument("--output_dir", default=str(Path(__file__).resolve().parent / "instruction-model"), help="folder for all results")
    parser.add_argument("--overwrite", action="store_true", help="replace the results in output_dir")
    parser.add_argument("--seed", type=int, default=123, help="random seed")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    return parser


def command_line(argv: list[str] | None = None) -> int:
    """Parse the options, call `main`; returns 0, or exits with code 2 and one line on bad input."""
    parser = build_parser()
    settings = vars(parser.parse_args(argv))
    try:
        answered = main(settings["test_mode"], settings)
        for entry in answered[:3]:
            print(f"\n{entry['instruction']} {entry['input']}\n-> {entry['model_response']}")
    except (ValueError, OSError) as error:
        parser.error(" ".join(str(error).split()))
    except KeyboardInterrupt:
        parser.exit(130, "stopped; nothing is kept of an unfinished training\n")
    print(f"\nsaved in {settings['output_dir']}")
    return 0


if __name__ == "__main__":
    sys.exit(command_line())
