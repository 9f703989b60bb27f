"""What is a byte of cache best spent on? Train MHA, MQA and MLA on the story, three seeds each; MQA and MLA cache the same bytes.

Run it:  python compare_mla.py        some minutes; it writes story-comparison.json and story-comparison.png
"""

import sys

import torch.nn as nn
from gpt_with_kv_gqa import GroupedQueryAttention
from gpt_with_kv_mha import GPTModel as FullModel
from gpt_with_kv_mla import GPTModel
from previous_chapters import run_comparison


class SharedModel(FullModel):
    """One key-value head for all heads: it caches 2 x head_dim numbers a token and layer."""

    def make_attention(self, cfg: dict, layer: int) -> nn.Module:
        return GroupedQueryAttention(cfg["emb_dim"], cfg["emb_dim"], cfg["drop_rate"], cfg["n_heads"], num_kv_groups=1)


BUILDERS = {
    "MHA, 128 numbers": FullModel,
    "MQA, 32 numbers": SharedModel,
    "MLA, 32 numbers": lambda cfg: GPTModel({**cfg, "latent_dim": 32}),
}


def main(argv: list[str] | None = None) -> int:
    """Command line of this file; returns 0, or exits with code 2 and one line on bad input."""
    title = "Story: numbers cached for each token in each layer"
    return run_comparison("Train MHA, MQA and MLA on the story, side by side.", BUILDERS, title, argv)


if __name__ == "__main__":
    sys.exit(main())
