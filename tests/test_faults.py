"""Planted faults, each found and placed; `benchmarks.checking` runs all, with their names.

The whole table is marked slow: ``pytest tests/test_faults.py -m slow``.
"""

import pytest

from tests.fault_checks import placed, proof, report
from tests.faults import (
    BY_HAND,
    CASES,
    FUNCTIONS,
    family_of,
    generated,
    innocents,
    subjects,
)

FEW = [fault for fault in BY_HAND if fault.subject == "layer"][::16]
FEW += [fault for fault in BY_HAND if fault.subject == "function"][::15]
REST = [fault for fault in BY_HAND if fault not in FEW]
FAMILIES = {family_of(case.layer): case for case in reversed(CASES)}
FIRST = list(FAMILIES.values())[::6]


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
@pytest.mark.parametrize("fault", BY_HAND, ids=[fault.name for fault in BY_HAND])
def test_each_fault_by_hand_is_one(fault):
    assert not proof(fault)


@pytest.mark.slow
@pytest.mark.parametrize(
    "subject", subjects(), ids=[getattr(s, "name", None) or s.__name__ for s in subjects()]
)
def test_each_generated_fault_is_found_and_placed(subject, no_cause):
    for fault in generated(subject).faults:
        check(fault)


RIGHT = list(innocents(6, 11))


@pytest.mark.parametrize("subject", RIGHT, ids=[f"{fault.name} {d}" for fault, d, _ in RIGHT])
def test_no_innocent_is_accused(subject):
    fault, dtype, seed = subject
    report(fault, dtype, seed).assert_ok()
