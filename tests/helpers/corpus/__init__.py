"""The corpus of bad inputs: one table, which ``tests/integration/test_corpus.py`` runs.

``CORPUS`` has every entry: images and what belongs to them (``images.py``), other files
(``files.py``) and flags (``flags.py``). To add one, add a line there.
"""

from __future__ import annotations

from tests.helpers.corpus.files import BAD_FILES, BadFile
from tests.helpers.corpus.flags import FLAGS
from tests.helpers.corpus.images import BAD_INPUTS, BadInput

# Kind and name of an entry -> the entry.
CORPUS: dict[tuple[str, str], BadInput | BadFile | tuple[str, ...]] = {
    **{("image", bad.file): bad for bad in BAD_INPUTS},
    **{("file", bad.name): bad for bad in BAD_FILES},
    **{("flags", extra): parts for extra, parts in FLAGS.items()},
}
