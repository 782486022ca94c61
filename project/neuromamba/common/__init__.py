"""What every room uses: errors, texts, atomic files, worker processes, seeds, version."""
