"""Names of VOLO's ImageNet classifiers, the official ones and timm's, in terms of VOLOBackbone: they are the same."""

import warnings

import torch

from vss_hf.modeling.configuration_volo import GRID_STRIDE, VOLOConfig

from .tables import Rename, Table


CLASSIFIER = "part of the classifier"


def volo_table(config: VOLOConfig) -> Table:
    """Rows for the official `.pth.tar` files and timm's models.

    Args:
        config: of the backbone. Position embeddings of another grid than that of `config.image_size` are resized, with
            a warning.
    """
    # Here, because it loads timm, which whoever has a model of VOLO has loaded already.
    from vss_hf.modeling.modeling_volo import resize_position_embedding

    def to_own_grid(embedding: torch.Tensor) -> torch.Tensor:
        rows, columns = embedding.shape[1:3]
        if (rows, columns) != config.grid:
            warnings.warn(
                f"pos_embed has {rows} x {columns} cells and was resized to {config.grid[0]} x {config.grid[1]} "
                f"(image_size={config.image_size}); image_size={[rows * GRID_STRIDE, columns * GRID_STRIDE]} keeps it "
                "as it is, and images of any size work all the same",
                stacklevel=2,
            )
        return resize_position_embedding(embedding, config.grid)

    last_stage = config.stage_names[-1]
    if config.tap_norm and last_stage in (config.out_features or ()):
        # The classifier's second head read the last stage's tokens, one by one, through this norm.
        norm = Rename(r"norm\.(weight|bias)", rf"norms.{last_stage}.\1")
    else:
        norm = Rename(r"norm\.(weight|bias)", None, reason="the classifier's norm")
    return Table(
        (
            Rename(r"pos_embed", "pos_embed", change=to_own_grid),
            Rename(r"((?:patch_embed|network)\..*)", r"\1"),
            Rename(r"post_network\..*|cls_token", None, reason="class attention, " + CLASSIFIER),
            norm,
            Rename(r"(aux_)?head\.(weight|bias)", None, reason=CLASSIFIER),
        ),
        kept=((r"norms\..*", "the classifier has no norms of single feature maps"),),
    )
