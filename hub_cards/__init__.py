"""Model cards and evaluation results in the forms that the Hugging Face Hub reads."""

from .card import render_card, write_card
from .eval_results import model_index, write_eval_results


__all__ = ["model_index", "render_card", "write_card", "write_eval_results"]
