"""The section `data` of a recipe: what is evaluated on, what is trained on, and how its samples are drawn."""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from vss_hf.data.sources import SOURCES
from vss_hf.fields import known_or_raise, of_type, shown

from .draws import ON_BAD_SAMPLE


SAMPLING = ("every_frame", "every_nth", "one_per_video", "class_balanced")
BALANCE_BY = ("videos", "pixels")
MIX_BY = ("frames", "videos", "weights")


@dataclass
class SourceRecipe:
    """One data set that is trained on. What is left out is taken from the section `data`.

    Args:
        root: its folder, packed folder or Hub id; default `data.root`.
        split: default `data.train_split`.
        source: its layout, as for `vss_hf.data.open_split`; default "vspw", or `data.source` without a `root`.
        table: maps its classes to VSPW's: "default", "liberal" or a CSV file; default none, or `data.table` without
            a `root`.
        min_labelled: frames of which a smaller share of the pixels is labelled are left out, 0..1.
        weight: see `mix_by`.
        sampling, every_nth, balance_by: as in `data`, for this source.
    """

    root: str | None = None
    split: str | None = None
    source: str | None = None
    table: str | None = None
    min_labelled: float = 0.0
    weight: float = 1.0
    sampling: str | None = None
    every_nth: int | None = None
    balance_by: str | None = None

    def check(self, place: str) -> None:
        """Raise for values outside their ranges; `place` is how messages call this source."""
        if not 0 <= self.min_labelled <= 1:
            raise ValueError(f"{place}.min_labelled={self.min_labelled}: expected a share of the pixels, 0 to 1")
        if not 0 < self.weight < math.inf:
            raise ValueError(f"{place}.weight={self.weight}: expected a number above 0; leave out unwanted sources")
        if self.source is not None:
            known_or_raise(self.source, SOURCES, f"{place}.source has no choice")
        check_sampling(self.sampling, self.every_nth, self.balance_by, place)


