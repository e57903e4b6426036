"""The page: its layout, and which part answers to what. What is shown comes from `answers`."""

import os
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd

from vss_hf.video_io import IMAGE_SUFFIXES

from . import answers, snippets
from .labelling import DemoModels, LabelledFrame, Progress, labelled_frames
from .results import Result, Results
from .uploads import Limits, Refused, open_upload


SECONDS_BETWEEN_PICTURES = 0.4  # while it labels: what a visitor sees costs time, too
ALPHA = 0.6
CHANGED = "changed pixels (%)"
GONE = "This result is not kept any more; label the video again."
# A click on a row of the class list tells which class.
ON_CLASS_CLICK = """
element.addEventListener('click', (event) => {
    const row = event.target.closest('[data-label]');
    if (row) trigger('click', {label: Number(row.dataset.label)});
});
"""
Updates = dict[Any, Any]


def as_it_is(upload: Any) -> Any:
    """The component, taking files as they are: Gradio's own way encodes pictures anew and needs an ffmpeg for videos.

    A subclass would do, but the browser would ask the server for its code.
    """
    upload.preprocess = lambda payload: None if payload is None else payload.path
    return upload


class Page:
    """The page of one demo.

    Args:
        models: one, or two that are compared.
        limits: what is taken from visitors.
        video: a video or picture that is there from the start.
        gpu: wraps the function that labels; `spaces.GPU` on a Space with ZeroGPU.

    Attributes:
        blocks: what Gradio serves.
        results: of the visitors; close it at the end.
    """

    def __init__(
        self,
        models: DemoModels,
        limits: Limits,
        video: Path | None = None,
        gpu: Callable[[Callable], Callable] | None = None,
    ):
        self.models, self.limits, self.results = models, limits, Results(limits)

        def frames_of(path: str) -> Generator[LabelledFrame, None, None]:
            yield from labelled_frames(models, open_upload(path, limits), limits)

        # Gradio leaves uploads where they are when it ends; here they go with everything else.
        os.environ.setdefault("GRADIO_TEMP_DIR", str(self.results.folder / "gradio"))
        self._frames_of = frames_of if gpu is None else gpu(frames_of)
        title = f"{' and '.join(models.names)} · video semantic segmentation"
        # What visitors gave, and pictures that they have seen, go after an hour.
        with gr.Blocks(title=title, analytics_enabled=False, fill_width=True, delete_cache=(600, 3600)) as self.blocks:
            self._lay_out(video)
            self._connect()

    # --- layout

    def _lay_out(self, video: Path | None) -> None:
        is_picture = video is not None and video.suffix.lower() in IMAGE_SUFFIXES
        names = " and ".join(self.models.names)
        gr.Markdown(
            f"# Video semantic segmentation\n{names}, {len(self.models.classes)} classes", elem_classes="vss-title"
        )
        self.only, self.mark = gr.State(None), gr.State(None)  # class that is shown alone; pixel (y, x) that is marked
        with gr.Row():
            with gr.Column(scale=4, min_width=300):
                with gr.Tabs(selected="picture" if is_picture else "video"):
                    with gr.Tab("Video", id="video"):
                        self.video = as_it_is(
                            gr.Video(
                                None if is_picture or video is None else str(video),
                                label="Video",
                                sources=["upload", "webcam"],
                                include_audio=False,
                                webcam_options=gr.WebcamOptions(mirror=False),
                                elem_classes="vss-upload",
                            )
                        )
                        self.label_video = gr.Button("Label the video", variant="primary")
                    with gr.Tab("Picture", id="picture"):
                        self.picture = as_it_is(
                            gr.Image(
                                str(video) if is_picture else None,
                                label="Picture",
                                type="filepath",
                                sources=["upload", "webcam", "clipboard"],
                                webcam_options=gr.WebcamOptions(mirror=False),
                                elem_classes="vss-upload",
                            )
                        )
                        self.label_picture = gr.Button("Label the picture", variant="primary")
                self.cancel = gr.Button("Stop here", visible=False)
                self.status = gr.HTML(snippets.status(f"Up to {self.limits.frames} frames."))
            with gr.Column(scale=8, min_width=300, visible=False) as self.viewer:
                with gr.Row():
                    self.pictures = [self._picture(name) for name in self.models.names]
                self.frame = gr.Slider(0, 1, 0, step=1, label="Frame", visible=False, elem_id="frame")
                self.alpha = gr.Slider(0, 1, ALPHA, step=0.05, label="Opacity", elem_id="opacity")
                self.pixel = gr.HTML(snippets.HINT, elem_id="pixel")
        with gr.Row(visible=False) as self.details:
            with gr.Column(scale=4, min_width=300):
                gr.Markdown("### Classes in this frame\nClick one to see it alone; again to see all.")
                self.classes = gr.HTML(js_on_load=ON_CLASS_CLICK, elem_id="classes")
            with gr.Column(scale=8, min_width=300):
                with gr.Column(visible=False) as self.over_time:
                    gr.Markdown("### Flicker\nPixels with another class than a frame before. What moves changes, too.")
                    self.plot = gr.LinePlot(
                        x="frame", y=CHANGED, color="model" if len(self.models.names) > 1 else None, height=220
                    )
                gr.Markdown("### Take away")
                with gr.Row():
                    self.masks = gr.DownloadButton("Masks (zip)", min_width=140, elem_id="masks")
                    self.make_overlay = gr.Button("Make the overlay video", min_width=140)
                self.overlays = [
                    gr.Video(
                        label=name, visible=False, interactive=False, buttons=["download"], elem_id=f"overlay{number}"
                    )
                    for number, name in enumerate(self.models.names)
                ]

    def _picture(self, name: str) -> gr.Image:
        return gr.Image(
            label=name,
            interactive=False,
            buttons=["download", "fullscreen"],
            min_width=260,
            elem_classes="vss-picture",
        )

    # --- which part answers to what

    def _connect(self) -> None:
        quick: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": None, "api_visibility": "private"}
        labelling: list[Any] = [
            *[self.status, self.cancel, self.label_video, self.label_picture, self.viewer, self.details],
            *[self.frame, self.classes, self.pixel, self.only, self.mark, self.over_time, self.plot, self.masks],
            *[self.make_overlay, *self.overlays, *self.pictures],
        ]
        # One at a time: the models have one memory of a video.
        alone: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "models", "show_progress": "hidden"}
        self.label_video.click(self.label, [self.video, self.alpha], labelling, api_name="label_video", **alone)
        self.label_picture.click(self.label, [self.picture, self.alpha], labelling, api_name="label_picture", **alone)
        self.cancel.click(self.stop, None, self.status, queue=False, api_visibility="private")
        shown = [self.frame, self.alpha, self.only, self.mark]
        self.alpha.input(self.repaint, shown, self.pictures, trigger_mode="always_last", **quick)
        self.frame.input(
            self.show_frame,
            shown,
            [*self.pictures, self.classes, self.pixel],
            trigger_mode="always_last",
            **quick,
        )
        self.classes.click(self.choose_class, shown, [self.only, self.classes, *self.pictures], **quick)
        for picture in self.pictures:
            picture.select(self.choose_pixel, shown, [self.mark, self.pixel, *self.pictures], **quick)
        self.make_overlay.click(
            self.paint_video,
            [self.alpha],
            [*self.overlays, self.status],  # the status shows how far it is
            concurrency_limit=1,
            api_visibility="private",
        )
        self.blocks.unload(self.leave)

    # --- answers

    def label(self, path: str | None, alpha: float, request: gr.Request) -> Iterator[Updates]:
        """Label what was given, and show the newest frame meanwhile."""
        if path is None:
            yield {self.status: snippets.status("Give a video or a picture first.", "error")}
            return
        try:
            source = open_upload(path, self.limits)
        except (ValueError, OSError) as error:
            yield {self.status: snippets.status(sentence(error, path), "error")}
            return
        result = self.results.begin(
            visitor_of(request), source.name, len(self.models.classes), self.models.palette, source.rate
        )
        progress = Progress(source.length)
        yield self._beginning(progress)
        trouble = None
        shown = 0.0
        frames = self._frames_of(path)
        try:
            for frame in frames:
                if result.stop.is_set():
                    break
                result.add(frame)
                progress.done += 1
                if time.monotonic() - shown > SECONDS_BETWEEN_PICTURES:
                    yield {self.status: snippets.progress_bar(progress), **self._newest(result, alpha)}
                    shown = time.monotonic()
        except (ValueError, OSError, RuntimeError, MemoryError) as error:
            if not result.stop.is_set():  # else its folder is gone, and nobody waits for it
                trouble = sentence(error, path)
        finally:
            frames.close()
        yield from self._ending(result, progress, trouble, alpha, visitor_of(request))

    def _beginning(self, progress: Progress) -> Updates:
        return {
            self.status: snippets.progress_bar(progress),
            self.cancel: gr.update(visible=True),
            self.label_video: gr.update(interactive=False),
            self.label_picture: gr.update(interactive=False),
            self.viewer: gr.update(visible=False),
            self.details: gr.update(visible=False),
            self.frame: gr.update(visible=False),
            self.only: None,
            self.mark: None,
            self.pixel: snippets.HINT,
            **{one: gr.update(value=None, visible=False) for one in self.overlays},
        }

    def _newest(self, result: Result, alpha: float) -> Updates:
        number = len(result.frames) - 1
        return {self.viewer: gr.update(visible=True), **self._painted(result, number, alpha, None, None)}

    def _ending(
        self, result: Result, progress: Progress, trouble: str | None, alpha: float, visitor: str
    ) -> Iterator[Updates]:
        """What stands there when no more frames come."""
        updates: Updates = {
            self.cancel: gr.update(visible=False),
            self.label_video: gr.update(interactive=True),
            self.label_picture: gr.update(interactive=True),
        }
        if self.results.of(visitor) is not result:  # it has no frame, or it had to make room
            why = trouble or (GONE if result.frames else "Stopped before the first frame.")
            yield {**updates, self.status: snippets.status(why, "error")}
            return
        done, stopped = progress.done, result.stop.is_set()
        counted = f"{done} frame{'s' * (done != 1)}"
        of_all = f" of {progress.total}" if stopped and progress.total else ""
        text = f"{'Stopped after ' if stopped else ''}{counted}{of_all}, {progress.rate:.1f} frames/s."
        last = done - 1
        yield {
            **updates,
            self.status: snippets.status(
                f"{trouble} ({counted} done)" if trouble else text, "error" if trouble else "plain"
            ),
            **self._newest(result, alpha),
            self.details: gr.update(visible=True),
            self.frame: gr.update(minimum=0, maximum=max(1, last), value=last, visible=done > 1),
            self.classes: self._class_list(result, last, None),
            self.over_time: gr.update(visible=done > 1),
            self.plot: self._flicker(result),
            self.masks: str(answers.write_masks(result, self.models, result.folder / f"{result.name}_masks.zip")),
            self.make_overlay: gr.update(visible=done > 1),  # a picture has its own button for that
        }

    def stop(self, request: gr.Request) -> str:
        """End the labelling after the frame at hand."""
        self.results.stop(visitor_of(request))
        return snippets.status("Stopping …")

    def repaint(self, number: int, alpha: float, only: int | None, mark: Any, request: gr.Request) -> Updates:
        """The same frame with another opacity."""
        result = self._result(request)
        return self._painted(result, number, alpha, only, mark)

    def show_frame(self, number: int, alpha: float, only: int | None, mark: Any, request: gr.Request) -> Updates:
        """Another frame, and what is to be said of it."""
        result = self._result(request)
        return {
            **self._painted(result, number, alpha, only, mark),
            self.classes: self._class_list(result, number, only),
            self.pixel: snippets.HINT if mark is None else self._pixel(result, number, mark),
        }

    def choose_class(
        self, number: int, alpha: float, only: int | None, mark: Any, event: gr.EventData, request: gr.Request
    ) -> Updates:
        """Show one class alone; the same again: all."""
        result = self._result(request)
        chosen = event.label
        if chosen == only or not isinstance(chosen, int) or not 0 <= chosen < len(self.models.classes):
            chosen = None
        return {
            self.only: chosen,
            self.classes: self._class_list(result, number, chosen),
            **self._painted(result, number, alpha, chosen, mark),
        }

    def choose_pixel(
        self, number: int, alpha: float, only: int | None, mark: Any, event: gr.SelectData, request: gr.Request
    ) -> Updates:
        """Mark a pixel and say what the models think of it."""
        result = self._result(request)
        number = frame_number(result, number)
        step = answers.shrink(result.frames[number].size)
        x, y = (step * int(place) + step // 2 for place in event.index)
        return {
            self.mark: (y, x),
            self.pixel: self._pixel(result, number, (y, x)),
            **self._painted(result, number, alpha, only, (y, x)),
        }

    def paint_video(self, alpha: float, request: gr.Request, progress: gr.Progress = gr.Progress()) -> Updates:  # noqa: B008
        """The overlay video of each model, at the opacity of the page."""
        result = self._result(request)
        updates: Updates = {}
        for model, (name, player) in enumerate(zip(self.models.names, self.overlays, strict=True)):

            def tell(done: int, of: int, name: str = name) -> None:
                progress((done, of), desc=f"Painting {name}", unit="frames")

            base = result.folder / f"{result.name}_overlay{model + 1 if model else ''}"
            path = answers.write_overlay(result, self.models, model, alpha, base, tell)
            updates[player] = gr.update(value=str(path), visible=True)
        return updates

    def leave(self, request: gr.Request) -> None:
        """A visitor has closed the page."""
        self.results.end(visitor_of(request))

    # --- pieces

    def _result(self, request: gr.Request) -> Result:
        result = self.results.of(visitor_of(request))
        if result is None:
            raise gr.Error(GONE)
        return result

    def _painted(
        self, result: Result, number: int, alpha: float, only: int | None, mark: tuple[int, int] | None
    ) -> Updates:
        number = frame_number(result, number)
        return {
            picture: str(answers.page_file(result, answers.painted(result, number, model, alpha, only, mark)))
            for model, picture in enumerate(self.pictures)
        }

    def _class_list(self, result: Result, number: int, only: int | None) -> str:
        number = frame_number(result, number)
        shares = answers.class_shares(result, number)
        listed = snippets.class_list(shares, self.models.classes, self.models.palette, self.models.names, only)
        agreed = answers.agreement(result, number)
        if agreed is None:
            return listed
        return listed + f'<p class="vss-hint">The models agree on {snippets.percent(agreed)} of the pixels.</p>'

    def _pixel(self, result: Result, number: int, mark: tuple[int, int]) -> str:
        y, x = mark
        found = answers.at_pixel(result, frame_number(result, number), y, x)
        return snippets.pixel(found, (x, y), self.models.classes, self.models.palette, self.models.names)

    def _flicker(self, result: Result) -> pd.DataFrame:
        rows = [
            (name, number, 100 * share)
            for model, name in enumerate(self.models.names)
            for number, share in answers.flicker(result, model)
        ]
        return pd.DataFrame(rows, columns=["model", "frame", CHANGED])


def visitor_of(request: gr.Request) -> str:
    """Who asks: the session of a page."""
    return str(request.session_hash)


def frame_number(result: Result, number: float) -> int:
    """The number of a frame that is there."""
    return min(max(int(number), 0), len(result.frames) - 1)


def sentence(error: Exception, path: str) -> str:
    """An error's message for a visitor, who gave a file and knows nothing of folders here."""
    text = (
        " ".join(str(error).split())
        .replace(str(Path(path).absolute()), Path(path).name)
        .replace(path, Path(path).name)
    )
    return text[:1].upper() + text[1:] if isinstance(error, Refused) and text.startswith(("it ", "the ")) else text
