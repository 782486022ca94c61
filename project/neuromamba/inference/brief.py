"""What a shell or notebook shows of a model, a scan or a result: one line, not all it holds."""

from __future__ import annotations


class Brief:
    """Base of records with large fields. Their dataclasses are made with ``repr=False``."""

    @property
    def brief(self) -> str:
        """What it is, in a few words."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.brief}>"
