"""A sky to try things on: simulated, built, measured, and kept for the next time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import discovery
from discovery import Evaluation
from index.building import build
from training import encoder

LABELS = ("spiral", "merger", "lens")
FEWEST = 40  # objects
FEWEST_OF_A_CLASS = 4  # so that a small demo, too, has something to find

Report = Callable[[str, int, int], None]  # stage, done, total


@dataclass(frozen=True, slots=True)
class Demo:
    """What `prepare` made."""

    sky: Path
    labels: Path  # CSV with the classes that were simulated


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """How well the demo sky finds its classes."""

    num_objects: int
    version: int
    view: str
    evaluations: tuple[Evaluation, ...]

    def to_json(self) -> dict[str, object]:
        """The document of `skykin demo --check --json`."""
        return {
            "objects": self.num_objects,
            "version": self.version,
            "view": self.view,
            "labels": {found.label: found.to_json() for found in self.evaluations},
        }


def prepare(
    folder: Path, *, num_objects: int, encoder_name: str = "nano", progress: Report
) -> Demo:
    """Simulate a survey and build a sky of it, as far as that is not done yet.

    Args:
        folder: Kept between calls; other counts and other encoders stand beside each other in it.
        num_objects: To simulate.
        encoder_name: Of a shipped encoder, or its folder.
        progress: Called with stage, done and total.

    Raises:
        ValueError: num_objects is below FEWEST.
        ModuleNotFoundError: what the simulation needs is not installed.
    """
    from training.surveys.simulated import clear_sky, simulate  # needs the extra `train`

    if num_objects < FEWEST:
        raise ValueError(f"a demo needs {FEWEST} objects or more, got {num_objects}")
    rare = FEWEST_OF_A_CLASS / num_objects
    config = clear_sky(num_objects=num_objects, merger=max(0.02, rare), lens=max(0.01, rare))
    folder = folder.expanduser()
    made_by = encoder.load(encoder_name).hash[:12]
    survey = simulate(
        config,
        folder / f"survey-{num_objects}",
        progress=lambda done, total: progress("simulating", done, total),
    )
    sky = folder / f"sky-{num_objects}-{made_by}"
    build(sky, [survey], survey="simulated", encoder=encoder_name, progress=progress)
    return Demo(sky, survey / "labels.csv")


def measure(demo: Demo, *, progress: Report) -> Figures:
    """Search for every class of LABELS and count how often it is found."""
    sky = discovery.open(demo.sky)
    view = sky.views[0]
    found = []
    for number, label in enumerate(LABELS):
        progress("measuring", number, len(LABELS))
        found.append(discovery.evaluate(sky, demo.labels, label, view=view))
    progress("measuring", len(LABELS), len(LABELS))
    return Figures(
        num_objects=sky.num_objects,
        version=sky.version,
        view=view,
        evaluations=tuple(found),
    )
