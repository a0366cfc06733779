"""How property-based tests run. Where several processes share the suite, each file stays in one of them (local/commands/test.py)."""

from hypothesis import HealthCheck, settings

# How long an example takes says something of the machine and of what else it does, nothing of the code.
settings.register_profile("payments", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("payments")