@dataclass
class DataRecipe:
    """What is evaluated on, what is trained on, and how its samples are drawn.

    Args:
        root: the data set that is evaluated on and, without `sources`, trained on: a folder in VSPW's layout, one
            packed by `vss-hf data parquet`, or the Hub id of such a data set.
        train_split: split to train on.
        eval_split: split to evaluate on.
        source: the layout of `root`, as for `vss_hf.data.open_split`.
        table: maps the classes of `root` to VSPW's: "default", "liberal" or a CSV file.
        sources: data sets to train on instead, each with the fields of `SourceRecipe`. They are mixed; see `mix_by`.
        sampling: which frames one pass over a source holds. `every_frame`; `every_nth`: frames 0, n, 2n, ... of each
            video; `one_per_video`: a random frame of each, another one in every pass; `class_balanced`: as many draws
            as there are frames, frames with rare classes more often.
        every_nth: the n of `every_nth`.
        balance_by: for `class_balanced`, which classes are rare: those in few `videos` or with few `pixels`.
        mix_by: a source's share of the samples goes with its weight times: the samples of one pass over it
            (`frames`; so with equal weights all sources end their passes together), its number of videos (`videos`),
            or nothing else (`weights`).
        mix_temperature: T from 1 up brings the shares closer together: numbers of frames or videos count as
            n ** (1 / T).
        shortest_edge: frames are resized to this many pixels on their shorter side for evaluation and inference
            (written into the image processor); None: as they are.
        streaming: read the training frames as a stream instead of by random access; the samples and their order are
            the same. A data set on the Hub is then fetched while it is read, in an order of its own, instead of
            downloaded before.
        cache: keep decoded training frames in memory (4 bytes a pixel; each worker keeps its own); for small data
            sets seen many times.
        on_bad_sample: what a training frame that is damaged or gone does: `raise` stops the run and names it, `skip`
            takes the next readable one of its source, counts it and warns once per frame.
    """

    root: str = ""
    train_split: str = "train"
    eval_split: str = "val"
    source: str = "vspw"
    table: str | None = None
    sources: list[dict[str, Any]] = field(default_factory=list)
    sampling: str = "every_frame"
    every_nth: int | None = None
    balance_by: str | None = None
    mix_by: str = "frames"
    mix_temperature: float = 1.0
    shortest_edge: int | None = None
    streaming: bool = False
    cache: bool = False
    on_bad_sample: str = "raise"

    def __post_init__(self):
        if not self.root:
            raise ValueError("data.root is empty: give a folder in VSPW layout, e.g. --data.root path/to/VSPW_480p")
        if self.shortest_edge is not None and self.shortest_edge < 32:
            raise ValueError(f"data.shortest_edge={self.shortest_edge}: expected at least 32 pixels")
        if self.cache and self.streaming:
            raise ValueError("data.cache with data.streaming: a stream keeps nothing; leave one of them out")
        known_or_raise(self.on_bad_sample, ON_BAD_SAMPLE, "data.on_bad_sample has no choice")
        known_or_raise(self.source, SOURCES, "data.source has no choice")
        known_or_raise(self.mix_by, MIX_BY, "data.mix_by has no choice")
        if not 1 <= self.mix_temperature < math.inf:
            raise ValueError(f"data.mix_temperature={self.mix_temperature}: expected a number from 1")
        if self.mix_temperature != 1 and self.mix_by == "weights":
            raise ValueError("data.mix_temperature with mix_by: weights has no numbers of frames or videos to temper")
        check_sampling(self.sampling, self.every_nth, self.balance_by, "data")
        self.training_sources()

    def training_sources(self) -> list[SourceRecipe]:
        """What is trained on, with everything that was left out filled in."""
        found = []
        for place, given in enumerate(self.sources or [{}]):
            source = parse_source(given, f"data.sources[{place}]")
            if source.root is None:  # the data set that is evaluated on, too
                source.root = self.root
                source.source, source.table = source.source or self.source, source.table or self.table
            source.source, source.split = source.source or "vspw", source.split or self.train_split
            if source.sampling is None:
                source.sampling, source.every_nth = self.sampling, source.every_nth or self.every_nth
                source.balance_by = source.balance_by or self.balance_by
            source.check(f"data.sources[{place}]")
            found.append(source)
        return found


def parse_source(given: Any, place: str) -> SourceRecipe:
    """A source from its fields as they stand in the recipe; `place` is how messages call it."""
    if not isinstance(given, dict):
        raise ValueError(f"{place}: expected fields such as {{root: path/to/COCO, weight: 1}}; found {shown(given)}")
    hints = get_type_hints(SourceRecipe)
    for key in given:
        known_or_raise(key, [f.name for f in dataclasses.fields(SourceRecipe)], f"{place} has no field")
    source = SourceRecipe(**{key: of_type(value, hints[key], f"{place}.{key}") for key, value in given.items()})
    source.check(place)
    return source


def check_sampling(sampling: str | None, every_nth: int | None, balance_by: str | None, place: str) -> None:
    """Raise for a way of drawing that does not exist or lacks its number; None for `sampling`: it comes later."""
    if balance_by is not None:
        known_or_raise(balance_by, BALANCE_BY, f"{place}.balance_by has no choice")
    if every_nth is not None and every_nth < 1:
        raise ValueError(f"{place}.every_nth={every_nth}: expected at least 1")
    if sampling is None:
        return
    known_or_raise(sampling, SAMPLING, f"{place}.sampling has no choice")
    if (sampling == "every_nth") != (every_nth is not None):
        raise ValueError(
            f"{place}: sampling: every_nth and every_nth: N belong together; found sampling: {sampling} and "
            f"every_nth: {every_nth}"
        )
    if balance_by is not None and sampling != "class_balanced":
        raise ValueError(f"{place}.balance_by is for sampling: class_balanced; found sampling: {sampling}")
