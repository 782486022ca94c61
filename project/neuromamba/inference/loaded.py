"""What a user does with a trained model in Python; ``neuromamba.load`` gives one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neuromamba.data.ingest.sources import PassedOver
from neuromamba.inference.embed import Embedding, embed_scan
from neuromamba.inference.explain import ExplainOptions, Explanation, explain_scan
from neuromamba.inference.images import prepare_in_memory
from neuromamba.inference.many import Outcome, each_scan
from neuromamba.inference.model import TrainedModel
from neuromamba.inference.predict import Prediction, predict_scan, require_head
from neuromamba.inference.prepare import prepare_scan
from neuromamba.inference.prepared import PreparedScan, require_prepared
from neuromamba.inference.references import evenly, reference_of
from neuromamba.inference.rollout import Rollout, rollout_scan
from neuromamba.inference.sources import Places, ScanFile, find_scans, only_scan


class LoadedModel(TrainedModel):
    """A trained model, loaded once and used on many scans::

        model = neuromamba.load("output/PROJECT/RUN")
        scan = model.prepare("sub-01_task-rest_bold.nii.gz")
        print(model.predict(scan))

    A prepared scan can be given to ``predict``, ``embed``, ``explain`` and ``rollout``.
    """

    def find(self, places: Places) -> tuple[list[ScanFile], list[PassedOver]]:
        """List the scans of files, folders and stores; see ``sources.find_scans``."""
        return find_scans(places, native=self.contract.native)

    def prepare(
        self,
        bold: Any,
        tr: float | None = None,
        mask: str | Path | None = None,
        *,
        affine: Any = None,
        strict: bool = False,
    ) -> PreparedScan:
        """Bring a scan to what the model was trained on.

        Args:
            bold: path of a NIfTI file or of a run of a store; a nibabel image; or an array
                [X, Y, Z, T] with its ``affine``.
            tr: repetition time in seconds; needed for an array.
            mask: path of a mask image on the scan's grid, "nonzero" or "computed".
            affine: [4, 4], voxel indices -> mm; of an array only.
            strict: refuse a scan with any problem.

        Raises:
            UserInputError: it cannot be used; names the reason and a remedy.
        """

        def prepare(scan: ScanFile) -> PreparedScan:
            return prepare_scan(scan, self.contract, tr=tr, mask=mask, strict=strict)

        if isinstance(bold, ScanFile):
            return prepare(bold)
        if isinstance(bold, str | Path):
            return prepare(only_scan(self.find([bold])[0], bold))
        return prepare_in_memory(bold, affine, tr, prepare)

    def predict(self, scan: PreparedScan) -> Prediction:
        """Predict of a prepared scan; see ``Prediction``."""
        require_prepared(scan, "predict", PreparedScan)
        return predict_scan(self, scan)

    def predict_many(
        self,
        bold: Places,
        *,
        tr: float | None = None,
        mask: str | Path | None = None,
        strict: bool = False,
        workers: int = 1,
    ) -> list[Outcome[Prediction]]:
        """Predict of many scans with the model that is loaded once.

        Args:
            bold: files, folders or stores, one or a list; see ``find_scans``.
            tr, mask, strict: as of ``prepare_scan``.
            workers: scans that are prepared ahead at a time.

        Returns:
            One outcome per scan, in their order; its ``result`` is the ``Prediction``.

        Raises:
            UserInputError: the model has no task; nothing is found.
        """
        require_head(self, "predict")
        scans, _ = self.find(bold)
        options: dict[str, Any] = {"tr": tr, "mask": mask, "strict": strict, "workers": workers}
        return list(each_scan(self, scans, self.predict, **options))

    def embed(self, scan: PreparedScan, **options: Any) -> Embedding:
        """Embed a prepared scan; see ``embed.embed_scan``."""
        require_prepared(scan, "embed", PreparedScan)
        return embed_scan(self, scan, **options)

    def explain(
        self, scan: PreparedScan, *, references: Sequence[PreparedScan] = (), **options: Any
    ) -> Explanation:
        """Explain the prediction of a prepared scan.

        Args:
            scan: prepared.
            references: prepared scans to compare it with, in place of its mean: several people, of
                all classes; those of its own subject are left out.
            options: fields of ``explain.ExplainOptions``: method, target, steps ...
        """
        require_prepared(scan, "explain", PreparedScan)
        for one in references:
            require_prepared(one, "explain, references", PreparedScan)
        windows = [reference_of(self, references[i]) for i in evenly(len(references))]
        return explain_scan(self, scan, ExplainOptions(**options), windows)

    def rollout(self, scan: PreparedScan, frames: int, **options: Any) -> Rollout:
        """Generate the frames after the first of a prepared scan; see ``rollout.rollout_scan``."""
        require_prepared(scan, "rollout", PreparedScan)
        return rollout_scan(self, scan, frames=frames, **options)
