"""Details of each data set: the one place for its files, labels and defaults.

To add a data set, add an entry to ``DATASETS``, or use ``Own``, which takes all of it from flags.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from neuromamba.common.errors import UserInputError, look_up
from neuromamba.config.tasks import TASKS


@dataclass(frozen=True)
class DatasetDetails:
    """A data set of ROI time series.

    Attributes:
        file: below the data folder; ``.npy`` and ``.pickle`` hold a list of scans, ``.npz`` the
            columns of CNI.
        atlas: key of ``atlases.ATLASES``; None if unknown.
        rois: regions; None takes what the file has.
        frames: what a scan usually has; others are reported.
        target: key of a scan's ``pheno`` with the label, and what it is called in reports.
        labels: spelling in the files, in lower case -> class; empty takes the values found.
        classes: names of the classes, in the order of their index; of a regression none.
        dynamic_length: frames of a training crop.
        pheno_file: table of subjects, below the data folder.
        pheno_target: its column with the label, if that is where the label stands.
        pheno_keep: column -> value; subjects with another one are left out.
        batch_size, eval_batch_size: scans.
        epochs: of training.
        task_type: key of ``TASK_TYPES``: whether the target is a class or a value.
        unit: of the values of a regression; "" for a score without one.
    """

    file: str
    atlas: str | None
    rois: int | None
    frames: tuple[int, ...]
    target: str
    labels: Mapping[str, str]
    classes: tuple[str, ...]
    dynamic_length: int
    pheno_file: str | None = None
    pheno_target: str | None = None
    pheno_keep: Mapping[str, str] = field(default_factory=dict)
    batch_size: int = 32
    eval_batch_size: int = 16
    epochs: int = 20
    task_type: str = "classification"
    unit: str = ""

    @property
    def is_regression(self) -> bool:
        """Whether the target is a value."""
        return self.task_type == "regression"


HCP_PHENO = "HCP_1200/Preprocessed/pheno.csv"
SEX = {"f": "Female", "female": "Female", "m": "Male", "male": "Male"}
HCP_TASKS = ("EMOTION", "GAMBLING", "LANGUAGE", "MOTOR", "RELATIONAL", "SOCIAL", "WM")
DISEASE = {
    "control": "Control",
    "healthy": "Control",
    "healthy control": "Control",
    "hc": "Control",
    "0": "Control",
    "pd": "PD",
    "parkinson": "PD",
    "parkinson's disease": "PD",
    "1": "PD",
}

DATASETS: Mapping[str, DatasetDetails] = {
    "HCP_REST": DatasetDetails(
        file="dataset_hcpRest_schaefer.npy",
        atlas="Schaefer400",
        rois=400,
        frames=(1200,),
        target="gender",
        labels=SEX,
        classes=("Female", "Male"),
        dynamic_length=600,
        pheno_file=HCP_PHENO,
        pheno_target="Gender",
    ),
    "HCP_TASK": DatasetDetails(
        file="dataset_hcpTask_schaefer.npy",
        atlas="Schaefer400",
        rois=400,
        frames=(176, 253, 316, 284, 232, 274, 405),
        target="task",
        labels={name.lower(): name for name in HCP_TASKS} | {"working_memory": "WM"},
        classes=HCP_TASKS,
        dynamic_length=150,
        pheno_file=HCP_PHENO,
        pheno_keep={"Release": "Q1"},
    ),
    "PPMI": DatasetDetails(
        file="dataset_ppmi_atlas-AAL-3V2.pickle",
        atlas="AAL3v2",
        rois=166,
        frames=(210,),
        target="disease",
        labels=DISEASE,
        classes=("Control", "PD"),
        dynamic_length=100,
    ),
    # Examples of one's own data: Schirmer et al. 2021, Med. Image Anal. 70:101972.
    "CNI_SEX": DatasetDetails(
        file="cni_roi_240.npz",
        atlas="AAL116",
        rois=116,
        frames=(122, 128, 153, 156, 162),
        target="Sex",
        labels=SEX,
        classes=("Female", "Male"),
        dynamic_length=100,
        pheno_file="cni_phenotypic_240.csv",
        pheno_target="Sex",
    ),
    "CNI_DIAGNOSIS": DatasetDetails(
        file="cni_roi_240.npz",
        atlas="AAL116",
        rois=116,
        frames=(122, 128, 153, 156, 162),
        target="DX",
        labels={"control": "Control", "adhd": "ADHD"},
        classes=("Control", "ADHD"),
        dynamic_length=100,
        pheno_file="cni_phenotypic_240.csv",
        pheno_target="DX",
    ),
}
OWN = "Own"
NAMES = (*DATASETS, OWN)


def details_of(
    name: str,
    file: str | None = None,
    target: str | None = None,
    length: int | None = None,
    task_type: str | None = None,
) -> DatasetDetails:
    """The entry of a name; ``Own`` is made of flags.

    Args:
        name: ``--dataset``.
        file, target, length: ``--data_file``, ``--target`` and ``--dynamic_length``.
        task_type: ``--task_type``; None takes that of the task of ``config.tasks`` that is called
            as the target is (age and intelligence are values), else classification.

    Raises:
        UserInputError: an unknown name, or ``Own`` without its flags.
    """
    look_up(name, NAMES, "--dataset")
    if name != OWN:
        if target is not None:
            raise UserInputError(
                f"--target: belongs to --dataset {OWN}; {name} has '{DATASETS[name].target}'."
            )
        if task_type not in (None, DATASETS[name].task_type):
            raise UserInputError(
                f"--task_type: belongs to --dataset {OWN}; the target of {name} is a "
                f"{DATASETS[name].task_type}."
            )
        return DATASETS[name]
    given = {"--data_file": file, "--target": target, "--dynamic_length": length}
    absent = [flag for flag, value in given.items() if value is None]
    if absent:
        raise UserInputError(
            f"--dataset {OWN}: needs {', '.join(absent)}; a data set that is used often can have "
            f"an entry in Dataset/datasetDetails.py."
        )
    assert file is not None and target is not None and length is not None
    task = TASKS.get(target.lower())
    if task_type is None:
        task_type = "classification" if task is None else task.type
    unit = task.unit if task is not None and task_type == "regression" else ""
    return DatasetDetails(
        file, None, None, (), target, {}, (), length, task_type=task_type, unit=unit
    )
