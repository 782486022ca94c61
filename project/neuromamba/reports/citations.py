"""How to cite the two architectures: the entries of CITATION.bib, which a test compares."""

from __future__ import annotations

FMAMBA = """\
@inproceedings{choi2025neuromamba,
  title     = {NeuroMamba: A State-Space Foundation Model for Functional MRI},
  author    = {Choi, Jubin and Park, David Keetae and Kwon, Junbeom and Yoo, Shinjae and Cha, Jiook},
  booktitle = {39th Conference on Neural Information Processing Systems (NeurIPS 2025) Workshop: Foundation Models for the Brain and Body},
  year      = {2025},
  url       = {https://openreview.net/forum?id=kftg4lmQi8}
}"""  # noqa: E501
NEUROSSM = """\
@misc{neurossm2026,
  title         = {NeuroSSM: Multiscale Differential State-Space Modeling for Context-Aware fMRI Analysis},
  author        = {{NeuroSSM authors}},
  year          = {2026},
  eprint        = {2601.01229},
  archivePrefix = {arXiv},
  url           = {https://arxiv.org/abs/2601.01229},
  note          = {Take the list of authors from the arXiv page}
}"""  # noqa: E501
