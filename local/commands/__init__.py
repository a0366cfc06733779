"""The commands of `./payments`, one per file."""
