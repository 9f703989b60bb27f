"""Chapter 6 in one file: a pretrained GPT learns to tell spam from other messages.

It adds to chapter 5 a new head with one score a class, frozen layers below, a loss for each text instead of each token, and
accuracy. spam_data.py makes the tensors. Each text is read at its last real token, so padding never changes the answer.

Run it:  python gpt_class_finetune.py                     (gpt2-mini, one minute on two cores)
         python gpt_class_finetune.py --size full          (GPT-2 124M; needs its weights and, better, a GPU)
         python gpt_class_finetune.py --data my-messages.csv --output_dir my-classifier
"""

import contextlib
import math
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn as nn
from matplotlib.figure import Figure
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
    positive_float,
    save_atomically,
)
from spam_data import create_loaders, encode_message, load_spam_messages, read_messages
from torch.utils.data import DataLoader
from tqdm import tqdm

CLASS_NAMES = ["not spam", "spam"]
CLASSIFIER_SIZES = {
    "laptop": {"choose_model": "gpt2-mini (mini)", "lr": 1e-3},
    "full": {"choose_model": "gpt2-small (124M)", "lr": 5e-5},
}
TEST_MODE = {"learning_rate": 3e-3, "eval_freq": 5}
TEST_CONFIG = {"vocab_size": 50257, "context_length": 120, "emb_dim": 12, "n_layers": 1, "n_heads": 2, "drop_rate": 0.0, "qkv_bias": False}


def add_classification_head(model: GPTModel, num_classes: int = 2) -> None:
    """Make a GPT a classifier, in place: a new, random head of num_classes; it, the last block and norm alone will train. Section 6.5."""
    for parameter in model.parameters():
        parameter.requires_grad = False
    emb_dim = model.tok_emb.embedding_dim
    model.out_head = nn.Linear(emb_dim, num_classes, device=model.tok_emb.weight.device)
    for part in (model.trf_blocks[-1], model.final_norm):
        for parameter in part.parameters():
            parameter.requires_grad = True


def last_token_logits(model: nn.Module, input_batch: torch.Tensor, pad_token_id: int = 50256) -> torch.Tensor:
    """Return each text's logits (b, num_classes), read at its last token that is not padding (at the first, if all are). Section 6.5."""
    logits = model(input_batch)  # (b, num_tokens, num_classes)
    positions = torch.arange(input_batch.shape[1], device=input_batch.device)  # (num_tokens)
    is_text = input_batch != pad_token_id  # (b, num_tokens)
    last = (positions * is_text).max(dim=1).values  # (b)
    rows = torch.arange(len(input_batch), device=input_batch.device)  # (b)
    return logits[rows, last]  # (b, num_classes)


@contextlib.contextmanager
def measuring(model: nn.Module):
    """Within `with measuring(model):` dropout is off and nothing is recorded for gradients; then the model is in its old mode again."""
    mode = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(mode)


def calc_accuracy_loader(data_loader: DataLoader, model: nn.Module, device: torch.device, num_batches: int | None = None) -> float:
    """Return the share of right answers in the first num_batches batches (all if None); NaN if there are none. Section 6.6."""
    correct, total = 0, 0
    num_batches = len(data_loader) if num_batches is None else min(num_batches, len(data_loader))
    with measuring(model):
        for _, (input_batch, target_batch) in zip(range(num_batches), data_loader, strict=False):
            predicted = last_token_logits(model, input_batch.to(device)).argmax(dim=-1)  # (b)
            correct += (predicted == target_batch.to(device)).sum().item()
            total += len(target_batch)
    return correct / total if total else math.nan


def calc_loss_batch(input_batch: torch.Tensor, target_batch: torch.Tensor, model: nn.Module, device: torch.device) -> torch.Tensor:
    """Return the mean cross-entropy of a batch of texts (b, num_tokens) with labels (b): one prediction a text. Section 6.6."""
    logits = last_token_logits(model, input_batch.to(device))  # (b, num_classes)
    return nn.functional.cross_entropy(logits, target_batch.to(device))


