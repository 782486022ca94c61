"""The corpus of bad inputs: one table, which ``tests/integration/test_corpus.py`` runs.

``CORPUS`` has every entry: images and what belongs to them (``images.py``), flags (``flags.py``)
and other files, ``BAD_FILES``, in a module for each kind of reader. To add one, add a line there.
"""

from __future__ import annotations

from tests.helpers.corpus.bad_file import BadFile
from tests.helpers.corpus.checkpoints import CHECKPOINTS
from tests.helpers.corpus.flags import FLAGS
from tests.helpers.corpus.images import BAD_INPUTS, BadInput
from tests.helpers.corpus.regions import REGIONS
from tests.helpers.corpus.runs import RUNS
from tests.helpers.corpus.settings import SETTINGS
from tests.helpers.corpus.tables import EVENTS, TABLES

BAD_FILES = (*TABLES, *EVENTS, *REGIONS, *RUNS, *CHECKPOINTS, *SETTINGS)

# Kind and name of an entry -> the entry.
CORPUS: dict[tuple[str, str], BadInput | BadFile | tuple[str, ...]] = {
    **{("image", bad.file): bad for bad in BAD_INPUTS},
    **{("file", bad.name): bad for bad in BAD_FILES},
    **{("flags", extra): parts for extra, parts in FLAGS.items()},
}
