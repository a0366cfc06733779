"""The processes that `./payments up` runs, and what keeps them alive."""
