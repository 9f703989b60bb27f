"""The diagram of memory-efficient-state-dict.ipynb: which memory holds which set of weights, step by step."""

import matplotlib.pyplot as plt
from previous_chapters import COLORS

# (what happened, sets in CPU memory: model, state dict; sets in GPU memory: model, state dict)
ON_THE_GPU = [("model\nbuilt", 1, 0, 0, 0), ("model\nmoved", 0, 0, 1, 0), ("file\nread", 0, 0, 1, 1), ("copied,\nfreed", 0, 0, 1, 0)]
ON_THE_CPU = [("model\nbuilt", 1, 0, 0, 0), ("file\nread", 1, 1, 0, 0), ("copied,\nfreed", 1, 0, 0, 0), ("model\nmoved", 0, 0, 1, 0)]


def draw_steps(ax: plt.Axes, steps: list, title: str) -> None:
    """One panel: for each step two stacked bars, CPU memory on the left and GPU memory on the right."""
    for place, (label, cpu_model, cpu_dict, gpu_model, gpu_dict) in enumerate(steps):
        for shift, name, model, state_dict in ((-0.21, "CPU", cpu_model, cpu_dict), (0.21, "GPU", gpu_model, gpu_dict)):
            ax.bar(place + shift, model, width=0.32, color=COLORS["blue"], edgecolor="black")
            ax.bar(place + shift, state_dict, width=0.32, bottom=model, color=COLORS["orange"], edgecolor="black", hatch="//")
            ax.text(place + shift, model + state_dict + 0.05, name, ha="center", fontsize=9)
    ax.set_xticks(range(len(steps)), [step[0] for step in steps])
    ax.set(title=title, ylim=(0, 2.5), yticks=[0, 1, 2])


def draw_double_residency() -> plt.Figure:
    """Two panels: the state dict read onto the GPU, and read into CPU memory; sets of weights in each memory."""
    fig, (left, right) = plt.subplots(1, 2, sharey=True)
    draw_steps(left, ON_THE_GPU, "3: two sets on the GPU")
    draw_steps(right, ON_THE_CPU, "3b: two sets on the CPU")
    left.set_ylabel("full sets of weights")
    left.bar(0, 0, color=COLORS["blue"], edgecolor="black", label="model")
    left.bar(0, 0, color=COLORS["orange"], edgecolor="black", hatch="//", label="state dict")
    left.legend(loc="upper left", ncols=2)
    return fig
