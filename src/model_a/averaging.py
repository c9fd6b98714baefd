"""What one member's predictions are means of: several fits of a fold, several views, a final fit.

Each fit lies at a base of its own: `model_a_fold0`, `model_a_fold0_seed1`, `model_a_final`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src import artifacts, paths
from src.model_a.views import PLAIN, changes_of

SEED_STEP = 1000  # between the seeds of a fold's fits, so that no two folds share one


@dataclass(frozen=True)
class Averaging:
    """`seeds` fits of each fold, `views` of each image, and a `final_fit` on all rows.

    The final fit predicts test and new images beside the folds, with as much weight as one of
    them. Raises ValueError for a value out of range.
    """

    seeds: int
    views: tuple[str, ...]
    final_fit: bool

    def __post_init__(self):
        if self.seeds < 1:
            raise ValueError(f"seeds must be at least 1, got {self.seeds}")
        changes_of(self.views)

    @classmethod
    def from_parameters(cls, values: Mapping[str, Any]) -> "Averaging":
        """From notebook 02's parameters; other names are ignored."""
        return cls(values["seeds"], tuple(values["views"]), values["final_fit"])

    def as_json(self) -> dict:
        """For `members.json`."""
        return {"seeds": self.seeds, "views": list(self.views), "final_fit": self.final_fit}

    def fold_bases(self, output: Path, name: str, fold: int) -> list[Path]:
        """Where the fits without `fold` lie, one a seed."""
        return self._seed_bases(output / paths.FOLD.format(variant=name, fold=fold))

    def final_bases(self, output: Path, name: str) -> list[Path]:
        """Where the final fits lie, one a seed; empty without a final fit."""
        return self._seed_bases(output / paths.FINAL.format(variant=name)) if self.final_fit else []

    def _seed_bases(self, base: Path) -> list[Path]:
        further = [base.with_name(f"{base.name}_seed{n}") for n in range(1, self.seeds)]
        return [base, *further]


SINGLE = Averaging(1, PLAIN, final_fit=False)


def recorded_averaging(output: Path) -> Averaging:
    """What notebook 02 recorded for the members of Model A in `output`."""
    file = output / paths.MEMBERS_A
    recorded = artifacts.load_json(file).get("averaging") if file.exists() else None
    return Averaging.from_parameters(recorded) if recorded else SINGLE
