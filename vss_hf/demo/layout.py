"""The page's parts and where they are. What answers to them is in `page`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from vss_hf.video_io import IMAGE_SUFFIXES

from . import snippets
from .labelling import DemoModels
from .uploads import Limits


ALPHA = 0.6
# A click on a button of a piece of HTML tells which one. What comes back replaces the piece; who uses the keyboard is
# to stay at the same button.
ON_CHOICE = """
let chosen = null;
element.addEventListener('click', (event) => {
    const button = event.target.closest('[data-choice]');
    if (!button) return;
    chosen = button.dataset.choice;
    trigger('click', {choice: chosen});
});
new MutationObserver(() => {
    if (chosen === null || document.activeElement !== document.body) return;
    element.querySelector(`[data-choice="${chosen}"]`)?.focus({preventScroll: true});
}).observe(element, {childList: true, subtree: true});
"""


@dataclass(frozen=True)
class Parts:
    """What of the page answers or changes, from the top to the bottom."""

    video: gr.Video
    label_video: gr.Button
    picture: gr.Image
    label_picture: gr.Button
    status: gr.HTML
    cancel: gr.Button
    viewer: gr.Column
    pictures: list[gr.Image]  # one for each model, as `overlays`
    frame: gr.Slider
    alpha: gr.Slider
    pixel: gr.HTML
    details: gr.Row
    classes: gr.HTML
    over_time: gr.Column
    plot: gr.HTML
    masks: gr.DownloadButton
    make_overlay: gr.Button
    overlays: list[gr.Video]


def lay_out(models: DemoModels, limits: Limits, given: Path | None) -> Parts:
    """Build the page, within a `gr.Blocks`.

    Args:
        models: one, or two that are compared.
        limits: what is taken from visitors.
        given: a video or picture that is there from the start; Gradio may show files of its folder.
    """
    names = " and ".join(models.names)
    gr.Markdown(f"# Video semantic segmentation\n{names}, {len(models.classes)} classes", elem_classes="vss-title")
    with gr.Row():
        with gr.Column(scale=4, min_width=300):
            uploads = upload_parts(given)
            status = gr.HTML(snippets.status(f"Up to {limits.frames} frames."))
            cancel = gr.Button("Stop here", visible=False)
        with gr.Column(scale=8, min_width=300, visible=False) as viewer:
            with gr.Row():
                pictures = [picture_part(name) for name in models.names]
            frame = gr.Slider(0, 1, 0, step=1, label="Frame", visible=False, elem_id="frame")
            alpha = gr.Slider(0, 1, ALPHA, step=0.05, label="Opacity", elem_id="opacity")
            pixel = gr.HTML(snippets.HINT, js_on_load=ON_CHOICE, elem_id="pixel")
    with gr.Row(visible=False) as details:
        with gr.Column(scale=4, min_width=300):
            gr.Markdown("### Classes in this frame\nClick one to see it alone; again to see all.")
            classes = gr.HTML(js_on_load=ON_CHOICE, elem_id="classes")
        with gr.Column(scale=8, min_width=300):
            with gr.Column(visible=False) as over_time:
                gr.Markdown("### Flicker\nPixels with another class than a frame before. What moves changes, too.")
                plot = gr.HTML(elem_id="flicker")
            gr.Markdown("### Take away")
            with gr.Row():
                masks = gr.DownloadButton("Masks (zip)", min_width=140, elem_id="masks")
                make_overlay = gr.Button("Make the overlay video", min_width=140)
            overlays = [
                gr.Video(
                    label=name, visible=False, interactive=False, buttons=["download"], elem_id=f"overlay{number}"
                )
                for number, name in enumerate(models.names)
            ]
    return Parts(
        *uploads,
        status,
        cancel,
        viewer,
        pictures,
        frame,
        alpha,
        pixel,
        details,
        classes,
        over_time,
        plot,
        masks,
        make_overlay,
        overlays,
    )


def upload_parts(given: Path | None) -> tuple[gr.Video, gr.Button, gr.Image, gr.Button]:
    """The two tabs in which something is given, each with its button."""
    is_picture = given is not None and given.suffix.lower() in IMAGE_SUFFIXES
    with gr.Tabs(selected="picture" if is_picture else "video"):
        with gr.Tab("Video", id="video"):
            video = as_it_is(
                gr.Video(
                    None if is_picture or given is None else str(given),
                    label="Video",
                    sources=["upload", "webcam"],
                    include_audio=False,
                    webcam_options=gr.WebcamOptions(mirror=False),
                    elem_classes="vss-upload",
                )
            )
            label_video = gr.Button("Label the video", variant="primary")
        with gr.Tab("Picture", id="picture"):
            picture = as_it_is(
                gr.Image(
                    str(given) if is_picture else None,
                    label="Picture",
                    type="filepath",
                    sources=["upload", "webcam", "clipboard"],
                    webcam_options=gr.WebcamOptions(mirror=False),
                    elem_classes="vss-upload",
                )
            )
            label_picture = gr.Button("Label the picture", variant="primary")
    return video, label_video, picture, label_picture


def picture_part(name: str) -> gr.Image:
    """Where the frames of a model are shown."""
    return gr.Image(
        label=name,
        interactive=False,
        buttons=["download", "fullscreen"],
        min_width=180,
        elem_classes="vss-picture",
    )


def as_it_is(upload: Any) -> Any:
    """The component, taking files as they are: Gradio's own way encodes pictures anew and needs an ffmpeg for videos.

    A subclass would do, but the browser would ask the server for its code.
    """
    upload.preprocess = lambda payload: None if payload is None else payload.path
    return upload
