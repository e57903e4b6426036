"""Small video models come from the tests of the models."""

import sys
from pathlib import Path


sys.path.append(str(Path(__file__).parents[1] / "modeling"))  # for `tiny_video_models`, when only these are collected
