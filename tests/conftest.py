"""Settings that all tests share: hypothesis without deadlines, for machines that are slow or busy."""

from hypothesis import HealthCheck, settings

settings.register_profile("edgelora", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("edgelora")
