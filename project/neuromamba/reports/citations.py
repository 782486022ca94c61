"""How to cite the architectures: the entries of CITATION.bib, which a test compares, and SwiFT."""

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
SWIFT = """\
@inproceedings{kim2023swift,
  title     = {SwiFT: Swin 4D fMRI Transformer},
  author    = {Kim, Peter Yongho and Kwon, Junbeom and Joo, Sunghwan and Bae, Sangyoon and Lee, Donggyu and Jung, Yoonho and Yoo, Shinjae and Cha, Jiook and Moon, Taesup},
  booktitle = {Advances in Neural Information Processing Systems 36 (NeurIPS 2023)},
  year      = {2023},
  url       = {https://arxiv.org/abs/2307.05916}
}"""  # noqa: E501
