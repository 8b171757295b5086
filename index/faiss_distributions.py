"""Which FAISS is installed. All its distributions own the module `faiss`.

pip installs one over the other without a word; what is imported then is a mixture of both, and
taking one of them away breaks the other.
"""

from __future__ import annotations

from importlib.metadata import distributions

from index.errors import FaissConflict

# Official and community packages, conda's name among them.
NAMES = (
    "faiss",
    "faiss-cpu",
    "faiss-gpu",
    "faiss-gpu-cuvs",
    "faiss-gpu-cu11",
    "faiss-gpu-cu12",
    "faiss-cuda",
)


def installed() -> tuple[str, ...]:
    """Names of the distributions of FAISS that Python finds, without importing any."""
    return tuple(name for name in NAMES if next(iter(distributions(name=name)), None))


def check_one_faiss() -> None:
    """Refuse two distributions of FAISS side by side.

    Raises:
        FaissConflict: it says what to uninstall.
    """
    found = installed()
    if len(found) > 1:
        names = " ".join(found)
        raise FaissConflict(
            f"expected one distribution of FAISS, found {' and '.join(found)}: both own the module "
            f"`faiss`. Run `pip uninstall {names}`, then install one of them again: faiss-cpu, or "
            "`make gpu` for faiss-gpu"
        )
