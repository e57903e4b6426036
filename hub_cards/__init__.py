"""Model cards, evaluation results and pushes in the forms that the Hugging Face Hub reads."""

from .card import render_card, write_card
from .eval_results import model_index, write_eval_results
from .push import PushError, PushResult, prepare_repo, push_folder


__all__ = [
    "PushError",
    "PushResult",
    "model_index",
    "prepare_repo",
    "push_folder",
    "render_card",
    "write_card",
    "write_eval_results",
]
