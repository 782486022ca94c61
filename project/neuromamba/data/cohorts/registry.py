"""The cohorts: ``DATASETS`` says where each one keeps its labels. To add a cohort, add an entry.

A cohort's entry names the column of subjects and, for each task, the column of the target in the
CSV files of ``<image_path>/metadata/``. Names of subjects in a store and in a CSV are compared by
``Cohort.key``, which knows the cohort's habits (``sub-`` prefixes, ``<eid>_20227_2_0``, leading
zeros). Nothing here opens an image.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from neuromamba.common.text import plain_subject
from neuromamba.config.names import DATASET_NAMES
from neuromamba.config.tasks import TASKS

BIDS_SUBJECT = "participant_id"  # of any table of subjects


@dataclass(frozen=True)
class Target:
    """The column that holds the target of a task in a cohort.

    Attributes:
        column: name of the column.
        mapping: for a classification, value in lower case -> class index (the order of
            ``TASKS[...].class_names``); empty for a regression, whose values are numbers.
        other_columns: further names of the same column, in other releases of the cohort.
    """

    column: str
    mapping: Mapping[str, int] = field(default_factory=dict)
    other_columns: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """A data set a user can name in ``--dataset_name``.

    Attributes:
        name: as in ``config.DATASET_NAMES``.
        description: one line for messages and reports.
        subject_column: the column of the subjects' names in the metadata.
        targets: task (a key of ``TASKS``) -> where its target is.
        other_subject_columns: further names of the subject column.
        crop_offset: index in the store's grid = index in the LAS source + offset, on X, Y, Z; None
            centres. Positions are index-based, so one cohort must not mix offsets.
        subject_pattern: regular expression whose first group is the name in the metadata, for
            stores that call their subjects otherwise; "" means the names agree.
        missing_codes: values that stand for "not recorded", besides empty fields and NA.
        stratify_by: columns whose values every part of a split gets in equal shares, unless
            ``--stratify_by`` says otherwise.
        tables: tables of subjects that lie among the cohort's images; the conversion copies them
            into ``metadata/``.
    """

    name: str
    description: str
    subject_column: str
    targets: Mapping[str, Target]
    other_subject_columns: tuple[str, ...] = ()
    crop_offset: tuple[int, int, int] | None = None
    subject_pattern: str = ""
    missing_codes: tuple[str, ...] = ()
    stratify_by: tuple[str, ...] = ()
    tables: tuple[str, ...] = ("participants.tsv", "participants.csv")

    @property
    def subject_columns(self) -> tuple[str, ...]:
        """Admitted names of the subject column."""
        names = (self.subject_column, *self.other_subject_columns, BIDS_SUBJECT)
        return tuple(dict.fromkeys(names))

    def with_subject_column(self, name: str) -> Cohort:
        """The cohort with another subject column and no other names of it."""
        return dataclasses.replace(self, subject_column=name, other_subject_columns=())

    def columns_of(self, name: str) -> tuple[str, ...]:
        """Columns that ``name`` stands for: those of a task's target, else the column itself."""
        target = self.targets.get(name)
        return (name,) if target is None else (target.column, *target.other_columns, name)

    def key(self, subject: str) -> str:
        """The form of a subject's name that is compared between store and metadata.

        ``sub-100206`` and ``100206`` are one subject, so are ``0050002`` and ``50002`` (a
        spreadsheet drops the zeros, or writes 50002.0 and 5.00020E+04) and ``NDAR_INV1`` and
        ``NDARINV1`` (BIDS allows no ``_``).
        """
        name = plain_subject(subject)
        if self.subject_pattern and (found := re.fullmatch(self.subject_pattern, name)):
            name = found.group(1)
        return plain_subject(name.replace("NDAR_INV", "NDARINV"))


_SEX_LETTERS = {"f": 0, "female": 0, "m": 1, "male": 1}

