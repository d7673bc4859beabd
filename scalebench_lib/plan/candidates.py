"""The plans worth running: the best of every granularity, and the two that need no planner."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace

from scalebench_lib.errors import RequestError
from scalebench_lib.plan.interference import Interference, shape
from scalebench_lib.plan.planner import Plan, Planner
from scalebench_lib.plan.profile import Option, Profile


def fat(profile: Profile, cores: int, batch_size: int) -> Plan | None:
    """One instance on all cores, as most people serve; None where that was not profiled."""
    whole = [one for one in profile.options if one.batch_size == batch_size and one.cores == cores]
    return Plan.of([min(whole, key=lambda one: one.latency_ms)]) if whole else None


def even(like: Plan, instances: int, threads: int) -> Plan | None:
    """The batch of `like` in so many equal instances of its optimization, profiled or not.

    Nobody knows yet how long it takes. None where the batch cannot be split so.
    """
    size, rest = divmod(like.batch_size, instances)
    if rest:
        return None
    option = replace(
        like.instances[0],
        threads=threads,
        cores=float(threads),
        smt=False,
        batch_size=size,
        latency_ms=float("nan"),
        low_ms=None,
        high_ms=None,
        memory_mb=None,
    )
    return Plan.of([option] * instances)


def thin(profile: Profile, cores: int, batch_size: int, exponent: float) -> Plan | None:
    """Instances of one thread, a core each; None where their sizes do not sum to the batch."""
    single = [one for one in profile.options if one.threads == 1 and not one.smt]
    return _best(single, cores, batch_size, exponent)


def fastest(planner: Planner, profile: Profile, batch_size: int, learned: Interference) -> Plan:
    """The plan of `batch_size` that promises most; what was run counts as it was measured.

    Raises `RequestError` where there is none.
    """
    first = planner.best(batch_size)
    before = _run_before(planner, profile, batch_size, learned)
    return _ranked([*before, first], profile, learned)[0]


def candidates(
    planner: Planner, profile: Profile, batch_size: int, learned: Interference
) -> list[Plan]:
    """Plans of `batch_size` by what they promise, the best first, each of its own kind.

    They are the best with instances of at most, and of at least, 1, 2, 4 … cores, the best that
    leave cores idle, and those that were run before. Raises `RequestError` where there is none.
    """
    first = planner.best(batch_size)
    others = _of_every_kind(profile.options, planner, batch_size)
    before = _run_before(planner, profile, batch_size, learned)
    return _ranked([*before, *others, first], profile, learned)


def _ranked(plans: Iterable[Plan], profile: Profile, learned: Interference) -> list[Plan]:
    """Each different plan, with what is known of it; the fastest, then the smallest first."""
    found = {shape(plan.instances): plan for plan in plans}
    known = [learned.known(plan, profile) for plan in found.values()]
    return sorted(known, key=lambda plan: (plan.predicted_ms, plan.cores))


def _of_every_kind(options: Iterable[Option], planner: Planner, batch_size: int) -> Iterator[Plan]:
    options, cores = list(options), planner.cores
    for power in range(cores.bit_length()):
        size = 2**power
        kinds: tuple[tuple[Callable[[Option], bool], int], ...] = (
            (lambda one, most=size: one.cores <= most, cores),  # type: ignore[misc]
            (lambda one, least=size: one.cores >= least, cores),  # type: ignore[misc]
            (lambda _: True, size),
        )
        for fits, budget in kinds:
            if plan := _best(filter(fits, options), budget, batch_size, planner.exponent):
                yield plan


def _best(options: Iterable[Option], cores: int, batch_size: int, exponent: float) -> Plan | None:
    with suppress(RequestError):
        return Planner(options, cores, exponent).best(batch_size)
    return None


def _run_before(
    planner: Planner, profile: Profile, batch_size: int, learned: Interference
) -> Iterator[Plan]:
    """Plans that were run, if they fit the request, with the profile's latencies of today."""
    today = {shape([option]): option for option in profile.options}
    for one in learned.about(profile):
        options = [today.get(shape([option])) for option in one.instances]
        here = [option for option in options if option]
        plan = Plan.of(here, planner.exponent) if len(here) == len(options) else None
        if plan and plan.batch_size == batch_size and plan.cores <= planner.cores:
            yield plan
