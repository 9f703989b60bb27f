"""Convert published GPT-2 weights, or the course's own gpt2-mini, into a state dict of chapter 4's GPTModel.

The result is one file, .pth or .safetensors, that `load_state_dict` takes as it is, and beside it config.json with the model's
sizes. The weights go through the loader of chapter 5, section 5.5. Notebook weight-loading-pytorch.ipynb, section 2.

Run it:  python convert_weights.py --model_size mini --format safetensors
"""

import json
import sys
from pathlib import Path

from previous_chapters import (
    MODELS_DIR,
    SIZES,
    GPTModel,
    OneLineParser,
    download_and_load_gpt2,
    find_mini,
    load_gpt2_params_from_safetensors,
    load_gpt2_params_from_tf_ckpt,
    load_weights_into_gpt,
    read_settings,
    size_name,
)
from weight_files import FORMATS, config_from_settings, refuse_other_files, write_weights


def read_published(model_size: str, source: str | Path | None = None) -> tuple[dict, dict]:
    """Return (settings, params) of a published GPT-2, as gpt_download.py returns them.

    `source` is a model.safetensors with Hugging Face's names, a folder with one, or a folder with OpenAI's seven files. Without
    it, gpt2-mini is looked for and the other sizes are downloaded unless they are there. Raises ValueError or OSError.
    """
    size = size_name(model_size)
    if source is None:
        if size == "mini":
            refuse_other_files(find_mini(MODELS_DIR) / "model.safetensors")
        return download_and_load_gpt2(size, MODELS_DIR)
    source = Path(source)
    if (source / "model.ckpt.index").is_file():
        settings = read_settings(source / "hparams.json")
        return settings, load_gpt2_params_from_tf_ckpt(source / "model.ckpt", settings)
    file = source / "model.safetensors" if source.is_dir() else source
    refuse_other_files(file)
    if file.suffix != ".safetensors":
        raise ValueError(f"{file} is neither a .safetensors file nor a folder with weights")
    settings = read_settings(file.with_name("config.json")) if size == "mini" else dict(SIZES[size])
    return settings, load_gpt2_params_from_safetensors(file, settings)


def state_dict_of(settings: dict, params: dict) -> dict:
    """Return the state dict of a GPTModel with these weights; its output head and its token embedding are one tensor."""
    model = GPTModel(config_from_settings(settings))
    load_weights_into_gpt(model, params)
    state_dict = model.state_dict()
    state_dict["out_head.weight"] = state_dict["tok_emb.weight"]  # equal numbers in GPT-2; a .pth file then holds them once
    return state_dict


def convert(model_size: str, output: str | Path, file_format: str = "pth", source: str | Path | None = None) -> Path:
    """Write `output` and config.json beside it, and return the path. Raises ValueError or OSError, each in one line."""
    output = Path(output)
    settings, params = read_published(model_size, source)
    sizes = json.dumps(config_from_settings(settings), indent=2) + "\n"
    beside = output.with_name("config.json")
    if beside.exists() and beside.read_text(encoding="utf-8") != sizes:
        raise ValueError(f"{beside} belongs to another model: choose an --output in a folder of its own")
    write_weights(state_dict_of(settings, params), output, file_format)
    beside.write_text(sizes, encoding="utf-8")
    return output


def choose_output(model_size: str, output: str | None, file_format: str | None) -> tuple[Path, str]:
    """Return (path, format): each may follow from the other. Raises ValueError if they contradict each other."""
    named = Path(output).suffix.removeprefix(".") if output else None
    chosen = file_format or named or FORMATS[0]
    if output and named != chosen or chosen not in FORMATS:
        raise ValueError(f"--output {output} does not end in .{file_format or ' or .'.join(FORMATS)}")
    return Path(output) if output else MODELS_DIR / f"converted-{size_name(model_size)}" / f"model.{chosen}", chosen


def main(argv: list[str] | None = None) -> int:
    """Command line of this file; returns 0, or exits with code 2 and one line on bad input."""
    parser = OneLineParser("Convert GPT-2 weights into a state dict of the course's GPTModel.")
    parser.add_argument("--model_size", default="mini", help=f"mini (of this course), {', '.join(SIZES)}")
    parser.add_argument("--input", help="a model.safetensors, or a folder with it or with OpenAI's checkpoint (default: find or download)")
    parser.add_argument("--output", help="file to write (default: gpt2/converted-SIZE/model.FORMAT beside this script)")
    parser.add_argument("--format", choices=FORMATS, help="file format (default: as --output ends, else pth)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    args = parser.parse_args(argv)
    try:
        output, file_format = choose_output(args.model_size, args.output, args.format)
        if output.exists() and not args.overwrite:
            raise ValueError(f"{output} exists already: choose another --output, or add --overwrite")
        convert(args.model_size, output, file_format, args.input)
    except (ValueError, OSError) as error:
        parser.error(" ".join(str(error).split()))
    except KeyboardInterrupt:
        parser.exit(130, "stopped; a download goes on with the same command\n")
    print(f"wrote {output} ({output.stat().st_size:,} bytes) and config.json beside it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
