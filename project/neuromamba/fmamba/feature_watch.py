"""Whether pre-training still helps: says so once, in words, when it seems not to."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.trainer.states import TrainerFn

from neuromamba.fmamba.dynamic_skill import remedy
from neuromamba.fmamba.watched_facts import HOW_ACQUIRED, MOTION

logger = logging.getLogger(__name__)
PATIENCE = 5  # validations without a lower loss, or with too little dynamic skill
COLLAPSED = 0.25  # of the highest rank, or of the first spread
VANISHED = 1e-4  # spread of features, whose root mean square is about 1
FORGOTTEN = 0.1  # of the kNN accuracies
SLIGHT = 0.02  # a dynamic skill that is as good as none, unless it rises
RISE = 0.002  # of a slight dynamic skill since the first validation
FAR = 10  # validations until a dynamic skill below 0 reaches 0, at its pace over the last 3
RECOGNISED = 0.5  # of the windows of subjects: their features tell them apart


class FeatureWatch(Callback):
    """Warns of features that collapse, stop improving, or hold little that is of use.

    It reads what ``PretrainModule`` logs at the end of a validation, and stops nothing.

    Args:
        scaling: ``--input_scaling_method``, for remedies.
    """

    def __init__(self, scaling: str = "") -> None:
        self.scaling = scaling
        self._best: dict[str, float] = {}
        self._first_spread = math.nan
        self._since_lower = 0
        self._skills: list[float] = []
        self._told: set[str] = set()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the new values; not those of the sanity check, nor after the training."""
        # trainer.training is false here: the stage within a training is that of validation.
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        found = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
        for kind, text in self.look(found).items():
            if kind not in self._told and trainer.is_global_zero:
                logger.warning("warning: epoch %d: %s", trainer.current_epoch + 1, text)
            self._told.add(kind)

    def look(self, found: dict[str, float]) -> dict[str, str]:
        """Kind of what is amiss after a validation -> a sentence.

        Args:
            found: ``val/loss``, ``val/feature_rank``, ``val/feature_std``, ``val/knn_*``,
                ``val/dynamic_skill`` and ``val/watch_*``, as far as they are there.
        """
        self._skills.append(found.get("val/dynamic_skill", math.nan))
        checks = {
            "stalled": self._stalled(found["val/loss"]),
            "collapse": self._collapse(found),
            "dynamics": self._no_dynamics(),
            "identity": self._only_identity(found),
        }
        amiss = {kind: text for kind, text in checks.items() if text is not None}
        for name, value in found.items():
            best = self._best.get(name, -math.inf)
            if value < best - FORGOTTEN and best > self._worth_keeping(name, found):
                amiss[name] = (
                    f"{name} has fallen from {best:.3f} to {value:.3f}: the features forget what "
                    f"tells {name.removeprefix('val/knn_')}s apart."
                )
        for name, value in found.items():
            better = min if name == "val/loss" else max
            if not math.isnan(value):
                self._best[name] = better(self._best.get(name, value), value)
        return amiss

    @staticmethod
    def _worth_keeping(name: str, found: Mapping[str, float]) -> float:
        """The kNN accuracy above which a fall is news, and not one of chance; else infinity."""
        fact = name.removeprefix("val/knn_")
        if fact == name or fact.endswith("_chance"):
            return math.inf
        limit = found.get(f"val/watch_{fact}_limit", math.nan)
        return RECOGNISED if math.isnan(limit) else limit

    def _stalled(self, loss: float) -> str | None:
        best = self._best.get("val/loss", math.inf)
        self._since_lower = 0 if loss < best else self._since_lower + 1
        if self._since_lower < PATIENCE:
            return None
        return (
            f"val/loss has not fallen below {best:.4g} for {self._since_lower} validations; "
            f"pre-training has stopped helping here. best.ckpt is the one to use."
        )

    def _collapse(self, found: Mapping[str, float]) -> str | None:
        rank, spread = (found.get(f"val/feature_{name}", math.nan) for name in ("rank", "std"))
        if math.isnan(self._first_spread):
            self._first_spread = spread
        highest = self._best.get("val/feature_rank", -math.inf)
        if rank < COLLAPSED * highest or spread < COLLAPSED * self._first_spread:
            return (
                f"the features collapse: effective rank {rank:.1f}, at most {highest:.1f} before; "
                f"spread {spread:.3g}, {self._first_spread:.3g} at first. Lower --learning_rate."
            )
        if spread < VANISHED:
            return (
                f"the features are nearly the same for all windows: their standard deviation over "
                f"windows is {spread:.2g}. Lower --learning_rate, and look at the runs with "
                f"neuromamba quality."
            )
        return None

    def _no_dynamics(self) -> str | None:
        """The dynamic skill stays below 0, or close to 0 without rising."""
        skills = self._skills
        if len(skills) < PATIENCE or any(map(math.isnan, skills)):
            return None
        first, latest, best = skills[0], skills[-1], max(skills)
        below = best < 0 and latest + FAR * (latest - skills[-4]) / 3 < 0
        if below or 0 <= best < min(SLIGHT, first + RISE):
            what = "stays below 0" if best < 0 else "does not rise above 0"
            return (
                f"the dynamic skill {what}: {latest:.3f} after {len(skills)} validations, "
                f"{first:.3f} after the first; so far the model has not learned how the signal "
                f"changes over time; {remedy(self.scaling)} (docs/watch_pretraining.md)."
            )
        return None

    def _only_identity(self, found: Mapping[str, float]) -> str | None:
        """The features show who or how it was scanned, and nothing else that is watched."""
        limits = {
            name.removeprefix("val/watch_").removesuffix("_limit"): value
            for name, value in found.items()
            if name.startswith("val/watch_") and name.endswith("_limit") and not math.isnan(value)
        }
        told = {name: found[f"val/watch_{name}"] for name in limits}
        above = {name: value for name, value in told.items() if value > limits[name]}
        nuisances = (*HOW_ACQUIRED, MOTION)
        others = [name for name in told if name not in nuisances]
        shown = [f"{name} ({value:.2f})" for name, value in above.items() if name in nuisances]
        recognised = found.get("val/knn_subject", math.nan)
        if recognised > RECOGNISED:
            shown.insert(0, f"subject ({recognised:.2f} of their windows)")
        early = len(self._skills) < PATIENCE
        if early or not shown or not others or any(name in above for name in others):
            return None
        if self._skills[-1] >= SLIGHT:
            return None  # the dynamics are something else
        return (
            f"the features predict {', '.join(shown)}, but not {', '.join(others)}, after "
            f"{len(self._skills)} validations: they may hold little but anatomy or how a run was "
            f"acquired; {remedy(self.scaling)}, and judge a checkpoint by neuromamba probe "
            f"(docs/watch_pretraining.md)."
        )
