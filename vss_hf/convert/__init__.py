"""Official checkpoints of other projects, filled into this package's models."""

from .state_dict import ConversionReport, load_reference_state_dict, read_reference_file


__all__ = ["ConversionReport", "load_reference_state_dict", "read_reference_file"]
