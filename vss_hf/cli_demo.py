"""The command `vss-hf demo`: the page on this machine, or the files of a Space."""

from pathlib import Path
from typing import Annotated

import typer

from .cli_common import Device


def demo(
    model: Annotated[str, typer.Argument(help="Model folder or Hub repo; an image or a video model.")],
    compare: Annotated[
        str | None, typer.Option(metavar="MODEL2", help="A second model of the same classes, side by side.")
    ] = None,
    video: Annotated[Path | None, typer.Option(help="A video or picture that is there from the start.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0: for the whole network.")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Default: 7860 or the next free one.")] = None,
    share: Annotated[
        bool, typer.Option("--share", help="Also a public address of Gradio's, for whoever knows it.")
    ] = False,
    max_frames: Annotated[int, typer.Option(min=1, help="Of one video.")] = 600,
    max_disk: Annotated[
        float, typer.Option(min=0.01, metavar="GB", help="Of uploads and results of all visitors, half of it each.")
    ] = 10.0,
    export: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the files of a Space instead; models are Hub ids then.")
    ] = None,
    device: Device = None,
) -> None:
    """A page to try a model: upload or record a video, see classes, confidence and flicker, take masks away.

    Needs Gradio, the extra `demo`; where it is missing, the command says what installs it. Ctrl-C ends it and removes
    what was uploaded; what a killed page left, the next one removes.
    """
    from vss_hf.demo.serving import check_gradio, check_port, create_page, serve
    from vss_hf.demo.uploads import Limits

    sources = [model] if compare is None else [model, compare]
    if export is not None:
        from vss_hf.hub_cards.space_card import write_space

        for path in write_space(export, sources, max_frames):
            typer.echo(path)
        typer.echo("put it on the Hub: hf repos create OWNER/NAME --type space --space-sdk gradio")
        typer.echo(f"hf upload OWNER/NAME {export} . --repo-type space")
        return
    check_gradio()
    if port is not None:
        check_port(host, port)
    limits = Limits(frames=max_frames, disk_bytes=round(max_disk * 2**30))
    page = create_page(sources, device=device, limits=limits, video=video)
    serve(page, host, port, share)
