"""The C sources of ``layers/ssd/native.py`` and their compilation; nothing here imports torch."""
