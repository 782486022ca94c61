"""What every subpackage uses: errors, texts, atomic files, worker processes, seeds, version."""
