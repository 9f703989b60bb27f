"""What every page of this course needs around its form: fonts and a server of this computer, and a port that can be one.

It works with gradio 5 and 6, which take the same settings in different places. chat_page.py shows it in use.
"""

import argparse
import inspect

import gradio as gr


def known_by(method, **options) -> dict:
    """Return those options that the method takes: gradio 5's constructor takes the theme, gradio 6's launch. Folder ch05/06."""
    return {name: value for name, value in options.items() if name in inspect.signature(method).parameters}


def local_theme() -> gr.themes.Default:
    """Return gradio's colors with fonts of this computer; its own default may fetch one from the network. Folder ch05/06."""
    return gr.themes.Default(font=["Arial", "Helvetica", "sans-serif"], font_mono=["Courier New", "monospace"])


def serve(app: gr.Blocks, port: int | None = None, host: str = "127.0.0.1", **options) -> str:
    """Start the server on this computer, by default for this computer only, and return its address. Folder ch05/06.

    `options` go to gradio's launch. OSError for a port in use.
    """
    options |= {"share": False, "ssr_mode": False, "quiet": True, "prevent_thread_lock": True}
    options |= known_by(gr.Blocks.launch, theme=local_theme(), run_history=False, footer_links=[])
    return app.launch(server_name=host, server_port=port, **options)[1]


def port_number(text: str) -> int:
    """Return the number of a port, for argparse, which prints the error. Folder ch05/06."""
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text} is no port (allowed: 1 to 65535)")
    return int(text)
