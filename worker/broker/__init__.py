"""The worker's connection to the broker, which outlives every failure of it."""