def calc_loss_loader(data_loader: DataLoader, model: nn.Module, device: torch.device, num_batches: int | None = None) -> float:
    """Return the mean loss a text over the first num_batches batches (all if None); NaN if there are none. Section 6.6."""
    total_loss, total = 0.0, 0
    num_batches = len(data_loader) if num_batches is None else min(num_batches, len(data_loader))
    with measuring(model):
        for _, (input_batch, target_batch) in zip(range(num_batches), data_loader, strict=False):
            total_loss += calc_loss_batch(input_batch, target_batch, model, device).item() * len(target_batch)
            total += len(target_batch)
    return total_loss / total if total else math.nan


def evaluate_model(
    model: nn.Module, train_loader: DataLoader, val_loader: DataLoader, device: torch.device, eval_iter: int
) -> tuple[float, float]:
    """Return (train_loss, val_loss) over eval_iter batches each. Mode and random draws stay as they are. Section 6.7."""
    with torch.random.fork_rng():  # the training loader shuffles: put the draws back, so that measuring never changes the training
        train_loss = calc_loss_loader(train_loader, model, device, num_batches=eval_iter)
        val_loss = calc_loss_loader(val_loader, model, device, num_batches=eval_iter)
    return train_loss, val_loss


def train_classifier_simple(
    model: nn.Module,
    train_loader: DataLoader,
    val_loader: DataLoader,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
    num_epochs: int,
    eval_freq: int,
    eval_iter: int,
    after_step: Callable | None = None,
) -> tuple[list, list, list, list, int]:
    """Train for num_epochs and return (train_losses, val_losses, train_accs, val_accs, examples_seen).

    Losses are measured after update 0 and every eval_freq updates, accuracies once an epoch, both over eval_iter batches.
    `after_step()` is called after each update. Raises ValueError for a loader without batches. Section 6.7.
    """
    if not len(train_loader) or not len(val_loader):
        raise ValueError(f"no batch to train or to validate on: {len(train_loader)} and {len(val_loader)} batches")
    train_losses, val_losses, train_accs, val_accs = [], [], [], []
    examples_seen, step = 0, -1
    for epoch in range(num_epochs):
        model.train()
        for input_batch, target_batch in train_loader:
            optimizer.zero_grad()
            loss = calc_loss_batch(input_batch, target_batch, model, device)
            loss.backward()
            optimizer.step()
            examples_seen += len(input_batch)  # new: texts are counted, not tokens
            step += 1
            if step % eval_freq == 0:
                train_loss, val_loss = evaluate_model(model, train_loader, val_loader, device, eval_iter)
                train_losses.append(train_loss)
                val_losses.append(val_loss)
                print(f"epoch {epoch + 1}, step {step:3d}: train loss {train_loss:.3f}, val loss {val_loss:.3f}")
            if after_step is not None:
                after_step()
        with torch.random.fork_rng():
            train_accs.append(calc_accuracy_loader(train_loader, model, device, num_batches=eval_iter))
            val_accs.append(calc_accuracy_loader(val_loader, model, device, num_batches=eval_iter))
        print(f"epoch {epoch + 1}: train accuracy {train_accs[-1]:.1%}, val accuracy {val_accs[-1]:.1%}")
    return train_losses, val_losses, train_accs, val_accs, examples_seen


def plot_values(
    epochs_seen: list, examples_seen: list, train_values: list, val_values: list, label: str = "loss", folder: str | Path = "."
) -> Figure:
    """Plot training and validation values over epochs, with a second axis in examples; saves folder/<label>-plot.pdf. Section 6.7."""
    fig = Figure(figsize=(6.5, 3.2), layout="constrained")
    ax = fig.subplots()
    ax.plot(epochs_seen, train_values, color="#0072B2", label="training")
    ax.plot(epochs_seen, val_values, color="#D55E00", linestyle="--", label="validation")
    ax.set(xlabel="epochs", ylabel=label)
    ax.legend(frameon=False)
    per_epoch = examples_seen[-1] / epochs_seen[-1]
    top = ax.secondary_xaxis("top", functions=(lambda epochs: epochs * per_epoch, lambda examples: examples / per_epoch))
    top.set_xlabel("examples seen")
    fig.savefig(Path(folder) / f"{label}-plot.pdf")
    return fig


