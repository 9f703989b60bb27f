"""The models behind `python local_server.py`: SmolLM2-135M, and the chapter's tuned Gemma 3 270M where it has been made.

With numba, each new token is one compiled step over weights in 8 bits (chapter 5, folder 20), several times as fast. The numbers
are rounded, so a text may differ from that of the plain path. Without numba, PyTorch does all the work.
"""

import sys
from pathlib import Path

import torch
from gemma3 import load_gemma3
from instructions import encode_prompt
from served_model import ServedModel, serve_smollm2

try:
    from fast import FastModel
except ImportError:  # numba is not installed
    FastModel = None

FOLDER = Path(__file__).resolve().parent
GEMMA_NAME, GEMMA_FILE = "gemma3-270m-course", "gemma-3-270m-sft.pth"
GEMMA_PLACES = (FOLDER.parent / "01_main-chapter-code" / "gemma-model" / GEMMA_FILE, FOLDER / GEMMA_FILE)
GEMMA_CONTEXT = 2048  # the model could read more, but was tuned on short instructions, and a long text takes much memory


class ServedGemma(ServedModel):
    """The tuned Gemma: it answers an instruction in the prompt of its tuning, and knows no conversation."""

    def encode_chat(self, messages: list[dict]) -> list[int]:
        """The ids of the chapter's prompt for the last message; what follows a line that begins with `Input:` is the input."""
        if messages[-1]["role"] != "user":
            raise ValueError("the last message must be the user's")
        instruction, _, text = messages[-1]["content"].partition("\nInput:")
        return encode_prompt({"instruction": instruction.strip(), "input": text.strip()}, self.tokenizer)


def serve_gemma(weights: Path) -> ServedGemma:
    """Gemma 3 270M with the blocks that the chapter's program has tuned. ValueError for a file that holds something else."""
    model, tokenizer = load_gemma3()
    try:
        model.blocks.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True)["blocks"])
    except Exception as error:  # a file can be damaged in many ways
        raise ValueError(f"{weights} holds no tuned blocks of Gemma 3 270M: {str(error).splitlines()[0]}") from None
    details = {"family": "gemma3", "parameter_size": "268M", "quantization_level": "F32"}
    served = ServedGemma(GEMMA_NAME, model, tokenizer, (tokenizer.eos_token_id,), details)
    served.context_length = GEMMA_CONTEXT
    return served


def compile_step(served: ServedModel) -> None:
    """Let the compiled step write the answers; the PyTorch model goes on reading the prompts."""
    served.model = FastModel(served.model, "int8")
    served.model.read_token(0, served.model.new_cache())  # compiles the step, or loads its machine code
    served.details["quantization_level"] = "int8"


def load_models(gemma_weights: Path | None = None, plain: bool = False) -> dict[str, ServedModel]:
    """Name -> model. Without gemma_weights, Gemma is served where its package and its tuned weights are found.

    OSError or ValueError in one line if a model that is asked for cannot be loaded.
    """
    models = [serve_smollm2()]
    weights = gemma_weights or next((path for path in GEMMA_PLACES if path.is_file()), None)
    if weights is not None:
        try:
            models.append(serve_gemma(weights))
        except FileNotFoundError as error:  # the package of Gemma is missing
            if gemma_weights is not None:
                raise
            print(f"{GEMMA_NAME} is not served: {error}", file=sys.stderr)
    if FastModel is None and not plain:
        print("numba is missing (python -m pip install numba), so PyTorch answers, more slowly", file=sys.stderr)
    elif not plain:
        for served in models:
            compile_step(served)
    return {served.name: served for served in models}
