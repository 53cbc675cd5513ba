"""One test for a whole table of cases, where a test each would cost more time than the cases themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest


def each(cases: Iterable, ids: Iterable[str] | None = None) -> Callable:
    """Decorates a test of one case, whose arguments it is (several in a tuple); all cases that fail are listed.

    For pure functions alone: the test gets no fixtures.
    """
    cases = [case if type(case) is tuple else (case,) for case in cases]
    names = list(ids) if ids is not None else [", ".join(map(repr, case)) for case in cases]
    assert cases and len(names) == len(cases)

    def decorate(test: Callable) -> Callable:
        def over_all_cases():
            failed = []
            for name, case in zip(names, cases, strict=True):
                try:
                    test(*case)
                # pytest.fail and pytest.raises raise what is no Exception
                except (Exception, pytest.fail.Exception) as error:
                    failed.append(f"{name}: {type(error).__name__}: {error}")
            assert not failed, f"{len(failed)} of {len(cases)} cases fail:\n" + "\n".join(failed)

        over_all_cases.__name__, over_all_cases.__doc__ = test.__name__, test.__doc__
        return over_all_cases

    return decorate
