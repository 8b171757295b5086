"""What the paper reports for the frozen encoders, to stand beside one's own figures.

Source: arXiv 2510.17960, tables of downstream results.
"""

from __future__ import annotations

from collections.abc import Sequence

from training.transformer_config import TransformerConfig

Scores = dict[tuple[str, ...], dict[str, dict[str, float]]]  # modalities -> model -> target

MODELS = ("aion-base", "aion-large", "aion-xlarge")
SIZES = dict(zip(((768, 12), (1024, 24), (2048, 24)), MODELS, strict=True))  # dim, encoder depth
PROPERTIES = ("redshift", "log_mass", "age", "log_z_mw", "log_ssfr")


def _properties(*rows: tuple[float, ...]) -> dict[str, dict[str, float]]:
    """One row a model of R2, in the order of PROPERTIES."""
    return {
        model: dict(zip(PROPERTIES, row, strict=True))
        for model, row in zip(MODELS, rows, strict=True)
    }


# Galaxy Zoo classes x Legacy Survey images, accuracy of an MLP on mean vectors.
MORPHOLOGY: Scores = {
    ("image",): {
        "aion-base": {"class": 0.840},
        "aion-large": {"class": 0.872},
        "aion-xlarge": {"class": 0.865},
    }
}
# PROVABGS, R2 after attentive pooling.
GALAXY_PROPERTIES: Scores = {
    ("photometry",): _properties(
        (0.75, 0.72, 0.35, 0.41, 0.38),
        (0.76, 0.73, 0.36, 0.41, 0.39),
        (0.79, 0.76, 0.31, 0.38, 0.48),
    ),
    ("photometry", "image"): _properties(
        (0.93, 0.89, 0.45, 0.49, 0.64),
        (0.94, 0.89, 0.45, 0.50, 0.64),
        (0.94, 0.89, 0.45, 0.49, 0.64),
    ),
    ("photometry", "image", "spectrum"): _properties(
        (1.00, 0.96, 0.53, 0.61, 0.72),
        (1.00, 0.96, 0.53, 0.62, 0.73),
        (0.99, 0.95, 0.53, 0.62, 0.73),
    ),
}
REDSHIFT: Scores = {
    modalities: {model: {"redshift": row["redshift"]} for model, row in models.items()}
    for modalities, models in GALAXY_PROPERTIES.items()
}


def rows_beside(
    scores: Scores, modalities: Sequence[str], config: TransformerConfig
) -> dict[str, dict[str, float]]:
    """The row of the model of an encoder's size; those of all models beside any other encoder."""
    rows = scores.get(tuple(modalities), {})
    size = SIZES.get((config.dim, config.encoder_depth), "")
    return {size: rows[size]} if size in rows else rows
