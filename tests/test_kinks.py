"""Jumps of gradients are told from errors: of places, of tensors, and of twins that jump by themselves."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from edgelora.kinks import Place, Share, least_shares, moved

FARTHEST = 20.0


def places(*shares: dict[str, float], own: float = 0.0) -> Callable[[], Place]:
    """Places of these errors, the last of them again and again; the twin is `own` from itself at each."""
    drawn = iter([*shares, *[shares[-1]] * 99])

    def draw() -> Place:
        here = next(drawn)
        return Place(here, lambda: dict.fromkeys(here, own))

    return draw


def errors(found: dict[str, Share]) -> dict[str, float]:
    return {name: share.error for name, share in found.items()}


def passed(found: dict[str, Share]) -> bool:
    return all(share.exceeds <= 1 for share in found.values())


def test_one_place_is_enough_where_nothing_is_exceeded():
    found = least_shares(places({"a": 1.0, "b": 0.2}, {"a": 0.0, "b": 9.0}), FARTHEST)
    assert found == {"a": Share(1.0), "b": Share(0.2)}


def test_a_twin_is_not_asked_where_nothing_is_exceeded():
    least_shares(lambda: Place({"a": 1.0}, lambda: pytest.fail("asked")), FARTHEST)


def test_a_jump_is_of_one_place():
    found = least_shares(places({"a": 25.0, "b": 0.1}, {"a": 0.3, "b": 25.0}), FARTHEST)
    assert found == {"a": Share(0.3), "b": Share(0.1)}


@pytest.mark.parametrize("own", [0.0, 0.1])
def test_a_wrong_gradient_is_wrong_everywhere(own):
    found = least_shares(places({"a": 3.0, "b": 0.1}, {"a": 1.5, "b": 0.1}, {"a": 2.0, "b": 0.1}, own=own), FARTHEST)
    assert found == {"a": Share(1.5), "b": Share(0.1)} and not passed(found)


@pytest.mark.parametrize("at", [0, 1])
def test_what_is_far_off_is_no_jump(at):
    shares = [{"a": 3.0}, {"a": 0.1}, {"a": 0.1}]
    shares[at] = {"a": 1e12}
    assert least_shares(places(*shares), FARTHEST) == {"a": Share(1e12)}


def test_what_is_far_off_is_a_jump_where_the_twin_jumps_too():
    """If not as far: its draws are few."""
    found = least_shares(places({"a": 300.0, "b": 110.0}, {"a": 0.1, "b": 0.2}, own=10.0), FARTHEST)
    assert found == {"a": Share(0.1), "b": Share(0.2)}


def test_what_is_not_finite_is_no_jump_of_any_twin():
    """Not even of one that is not finite either."""
    assert not passed(least_shares(places({"a": 1e12}, {"a": 0.1}, own=1e12), FARTHEST))


def test_a_twin_that_jumps_everywhere_is_known_no_better():
    found = least_shares(places({"a": 9.0, "b": 2.0}, own=4.0), FARTHEST)
    assert found == {"a": Share(9.0, 12.0, 4.0), "b": Share(2.0, 12.0, 4.0)}


def test_the_place_where_a_twin_jumps_least_decides():
    """That it is further from itself elsewhere excuses nothing."""
    jumps = iter([80.0, 2.0, *[80.0] * 99])

    def draw() -> Place:
        own = next(jumps)
        return Place({"a": 9.0}, lambda: {"a": own})

    assert least_shares(draw, FARTHEST) == {"a": Share(9.0, 6.0, 2.0)}


@pytest.mark.parametrize("own", [50.0, 1e12])
def test_a_twin_excuses_no_more_than_differences_may_be_off(own):
    found = least_shares(places({"a": 25.0}, own=own), FARTHEST)
    assert found == {"a": Share(25.0, FARTHEST, own)} and not passed(found)


def test_a_twin_that_may_excuse_nothing_is_not_asked():
    """Nor do its jumps bring further places, of which one may hide what is wrong."""
    wrong = iter([{"a": 5.0}] * 4 + [{"a": 0.5}])
    found = least_shares(lambda: Place(next(wrong), lambda: pytest.fail("asked")), 1.0)
    assert errors(found) == {"a": 5.0}


def test_more_places_are_asked_of_a_twin_that_jumps():
    there = [{"a": 5.0}] * 6 + [{"a": 0.5}]
    assert errors(least_shares(places(*there, own=2.0), FARTHEST)) == {"a": 0.5}
    assert errors(least_shares(places(*there), FARTHEST)) == {"a": 5.0}


def test_real_numbers_are_moved_by_a_rounding_and_whole_ones_are_not():
    """A mask of zeros and ones, times a large number, would be another mask."""
    rng = np.random.default_rng(0)
    x = np.array([0.0, 1.0, -3.0, 0.3, 1e-8, 7.7], np.float32)
    there = moved({"x": x, "ids": np.array([1, 2])}, rng)
    assert list(there) == ["x"] and there["x"].dtype == np.float32
    assert (there["x"][:3] == x[:3]).all() and (there["x"][3:] != x[3:]).any()
    np.testing.assert_allclose(there["x"], x, rtol=1e-5)
