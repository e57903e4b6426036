"""Cards of models and data sets, evaluation results and pushes in the forms that the Hugging Face Hub reads."""

from .card import render_card, write_card
from .dataset_card import render_dataset_card, write_dataset_card
from .eval_results import model_index, write_eval_results
from .push_dataset import push_dataset
from .push_model import prepare_repo, push_folder
from .push_result import PushError, PushResult


__all__ = [
    "PushError",
    "PushResult",
    "model_index",
    "prepare_repo",
    "push_dataset",
    "push_folder",
    "render_card",
    "render_dataset_card",
    "write_card",
    "write_dataset_card",
    "write_eval_results",
]
