"""The page: which part answers to what. What is shown comes from `answers`, where it stands from `layout`."""

import functools
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from . import answers, snippets
from .flicker_plot import flicker_plot
from .labelling import DemoModels, LabelledFrame, Progress, labelled_frames
from .layout import lay_out
from .line import Line
from .results import Result, Results
from .uploads import Limits, Refused, open_upload


SECONDS_BETWEEN_PICTURES = 0.4  # while it labels: what a visitor sees costs time, too
GONE = "This result is not kept any more; label the video again."
GRADIO_FOLDER = "GRADIO_TEMP_DIR"  # the variable that tells Gradio where uploads are to lie
EXPECTED = (ValueError, OSError, gr.Error)  # while frames come: of damaged files, or the GPU time of a Space is over
Updates = dict[Any, Any]
log = logging.getLogger(__name__)


def in_words(answer: Callable[..., Updates]) -> Callable[..., Updates]:
    """The function, with errors as one line for the visitor; what nobody foresaw is in the log with its traceback."""

    @functools.wraps(answer)
    def asked(*args: Any, **kwargs: Any) -> Updates:
        try:
            return answer(*args, **kwargs)
        except gr.Error:
            raise
        except Exception as error:  # whatever it is: a visitor is to read a sentence, not a stack
            raise gr.Error(told(error), print_exception=False) from None

    return asked


