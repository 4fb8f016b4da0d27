"""Compiled programs that live as long as the rule that they were made for."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from ..core.rule import Rule

MOST = 16
"""How many programs of one rule are kept."""

_programs: weakref.WeakKeyDictionary[Callable, OrderedDict] = weakref.WeakKeyDictionary()


def program(make: Callable[..., Callable], rule: Rule, *args: Any) -> Callable[..., Any]:
    """``make(rule, *args)``, a jitted function, the same one for the same rule and arguments.

    What is kept knows the rule's functions by weak references only: it is let go with the rule.
    """
    own = rule._replace(estimate=_weakly(rule.estimate), predict=_weakly(rule.predict), init=_none)
    # What stands here by its identity is held by the program, so that no other takes its place.
    key = (make, weakref.ref(rule.predict), id(rule.model), id(rule.loss), rule.private, *args)
    try:
        kept = _programs.setdefault(rule.estimate, OrderedDict())
        found = kept.pop(key, None) or make(own, *args)
    except TypeError:  # functions of one's own that cannot be hashed are compiled at each call
        return make(rule, *args)
    kept[key] = found
    if len(kept) > MOST:
        kept.popitem(last=False)
    return found


def _weakly(function: Callable[..., Any]) -> Callable[..., Any]:
    reference = weakref.ref(function)

    def call(*args, **kwargs):
        held = reference()
        assert held is not None, "the rule is held by whoever runs its program"
        return held(*args, **kwargs)

    return call


def _none(*args: Any) -> None:
    return None