DATASETS: Mapping[str, Cohort] = {
    cohort.name: cohort
    for cohort in (
        Cohort(
            name="S1200",
            description="Human Connectome Project, young adults (S1200 release)",
            subject_column="Subject",
            targets={
                "sex": Target("Gender", _SEX_LETTERS),
                "age": Target("age", other_columns=("Age_in_Yrs",)),
                "intelligence": Target("CogTotalComp_AgeAdj"),
            },
        ),
        Cohort(
            name="ABCD",
            description="Adolescent Brain Cognitive Development study",
            subject_column="subjectkey",
            targets={
                "sex": Target("sex", {**_SEX_LETTERS, "1": 1, "2": 0}),
                "age": Target("age"),
                "intelligence": Target("nihtbx_totalcomp_uncorrected"),
            },
        ),
        Cohort(
            name="UKB",
            description="UK Biobank",
            subject_column="eid",
            targets={
                "sex": Target("sex", {**_SEX_LETTERS, "0": 0, "1": 1}),
                "age": Target("age"),
                "intelligence": Target("fluid"),
            },
            subject_pattern=r"(\d+)_20227_\d+_\d+",
        ),
        Cohort(
            name="HBN",
            description="Healthy Brain Network",
            subject_column="EID",
            targets={
                # HBN codes 0 male, 1 female: the opposite of UK Biobank.
                "sex": Target("Sex", {**_SEX_LETTERS, "0": 1, "1": 0}),
                "age": Target("Age"),
            },
            other_subject_columns=("participant_id", "Identifiers"),
        ),
        Cohort(
            name="ABIDE",
            description="Autism Brain Imaging Data Exchange",
            subject_column="SUB_ID",
            targets={
                "sex": Target("SEX", {**_SEX_LETTERS, "1": 1, "2": 0}),
                "age": Target("AGE_AT_SCAN"),
                "intelligence": Target("FIQ"),
                "diagnosis": Target("DX_GROUP", {"1": 1, "2": 0}),
            },
            # Preprocessed Connectomes: Pitt_0050003_func_preproc, CMU_a_0050642_...
            subject_pattern=r"(?:[A-Za-z].*_)?(\d{7})(?:_.*)?",
            missing_codes=("-9999",),
            stratify_by=("SITE_ID",),
        ),
        Cohort(
            name="ADHD200",
            description="ADHD-200 sample, or its 40 subjects of nilearn's fetch_adhd",
            subject_column="ScanDir ID",
            targets={
                # The consortium codes 0 female, 1 male; nilearn's table writes F and M.
                "sex": Target("Gender", {**_SEX_LETTERS, "0": 0, "1": 1}, ("sex",)),
                "age": Target("Age", other_columns=("age",)),
                "intelligence": Target("Full4 IQ", other_columns=("full_4_iq",)),
                # DX: 0 typically developing, 1 to 3 the types of ADHD; adhd: 0 or 1.
                "diagnosis": Target("DX", {"0": 0, "1": 1, "2": 1, "3": 1}, ("adhd",)),
            },
            other_subject_columns=("Subject",),
            subject_pattern=r"(\d+)_rest_.*",
            missing_codes=("-999", "pending", "N/A"),
            tables=("ADHD200_40subs_motion_parameters_and_phenotypics.csv",),
        ),
        Cohort(
            name="DevelopmentFMRI",
            description="children and adults watching a film, nilearn's fetch_development_fmri",
            subject_column="participant_id",
            targets={
                "sex": Target("Gender", _SEX_LETTERS),
                "age": Target("Age"),
                "age_group": Target("Child_Adult", {"child": 0, "adult": 1}),
            },
        ),
        Cohort(
            name="Own",
            description="data of your own; labels by --label_csv",
            subject_column="participant_id",
            targets={},
            other_subject_columns=("subject", "subject_id", "Subject"),
        ),
        Cohort(
            name="Dummy",
            description="synthetic fMRI (neuromamba synthetic); only sex is visible in the images",
            subject_column="subject",
            targets={
                "sex": Target("sex", _SEX_LETTERS),
                "age": Target("age"),
                "intelligence": Target("intelligence"),
                "diagnosis": Target("diagnosis", {"control": 0, "patient": 1}),
            },
        ),
    )
}
assert tuple(DATASETS) == DATASET_NAMES, "DATASETS and config.DATASET_NAMES disagree"
for _cohort in DATASETS.values():
    for _task, _target in _cohort.targets.items():
        _classes = set(range(TASKS[_task].num_classes)) if _target.mapping else set()
        assert set(_target.mapping.values()) == _classes, f"{_cohort.name}: classes of {_task}"
        assert bool(_classes) == (TASKS[_task].type == "classification"), f"{_cohort.name}: {_task}"