class Page:
    """The page of one demo.

    Args:
        models: one, or two that are compared.
        limits: what is taken from visitors.
        video: a video or picture that is there from the start.
        gpu: wraps the function that labels; `spaces.GPU` on a Space with ZeroGPU.

    Attributes:
        blocks: what Gradio serves.
        results: of the visitors.
    """

    def __init__(
        self,
        models: DemoModels,
        limits: Limits,
        video: Path | None = None,
        gpu: Callable[[Callable], Callable] | None = None,
    ):
        self.models, self.limits = models, limits
        self.results, self.line = Results(limits), Line(limits.waiting)
        storage = self.results.storage

        # On a Space with ZeroGPU this runs in a process of its own: arguments and frames are pickled.
        def frames_of(path: str, folder: str) -> Generator[LabelledFrame, None, None]:
            yield from labelled_frames(models, open_upload(path, limits), limits, Path(folder))

        self._frames_of = frames_of if gpu is None else gpu(frames_of)
        self._gradio_folder_before = os.environ.get(GRADIO_FOLDER)
        os.environ[GRADIO_FOLDER] = str(storage.uploads)
        # Gradio shows these files as they are; others it would copy among the uploads first.
        gr.set_static_paths([storage.given, storage.results])
        given = None if video is None else Path(shutil.copy(video, storage.given))
        title = f"{' and '.join(models.names)} · video semantic segmentation"
        with gr.Blocks(title=title, analytics_enabled=False, fill_width=True) as self.blocks:
            self.parts = lay_out(models, limits, given)
            self._connect()

    def close(self) -> None:
        """Remove what visitors gave and got; the server has ended."""
        self.results.close()
        if self._gradio_folder_before is None:
            os.environ.pop(GRADIO_FOLDER, None)
        else:
            os.environ[GRADIO_FOLDER] = self._gradio_folder_before

    def _connect(self) -> None:
        """Which part answers to what."""
        on = self.parts
        quick: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": None, "api_visibility": "private"}
        labelling: list[Any] = [
            *[on.status, on.cancel, on.label_video, on.label_picture, on.viewer, on.details],
            *[on.frame, on.classes, on.pixel, on.over_time, on.plot, on.masks, on.make_overlay],
            *[*on.overlays, *on.pictures],
        ]
        # `line` sees to it that one at a time is served, and says meanwhile how many others there are.
        at_once: dict[str, Any] = {"concurrency_limit": None, "show_progress": "hidden"}
        on.label_video.click(self.label, [on.video, on.alpha], labelling, api_name="label_video", **at_once)
        on.label_picture.click(self.label, [on.picture, on.alpha], labelling, api_name="label_picture", **at_once)
        on.cancel.click(self.stop, None, on.status, queue=False, api_visibility="private")
        shown = [on.frame, on.alpha]
        on.alpha.input(self.repaint, shown, on.pictures, trigger_mode="always_last", **quick)
        on.frame.input(
            self.show_frame, shown, [*on.pictures, on.classes, on.pixel], trigger_mode="always_last", **quick
        )
        on.classes.click(self.choose_class, shown, [on.classes, *on.pictures], **quick)
        for picture in on.pictures:
            picture.select(self.choose_pixel, shown, [on.pixel, *on.pictures], **quick)
        on.pixel.click(self.move_pixel, shown, [on.pixel, *on.pictures], **quick)
        on.make_overlay.click(
            self.paint_video,
            [on.alpha],
            [*on.overlays, on.status],  # the status shows how far it is
            concurrency_limit=1,
            api_visibility="private",
        )
        self.blocks.unload(self.leave)

    # --- labelling

    def label(self, path: str | None, alpha: float, request: gr.Request) -> Iterator[Updates]:
        """Label what was given, and show the newest frame meanwhile."""
        visitor = visitor_of(request)
        if path is None:
            yield self._said("Give a video or a picture first.")
            return
        try:
            yield from self._label(path, alpha, visitor)
        except GeneratorExit:  # nobody reads on
            self.results.end(visitor)
            raise
        except Exception as error:  # whatever it is: a visitor is to read a sentence, not a stack
            updates = self._said(told(error, path))
            if self.results.of(visitor) is None:
                updates |= dict.fromkeys([self.parts.viewer, self.parts.details], gr.update(visible=False))
            yield updates

    def _label(self, path: str, alpha: float, visitor: str) -> Iterator[Updates]:
        source = open_upload(path, self.limits)
        with self.line.place(visitor) as place:
            for before in self.line.wait(place):
                yield {**self._busy(), self.parts.status: snippets.waiting(before)}
            if place.left:
                yield self._said("You left the line; nothing was labelled.", "plain")
                return
            classes, palette = len(self.models.classes), self.models.palette
            result = self.results.begin(visitor, source.name, classes, palette, source.rate)
            progress = Progress(source.length)
            yield self._beginning(progress)
            try:
                trouble = yield from self._run(path, result, progress, alpha)
                result.running = False
                ending = self._ending(result, progress, trouble, alpha, visitor)
            except Exception:
                self.results.end(visitor)
                raise
        yield ending

    def _run(
        self, path: str, result: Result, progress: Progress, alpha: float
    ) -> Generator[Updates, None, str | None]:
        """Label; returns what went wrong, if frames that came before are worth looking at."""
        shown = 0.0
        frames = self._frames_of(path, str(result.folder))
        try:
            for frame in frames:
                if result.stopped:
                    break
                result.add(frame)
                progress.done += 1
                if time.monotonic() - shown > SECONDS_BETWEEN_PICTURES:
                    yield {self.parts.status: snippets.progress_bar(progress), **self._newest(result, alpha)}
                    shown = time.monotonic()
        except EXPECTED as error:
            if not result.folder.is_dir():  # it had to make room, so there was nowhere to write
                return None
            if not result.frames:
                raise
            return told(error, path)
        finally:
            frames.close()
        return None

    def _busy(self) -> Updates:
        """No second one is begun meanwhile."""
        return {
            self.parts.cancel: gr.update(visible=True),
            self.parts.label_video: gr.update(interactive=False),
            self.parts.label_picture: gr.update(interactive=False),
        }

    def _ready(self) -> Updates:
        """Another one can be begun."""
        return {
            self.parts.cancel: gr.update(visible=False),
            self.parts.label_video: gr.update(interactive=True),
            self.parts.label_picture: gr.update(interactive=True),
        }

    def _said(self, why: str, kind: str = "error") -> Updates:
        """Why there is nothing new to look at."""
        return {**self._ready(), self.parts.status: snippets.status(why, kind)}

    def _beginning(self, progress: Progress) -> Updates:
        on = self.parts
        return {
            **self._busy(),
            on.status: snippets.progress_bar(progress),
            on.viewer: gr.update(visible=False),
            on.details: gr.update(visible=False),
            on.frame: gr.update(visible=False),
            on.pixel: snippets.HINT,
            **{one: gr.update(value=None, visible=False) for one in on.overlays},
        }

    def _newest(self, result: Result, alpha: float) -> Updates:
        number = len(result.frames) - 1
        updates = {self.parts.viewer: gr.update(visible=True), **self._painted(result, number, alpha)}
        if result.mark is not None:
            updates[self.parts.pixel] = self._pixel(result, number)
        return updates

    def _ending(self, result: Result, progress: Progress, trouble: str | None, alpha: float, visitor: str) -> Updates:
        """What stands there when no more frames come."""
        if self.results.of(visitor) is not result:  # it has no frame, or it had to make room
            self.results.end(visitor)
            return self._said(GONE if result.frames else "Stopped before the first frame.", "plain")
        on, done = self.parts, progress.done
        counted = f"{done} frame{'s' * (done != 1)}"
        of_all = f" of {progress.total}" if result.stopped and progress.total else ""
        text = f"{'Stopped after ' if result.stopped else ''}{counted}{of_all}, {progress.rate:.1f} frames/s."
        last = done - 1
        masks = answers.write_masks(result, self.models, result.folder / f"{result.name}_masks.zip")
        return {
            **self._ready(),
            on.status: snippets.status(f"{trouble} ({counted} done)", "error") if trouble else snippets.status(text),
            **self._newest(result, alpha),
            on.details: gr.update(visible=True),
            on.frame: gr.update(minimum=0, maximum=max(1, last), value=last, visible=done > 1),
            on.classes: self._class_list(result, last),
            on.over_time: gr.update(visible=done > 1),
            on.plot: flicker_plot(
                self.models.names, [answers.flicker(result, model) for model in range(len(self.models.names))]
            ),
            on.masks: str(masks),
            on.make_overlay: gr.update(visible=done > 1),  # a picture has its own button for that
        }

    def stop(self, request: gr.Request) -> str:
        """End the labelling after the frame at hand, or the waiting."""
        self.line.leave(visitor_of(request))
        self.results.stop(visitor_of(request))
        return snippets.status("Stopping …")

    def leave(self, request: gr.Request) -> None:
        """A visitor has closed the page."""
        self.line.leave(visitor_of(request))
        self.results.end(visitor_of(request))

    # --- looking at the result

    @in_words
    def repaint(self, number: int, alpha: float, request: gr.Request) -> Updates:
        """The same frame with another opacity."""
        result = self._result(request)
        return self._painted(result, frame_number(result, number), alpha)

    @in_words
    def show_frame(self, number: int, alpha: float, request: gr.Request) -> Updates:
        """Another frame, and what is to be said of it."""
        result = self._result(request)
        number = frame_number(result, number)
        return {
            **self._painted(result, number, alpha),
            self.parts.classes: self._class_list(result, number),
            self.parts.pixel: snippets.HINT if result.mark is None else self._pixel(result, number),
        }

    @in_words
    def choose_class(self, number: int, alpha: float, event: gr.EventData, request: gr.Request) -> Updates:
        """Show one class alone; the same again: all."""
        result = self._result(request)
        number, chosen = frame_number(result, number), int(event.choice)
        known = 0 <= chosen < len(self.models.classes)
        result.only = chosen if known and chosen != result.only else None
        return {self.parts.classes: self._class_list(result, number), **self._painted(result, number, alpha)}

    @in_words
    def choose_pixel(self, number: int, alpha: float, event: gr.SelectData, request: gr.Request) -> Updates:
        """Mark a pixel and say what the models think of it."""
        result = self._result(request)
        number = frame_number(result, number)
        step = answers.shrink(result.frames[number].size)
        x, y = (step * int(place) + step // 2 for place in event.index)
        result.mark = (y, x)
        return {self.parts.pixel: self._pixel(result, number), **self._painted(result, number, alpha)}

    @in_words
    def move_pixel(self, number: int, alpha: float, event: gr.EventData, request: gr.Request) -> Updates:
        """Mark the pixel in the middle, or one beside the marked one."""
        result = self._result(request)
        number = frame_number(result, number)
        result.mark = answers.moved(result.frames[number].size, result.mark, event.choice)
        return {self.parts.pixel: self._pixel(result, number), **self._painted(result, number, alpha)}

    @in_words
    def paint_video(self, alpha: float, request: gr.Request, progress: gr.Progress = gr.Progress()) -> Updates:  # noqa: B008
        """The overlay video of each model, at the opacity of the page."""
        result = self._result(request)
        updates: Updates = {}
        for model, (name, player) in enumerate(zip(self.models.names, self.parts.overlays, strict=True)):

            def tell(done: int, of: int, name: str = name) -> None:
                progress((done, of), desc=f"Painting {name}", unit="frames")

            base = result.folder / f"{result.name}_overlay{model + 1 if model else ''}"
            path = answers.write_overlay(result, self.models, model, alpha, base, tell)
            updates[player] = gr.update(value=str(path), visible=True)
        return updates

    # --- pieces

    def _result(self, request: gr.Request) -> Result:
        result = self.results.of(visitor_of(request))
        if result is None:
            raise gr.Error(GONE, print_exception=False)
        return result

    def _painted(self, result: Result, number: int, alpha: float) -> Updates:
        return {
            picture: str(answers.page_file(result, answers.painted(result, number, model, alpha)))
            for model, picture in enumerate(self.parts.pictures)
        }

    def _class_list(self, result: Result, number: int) -> str:
        shares = answers.class_shares(result, number)
        models = self.models
        listed = snippets.class_list(shares, models.classes, models.palette, models.names, result.only)
        agreed = answers.agreement(result, number)
        if agreed is None:
            return listed
        return listed + f'<p class="vss-hint">The models agree on {snippets.percent(agreed)} of the pixels.</p>'

    def _pixel(self, result: Result, number: int) -> str:
        assert result.mark is not None
        y, x = result.mark
        found = answers.at_pixel(result, number, y, x)
        return snippets.pixel(found, (x, y), self.models.classes, self.models.palette, self.models.names)


def visitor_of(request: gr.Request) -> str:
    """Who asks: the session of a page."""
    return str(request.session_hash)


def frame_number(result: Result, number: float) -> int:
    """The number of the frame that is shown: the slider's; while frames come, that of the newest."""
    last = len(result.frames) - 1
    return last if result.running else min(max(int(number), 0), last)


def told(error: Exception, path: str | None = None) -> str:
    """An error in one line for a visitor, who gave a file and knows nothing of folders here; all of it in the log.

    Args:
        error: that was caught; `Refused` is meant for visitors and not logged.
        path: of what the visitor gave.
    """
    if isinstance(error, Refused):
        return first_upper(without_folders(str(error), path), "it ", "the ")
    log.error("the page's visitor got an error%s", f" with {Path(path).name}" if path else "", exc_info=error)
    if isinstance(error, gr.Error):
        return without_folders(error.message, path)
    if isinstance(error, EXPECTED):
        return without_folders(str(error), path)
    return f"Something went wrong here ({type(error).__name__}), and nothing of it is kept; the page's log says more."


def without_folders(text: str, path: str | None) -> str:
    """One line, with files as their names; path: of a file that may be named in it."""
    if path is not None:
        text = text.replace(f"{Path(path).absolute().parent}{os.sep}", "")
    return re.sub(r"(?<![\w.])/(?:[^\s/'\"]+/)+", "", " ".join(text.split()))


def first_upper(text: str, *beginnings: str) -> str:
    """The text with a capital letter if it begins like a sentence, and not with a file's name."""
    return text[:1].upper() + text[1:] if text.startswith(beginnings) else text
