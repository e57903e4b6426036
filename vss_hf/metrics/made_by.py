"""What results of an evaluation say of how the labels were made."""

import json
from collections.abc import Mapping
from typing import Any


def beside_the_model(results: Mapping[str, Any]) -> str:
    """What made the labels beside the model's view of the frame: test-time augmentation, steps; empty: nothing."""
    made_by = {key: results[key] for key in ("tta", "score_steps", "label_steps") if results.get(key)}
    return "; ".join(f"{key} {json.dumps(value)}" for key, value in made_by.items())