def spam_probability(
    text: str, model: GPTModel, tokenizer, device: torch.device, max_length: int | None = None, pad_token_id: int = 50256
) -> float:
    """Return the probability that a text is spam. It is cut to max_length tokens, by default the model's context. Section 6.8.

    Raises ValueError for a max_length below 1 or above the context.
    """
    context_length = model.pos_emb.num_embeddings
    max_length = context_length if max_length is None else max_length
    if not 1 <= max_length <= context_length:
        raise ValueError(f"max_length {max_length} is outside the allowed range 1 to {context_length}, the context_length")
    ids = encode_message(text, tokenizer, max_length) or [pad_token_id]
    with measuring(model):
        logits = last_token_logits(model, torch.tensor([ids], device=device), pad_token_id)  # (1, num_classes)
    return torch.softmax(logits, dim=-1)[0, 1].item()


def classify_review(
    text: str, model: GPTModel, tokenizer, device: torch.device, max_length: int | None = None, pad_token_id: int = 50256
) -> str:
    """Return "spam" or "not spam", whichever is likelier. ValueError as in `spam_probability`. Section 6.8."""
    return CLASS_NAMES[spam_probability(text, model, tokenizer, device, max_length, pad_token_id) > 0.5]


def load_classifier(path: str | Path, device: str | torch.device = "cpu") -> tuple[GPTModel, int]:
    """Return (classifier in eval mode, length its training texts were cut to) from a review_classifier.pth. Section 6.8.

    Raises ValueError with one clear line for a file that is missing, damaged or something else.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path} does not exist; this writes it: python gpt_class_finetune.py")
    try:
        checkpoint = dict(torch.load(path, map_location=device, weights_only=True))
        model = GPTModel(checkpoint["gpt_config"])
        add_classification_head(model, len(CLASS_NAMES))
        model.load_state_dict(checkpoint["model_state_dict"])
        max_length = int(checkpoint["max_length"])
    except Exception as error:  # a file can be damaged in many ways
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is not a classifier of this chapter: {what}") from None
    return model.to(device).eval(), max_length


def main(settings: dict) -> tuple[dict, GPTModel]:
    """Fine-tune a classifier as the command line says, write everything to output_dir, and return ({split: accuracy}, model).

    Raises ValueError or OSError, in one line, for input it cannot use.
    """
    folder, device = Path(settings["output_dir"]), pick_device("cpu" if settings["test_mode"] else settings["device"])
    if folder.exists() and any(folder.iterdir()) and not settings["overwrite"]:
        raise ValueError(f"{folder} exists: add --overwrite to replace it, or name another folder")
    messages = read_messages(settings["data"]) if settings["data"] else load_spam_messages(settings["full_data"])
    torch.manual_seed(settings["seed"])
    if settings["test_mode"]:
        model, gpt_config = GPTModel(TEST_CONFIG), TEST_CONFIG
        messages = messages.groupby("Label").head(60)
    else:
        model, gpt_config = load_pretrained_gpt({}, CLASSIFIER_SIZES[settings["size"]]["choose_model"], settings["models_dir"])
    torch.manual_seed(settings["seed"])
    add_classification_head(model)
    model.to(device)

    (train_loader, val_loader, test_loader), max_length = create_loaders(
        messages, folder, gpt_config["context_length"], settings["batch_size"]
    )
    optimizer = adamw(model, settings["learning_rate"], 0.1, device)
    (folder / "log.txt").unlink(missing_ok=True)
    bar = tqdm(total=settings["num_epochs"] * len(train_loader), unit="updates", mininterval=1)
    with bar, contextlib.redirect_stdout(PrintAboveBar(sys.stdout, folder / "log.txt")):
        how = (settings["num_epochs"], settings["eval_freq"], settings["eval_iter"], bar.update)
        *values, examples_seen = train_classifier_simple(model, train_loader, val_loader, optimizer, device, *how)
        loaders = {"training": train_loader, "validation": val_loader, "test": test_loader}
        accuracies = {name: calc_accuracy_loader(loader, model, device) for name, loader in loaders.items()}
        print(", ".join(f"{name} accuracy {accuracy:.2%}" for name, accuracy in accuracies.items()))
    updates = range(1, examples_seen // settings["batch_size"] + 1, settings["eval_freq"])  # after which losses were measured
    epochs = [update / len(train_loader) for update in updates]
    plot_values(epochs, [update * settings["batch_size"] for update in updates], *values[:2], "loss", folder)
    epochs = range(1, settings["num_epochs"] + 1)
    plot_values(epochs, [epoch * examples_seen / settings["num_epochs"] for epoch in epochs], *values[2:], "accuracy", folder)
    checkpoint = {"model_state_dict": model.state_dict(), "gpt_config": gpt_config, "max_length": max_length}
    save_atomically(checkpoint, folder / "review_classifier.pth")
    return accuracies, model.eval()


def command_line(argv: list[str] | None = None) -> int:
    """Parse the options, call `main`; returns 0, or exits with code 2 and one line on bad input."""
    parser = OneLineParser("Fine-tune a pretrained GPT to tell spam from other messages.")
    parser.add_argument("--size", choices=CLASSIFIER_SIZES, default="laptop", help="laptop: gpt2-mini; full: GPT-2 124M")
    data = parser.add_mutually_exclusive_group()
    data.add_argument("--full_data", action="store_true", help="all 5,574 messages of the collection, downloaded once")
    data.add_argument("--data", help="CSV file of your own with the columns Label (ham or spam) and Text")
    parser.add_argument("--test_mode", action="store_true", help="a tiny random model and few messages, to see that all runs")
    parser.add_argument("--num_epochs", type=int_at_least(1), default=5, help="passes over the training messages")
    parser.add_argument("--batch_size", type=int_at_least(1), default=8, help="messages per update")
    parser.add_argument("--learning_rate", type=positive_float, help="of AdamW; decided by --size if not given")
    parser.add_argument("--eval_freq", type=int_at_least(1), default=50, help="updates from one measurement to the next")
    parser.add_argument("--eval_iter", type=int_at_least(1), default=5, help="batches per measurement")
    parser.add_argument("--models_dir", default=str(MODELS_DIR), help="folder of downloaded weights")
    parser.add_argument("--output_dir", default=str(Path(__file__).resolve().parent / "spam-classifier"), help="folder for all results")
    parser.add_argument("--overwrite", action="store_true", help="replace the results in output_dir")
    parser.add_argument("--seed", type=int, default=123, help="random seed")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    settings = vars(parser.parse_args(argv))
    settings["learning_rate"] = settings["learning_rate"] or CLASSIFIER_SIZES[settings["size"]]["lr"]
    settings.update(TEST_MODE if settings["test_mode"] else {})
    try:
        _, model = main(settings)
        for text in ("You won! Text CLAIM to 80082 now for your free prize.", "Are we still on for lunch at one?"):
            print(f"{classify_review(text, model, gpt2_tokenizer(), next(model.parameters()).device):8} {text}")
    except (ValueError, OSError) as error:
        parser.error(" ".join(str(error).split()))
    except KeyboardInterrupt:
        parser.exit(130, "stopped; nothing is kept of an unfinished training\n")
    print(f"saved in {settings['output_dir']}")
    return 0


if __name__ == "__main__":
    sys.exit(command_line())
