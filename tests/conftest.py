"""Settings of Hypothesis for all tests."""

from hypothesis import HealthCheck, settings

# mutmut runs the tests several times in one process, each time with new instances of their classes.
settings.register_profile("repeated", suppress_health_check=[HealthCheck.differing_executors])
