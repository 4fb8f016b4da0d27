"""Planted faults, each found and placed, of the generated ones one of each family.

Those by hand are marked slow: ``pytest tests/test_faults.py -m slow``.  `benchmarks.checking` runs
all of both kinds, with the names that they are given; `tests.faults` proves that each is one.
"""

import pytest

from tests.fault_checks import placed, report
from tests.faults import (
    BY_HAND,
    CASES,
    FUNCTIONS,
    family_of,
    generated,
    innocents,
)

FEW = [fault for fault in BY_HAND if fault.subject == "layer"][::16]
FEW += [fault for fault in BY_HAND if fault.subject == "function"][::15]
REST = [fault for fault in BY_HAND if fault not in FEW]
FAMILIES = {family_of(case.layer): case for case in reversed(CASES)}
FIRST = list(FAMILIES.values())[::6]
OTHERS = [*(case for case in FAMILIES.values() if case not in FIRST), *FUNCTIONS]


def check(fault):
    found = report(fault, diagnose=False)
    assert not found.ok, "not found"
    assert placed(fault, found), f"{found.wrong}, due {fault.wrong}, {found.problems}"
    return found


def test_there_are_enough_of_every_family_and_subject():
    assert len(BY_HAND) >= 60
    assert {fault.subject for fault in BY_HAND} == {"layer", "function", "statistic", "model"}
    families = {fault.family for fault in BY_HAND}
    assert families >= {family_of(case.layer) for case in CASES}
    assert families >= {f.__name__ for f in FUNCTIONS}
    for fault in BY_HAND:  # the names and fragments that they are made of still exist
        fault.make()


@pytest.mark.parametrize("fault", FEW, ids=[fault.name for fault in FEW])
def test_a_fault_by_hand_is_found_and_placed(fault):
    found = check(fault)
    if fault.subject == "function":  # its check always looks for the cause
        assert found.findings[0].kind in fault.kinds


@pytest.mark.parametrize("case", FIRST, ids=[case.name for case in FIRST])
def test_a_generated_fault_is_found_and_placed(case, no_cause):
    (fault,) = generated(case, 1).faults
    check(fault)


@pytest.mark.slow
@pytest.mark.parametrize("fault", REST, ids=[fault.name for fault in REST])
def test_each_fault_by_hand_is_found_and_placed(fault, no_cause):
    check(fault)


@pytest.mark.slow
@pytest.mark.parametrize(
    "subject", OTHERS, ids=[getattr(other, "name", None) or other.__name__ for other in OTHERS]
)
def test_a_generated_fault_of_every_other_family_is_found_and_placed(subject, no_cause):
    (fault,) = generated(subject, 1).faults
    check(fault)


RIGHT = list(innocents(6, 11))


@pytest.mark.parametrize("subject", RIGHT, ids=[f"{fault.name} {d}" for fault, d, _ in RIGHT])
def test_no_innocent_is_accused(subject):
    fault, dtype, seed = subject
    report(fault, dtype, seed).assert_ok()
