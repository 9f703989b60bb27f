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
from collections.abc import Callable
from pathlib import Path

import torch
from instruction_batches import RESPONSE_HEADER, create_loaders, encode_prompt, split_data
from instruction_data_checks import DATA_FILE, load_data, load_families
from previous_chapters import (
    MODELS_DIR,
    GPTModel,
    OneLineParser,
    PrintAboveBar,
    adamw,
    gpt2_tokenizer,
    int_at_least,
    load_pretrained_gpt,
    pick_device,
    plot_losses,
    positive_float,
    save_atomically,
)
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

INSTRUCTION_SIZES = {
    "laptop": {"choose_model": "gpt2-mini (mini)", "lr": 1e-3, "num_epochs": 10, "plain": True},  # plain: without the open tasks
    "full": {"choose_model": "gpt2-medium (355M)", "lr": 5e-5, "num_epochs": 2, "plain": False},
}
TEST_CONFIG = {"vocab_size": 50257, "context_length": 120, "emb_dim": 12, "n_layers": 1, "n_heads": 2, "drop_rate": 0.0, "qkv_bias": False}
TEST_MODE = {"learning_rate": 3e-3, "num_epochs": 2, "eval_freq": 1, "max_new_tokens": 8, "device": "cpu"}


# ---- loss and training ----


def logits_at(model: nn.Module, token_ids: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Return logits (num_wanted, vocab_size) at the positions of token_ids (b, num_tokens) where `wanted`, same shape, is true.

    The output layer steps aside while the others read the whole texts, then sees only these rows. Section 7.6.1.
    """
    weight, stand_in = next(model.out_head.parameters()), nn.Identity()
    stand_in.weight = weight  # some models look at its number type
    out_head, model.out_head = model.out_head, stand_in
    try:
        hidden = model(token_ids)  # (b, num_tokens, emb_dim)
    finally:
        model.out_head = out_head
    return out_head(hidden[wanted].to(weight.dtype))  # (num_wanted, vocab_size)


def calc_answer_loss(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor, ignore_index: int = -100) -> torch.Tensor:
    """Mean cross-entropy over the targets (b, num_tokens) that are not ignore_index: answers and their end tokens. Section 7.6.1."""
    counts = targets != ignore_index  # (b, num_tokens)
    logits = logits_at(model, inputs, counts)  # (num_answer_ids, vocab_size)
    return nn.functional.cross_entropy(logits.float(), targets[counts])


@torch.no_grad()
def calc_answer_loss_loader(model: nn.Module, loader: DataLoader, num_batches: int | None = None, ignore_index: int = -100) -> float:
    """Mean loss an answer id over the first num_batches batches (all if None). Section 7.6.1."""
    total, count = 0.0, 0
    for number, (inputs, targets) in enumerate(loader):
        if number == num_batches:
            break
        ids = int((targets != ignore_index).sum())
        total, count = total + calc_answer_loss(model, inputs, targets, ignore_index).item() * ids, count + ids
    return total / count


def train_on_answers(
    model: nn.Module,
    train_loader: DataLoader,
    val_loader: DataLoader,
    optimizer: torch.optim.Optimizer,
    num_epochs: int,
    eval_freq: int,
    eval_iter: int,
    after_step: Callable | None = None,
    after_epoch: Callable | None = None,
) -> tuple[list, list, list]:
    """Train for num_epochs and return (train_losses, val_losses, track_tokens_seen), an entry per eval_freq updates.

    A training loss is the mean of the last eval_freq batches, as they were when they were trained on. Section 7.6.3.
    """
    train_losses, val_losses, track_tokens_seen = [], [], []
    recent, step, tokens_seen = [], 0, 0
    for epoch in range(num_epochs):
        model.train()
        for inputs, targets in train_loader:
            optimizer.zero_grad()
            loss = calc_answer_loss(model, inputs, targets)  # changed: the answers alone
            loss.backward()
            optimizer.step()
            recent.append(loss.item())
            step += 1
            tokens_seen += inputs.numel()
            if step % eval_freq == 0:
                model.eval()
                train_losses.append(sum(recent) / len(recent))
                with torch.random.fork_rng():  # how often we measure does not change the random numbers of the training
                    val_losses.append(calc_answer_loss_loader(model, val_loader, eval_iter))
                track_tokens_seen.append(tokens_seen)
                print(f"epoch {epoch + 1}, step {step:4d}: train loss {train_losses[-1]:.3f}, val loss {val_losses[-1]:.3f}")
                recent = []
                model.train()
            if after_step is not None:
                after_step()
        model.eval()
        if after_epoch is not None:
            after_epoch()
    return train_losses, val_losses, track_tokens_seen


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


def likeliest_next_ids(model: nn.Module, idx: torch.Tensor) -> torch.Tensor:
    """Return the likeliest next id (b) after each row of idx (b, num_tokens). Section 7.6.2."""
    last = torch.zeros_like(idx, dtype=torch.bool)  # (b, num_tokens)
    last[:, -1] = True
    return logits_at(model, idx, last).argmax(dim=-1)  # (b)


@torch.no_grad()
def answer_entries(
    model: nn.Module,
    entries: list[dict],
    tokenizer,
    device: str | torch.device,
    max_new_tokens: int = 100,
    eos_id: int = 50256,
    encode: Callable = encode_prompt,
) -> tuple[list[str], list[bool]]:
    """Return (the greedy answer to each entry, whether it ended by itself). Section 7.6.2.

    Prompts with equally many tokens share a batch, without padding, and an answer that has ended leaves it. `encode` makes the
    ids of a prompt from (entry, tokenizer). Raises ValueError for a prompt that fills the context.
    """
    context_size = model.pos_emb.weight.shape[0]
    prompts = [encode(entry, tokenizer) for entry in entries]
    groups = {}  # number of tokens -> positions in the list
    for position, prompt in enumerate(prompts):
        if len(prompt) >= context_size:
            raise ValueError(f"no room for an answer: {len(prompt)} tokens in a context of {context_size}: {entries[position]}")
        groups.setdefault(len(prompt), []).append(position)
    answer_ids, ended = [[] for _ in entries], [False] * len(entries)
    for length, writing in groups.items():
        idx = torch.tensor([prompts[position] for position in writing], device=device)  # (b, num_tokens)
        for _ in range(min(max_new_tokens, context_size - length)):
            next_ids = likeliest_next_ids(model, idx)
            for position, token_id in zip(writing, next_ids.tolist()):
                if token_id == eos_id:
                    ended[position] = True
                else:
                    answer_ids[position].append(token_id)
            writing = [position for position in writing if not ended[position]]
            if not writing:
                break
            idx = torch.cat([idx, next_ids[:, None]], dim=1)[next_ids != eos_id]  # one column more, fewer rows
    return [tokenizer.decode(ids).strip() for ids in answer_ids], ended


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
    if size["plain"] and Path(settings["data"]) == DATA_FILE:
        train_data = [entry for entry, row in zip(train_data, load_families()) if row["check"] is not None]
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

    def show_answer() -> None:
        (answer,), _ = answer_entries(model, val_data[:1], tokenizer, device, 35)
        print(f"{val_data[0]['instruction']} {val_data[0]['input']}\n-> {answer}")

    with bar, contextlib.redirect_stdout(PrintAboveBar(sys.stdout, folder / "log.txt")):
        how = (num_epochs, settings["eval_freq"], settings["eval_iter"], bar.update, show_answer)
        train_losses, val_losses, seen = train_on_answers(model, *loaders, optimizer, *how)
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
    parser.add_argument("--eval_freq", type=int_at_least(1), default=20, help="updates from one measurement to the next")
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
