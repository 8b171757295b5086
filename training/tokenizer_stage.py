"""The first stage of a recipe: fit every tokenizer that the recipe's model needs.

codecs/<name>/      tokenizers         tokenizers.json    figures on held-out objects
<name>_loss.csv     curves             fitting/<name>/    checkpoints
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from training.field_fitting import fit_field_tokenizer
from training.image_fitting import fit_image_tokenizer
from training.labels import object_numbers
from training.modalities import STREAM
from training.recipe import Recipe
from training.scalar_fitting import fit_ellipses, fit_scalars
from training.spectrum_fitting import fit_spectrum_tokenizer
from training.stages import Figures, Progress, batches, open_labels, prepare_data, report
from training.training_data import collect

CATALOG = "catalog"


def fit_tokenizers(
    recipe: Recipe, out: Path, progress: Progress, *, num_workers: int | None = None
) -> Figures:
    """Fit the tokenizers of all streams of the recipe's model on the recipe's data.

    A fit that was interrupted goes on, and one that is complete is not done again.

    Returns:
        Reconstruction figures on held-out objects, also written to tokenizers.json.

    Raises:
        ValueError: a stream of the model has no data; names it.
    """
    keys = recipe.encoder.trained.domains_in
    kinds = {STREAM[key].kind for key in keys}
    files = prepare_data(recipe, out, progress, num_workers=num_workers)
    data = collect(
        batches(recipe.data.survey, files, progress),
        max_images=recipe.image_tokenizer.max_images if recipe.image_tokenizer else 0,
        max_spectra=recipe.spectrum_tokenizer.max_spectra if recipe.spectrum_tokenizer else 0,
        max_fields=recipe.field_tokenizer.max_fields if recipe.field_tokenizer else 0,
    )
    tables = {key: rows for key, rows in data.scalars.items() if key in keys}
    missing = [
        key for key in keys if STREAM[key].kind in ("scalar", "multi_scalar") and key not in tables
    ]
    if missing:
        raise ValueError(f"the data has no value of {missing[0]}, a stream of the model")
    _, figures = fit_scalars(
        tables,
        num_bins=recipe.scalars.num_bins,
        redshift=recipe.scalars.redshift,
        reservoir_size=recipe.scalars.reservoir_size,
        folder=out,
    )
    found: Figures = {"scalars": figures}
    if CATALOG in keys:
        if not data.ellipses:
            raise ValueError(f"the data has no sources around objects, for the stream {CATALOG}")
        fit_ellipses(data.ellipses, recipe.scalars.ellipses, folder=out)
    if "image" in kinds:
        image = recipe.image_tokenizer
        assert image is not None  # read_recipe asks for it
        found["image"] = fit_image_tokenizer(
            data.images, image.model, image.training, folder=out,
            labels=open_labels(recipe, out).of(object_numbers(data.image_ids)),
            progress=_shown(progress, "image"),
        ).figures  # fmt: skip
    if "spectrum" in kinds:
        spectrum = recipe.spectrum_tokenizer
        assert spectrum is not None  # read_recipe asks for it
        found["spectrum"] = fit_spectrum_tokenizer(
            data.spectra, spectrum.model, spectrum.training, folder=out,
            progress=_shown(progress, "spectrum"),
        ).figures  # fmt: skip
    if "field" in kinds:
        field = recipe.field_tokenizer
        assert field is not None  # read_recipe asks for it
        found["segmentation_map"] = fit_field_tokenizer(
            data.fields, field.model, field.training, folder=out,
            progress=_shown(progress, "segmentation map"),
        ).figures  # fmt: skip
    return report(out, "tokenizers", found)


def _shown(progress: Progress, what: str) -> Callable[[int, int, float], None]:
    return lambda step, steps, loss: progress(f"fitting the {what} tokenizer", step / steps)
