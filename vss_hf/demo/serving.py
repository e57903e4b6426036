"""Starts the page's server."""

import signal
import socket
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from vss_hf.install import install_advice

from .storage import UploadGate
from .uploads import Limits


if TYPE_CHECKING:
    from .page import Page

OLDEST_GRADIO = 6


def create_page(
    sources: Sequence[str],
    *,
    device: str | None = None,
    limits: Limits | None = None,
    video: Path | None = None,
    gpu: Callable[[Callable], Callable] | None = None,
) -> "Page":
    """Load the models and build the page.

    Args:
        sources: one or two model folders or Hub ids.
        device: where to run; None: a GPU if there is one.
        limits: what is taken from visitors; None: `Limits()`.
        video: a video or picture that is there from the start.
        gpu: wraps the function that labels; `spaces.GPU` on a Space with ZeroGPU.

    Raises:
        ValueError: Gradio is not installed, the models' classes differ, or `video` is not taken.
        As `VideoSegmenter.from_pretrained`.
    """
    check_gradio()
    from .labelling import open_models
    from .page import Page
    from .uploads import open_upload

    limits = limits or Limits()
    if video is not None:
        if not video.is_file():
            raise FileNotFoundError(f"--video {video}: no such file")
        open_upload(video, limits)
    return Page(open_models(sources, device), limits, video, gpu)


def serve(
    page: "Page", host: str = "127.0.0.1", port: int | None = None, share: bool = False, wait: bool = True
) -> str:
    """Serve a page.

    Args:
        page: that `create_page` built.
        host: address to listen on; "0.0.0.0": all, so that others on the network see it.
        port: None: 7860 or the next free one.
        share: also through a public address of Gradio's; whoever knows it may use the page.
        wait: until Ctrl-C or SIGTERM; then everything that visitors gave is removed.

    Returns:
        The local address.
    """
    import gradio as gr
    from starlette.middleware import Middleware

    try:
        if wait:
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that both leave nothing behind
        _, address, _ = page.blocks.launch(
            server_name=host,
            server_port=port,
            share=share,
            max_file_size=page.limits.upload_bytes,
            app_kwargs={"middleware": [Middleware(UploadGate, storage=page.results.storage)]},
            theme=gr.themes.Default(
                font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"], primary_hue="blue"
            ).set(  # white on the usual blue is hard to read
                button_primary_background_fill="*primary_600", button_primary_background_fill_hover="*primary_700"
            ),
            css_paths=Path(__file__).with_name("page.css"),
            ssr_mode=False,
            prevent_thread_lock=True,
            footer_links=[],
            quiet=not wait,
        )
        if wait:
            page.blocks.block_thread()
    finally:
        if wait:
            page.close()
    return address


def check_gradio() -> None:
    """Raise a ValueError that says what to install, where Gradio is missing or too old."""
    try:
        found = version("gradio")
    except PackageNotFoundError:
        raise ValueError(f"the demo page needs Gradio: {install_advice('demo')}") from None
    if int(found.partition(".")[0]) < OLDEST_GRADIO:
        raise ValueError(
            f"the demo page needs Gradio {OLDEST_GRADIO} or newer, found {found}: {install_advice('demo')}"
        )


def check_port(host: str, port: int) -> None:
    """Raise a ValueError where another program listens."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ValueError(
                f"--port {port}: cannot listen on {host}:{port} ({error.strerror}); another program may use it. "
                "Leave --port out for a free one"
            ) from None
