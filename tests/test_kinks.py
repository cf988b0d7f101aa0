"""Jumps of gradients are told from errors: of places, and of tensors."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from edgelora.kinks import least_shares


def places(*shares: dict[str, float]) -> Iterator[dict[str, float]]:
    return iter([*shares, *[shares[-1]] * 9])


def test_one_place_is_enough_where_nothing_is_exceeded():
    drawn = places({"a": 1.0, "b": 0.2}, {"a": 0.0, "b": 9.0})
    assert least_shares(next(drawn), lambda: next(drawn)) == {"a": 1.0, "b": 0.2}


def test_a_jump_is_of_one_place():
    drawn = places({"a": 25.0, "b": 0.1}, {"a": 0.3, "b": 25.0})
    assert least_shares(next(drawn), lambda: next(drawn)) == {"a": 0.3, "b": 0.1}


def test_a_wrong_gradient_is_wrong_everywhere():
    drawn = places({"a": 3.0, "b": 0.1}, {"a": 1.5, "b": 0.1}, {"a": 2.0, "b": 0.1})
    assert least_shares(next(drawn), lambda: next(drawn)) == {"a": 1.5, "b": 0.1}


@pytest.mark.parametrize("at", [0, 1])
def test_what_is_far_off_is_no_jump(at):
    shares = [{"a": 3.0}, {"a": 0.1}, {"a": 0.1}]
    shares[at] = {"a": 1e12}
    drawn = places(*shares)
    assert least_shares(next(drawn), lambda: next(drawn)) == {"a": 1e12}
