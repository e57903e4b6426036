"""Two small models, a clip, and what the demo makes of them."""

import pytest
from demo_clip import FRAMES
from tiny_models import moving_frames, save_model, write_video

from vss_hf.demo.labelling import labelled_frames, open_models
from vss_hf.demo.results import Results
from vss_hf.demo.uploads import Limits, open_upload


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """An image model and a video model of the same classes."""
    root = tmp_path_factory.mktemp("models")
    return [save_model(root / "still-ocrnet"), save_model(root / "st-ppm", video=True)]


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    """A video of 5 frames of 48 x 64 pixels."""
    return write_video(tmp_path_factory.mktemp("clip") / "my clip.mp4", moving_frames(FRAMES))


@pytest.fixture(scope="session")
def models(folders):
    return open_models([str(folder) for folder in folders], "cpu")


@pytest.fixture(scope="session")
def result(models, clip):
    """What the page holds after both models have labelled the clip."""
    results = Results(Limits())
    source = open_upload(clip, Limits())
    made = results.begin("somebody", source.name, len(models.classes), models.palette, source.rate)
    for frame in labelled_frames(models, source, Limits()):
        made.add(frame)
    yield made
    results.close()
    assert not made.folder.exists()
