"""How the fuzz tests run: every property with the same few examples each time, and once more, slowly, with many."""

import pytest
from hypothesis import HealthCheck, given, settings


COMMON = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
settings.register_profile("quick", derandomize=True, **COMMON)
settings.register_profile("slow", derandomize=False, print_blob=True, **COMMON)


@pytest.fixture(params=["quick", pytest.param("slow", marks=pytest.mark.slow)])
def fuzz(request):
    """Runs a property: `fuzz(check, strategy, ..., quick=40, slow=2000, known=[(argument, ...), ...])`.

    `known` are falsifying examples of the past, which run first.
    """

    def run(check, *strategies, quick=40, slow=2000, known=()):
        for values in known:
            check(*values)
        examples = quick if request.param == "quick" else slow
        settings(settings.get_profile(request.param), max_examples=examples)(given(*strategies)(check))()

    return run
