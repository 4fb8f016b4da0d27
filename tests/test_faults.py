"""Some of the planted faults, each found, placed and named; `benchmarks.checking` runs all."""

import pytest

from tests.faults import FAULTS, innocents, report

FEW = [fault for fault in FAULTS if fault.subject == "layer"][::14]
FEW += [fault for fault in FAULTS if fault.subject == "function"][::10]


def test_there_are_enough_and_each_can_be_planted():
    assert len(FAULTS) >= 150
    for fault in FAULTS:  # the fragments still stand in the sources, once each
        fault.make()
    assert len({fault.family for fault in FAULTS}) > 40


@pytest.mark.parametrize("fault", FEW, ids=[fault.name for fault in FEW])
def test_a_fault_is_found_and_placed(fault):
    found = report(fault)
    assert not found.ok
    assert set(found.wrong) == set(fault.wrong)
    assert found.findings


RIGHT = list(innocents(6, 11))


@pytest.mark.parametrize("subject", RIGHT, ids=[f"{fault.name} {d}" for fault, d, _ in RIGHT])
def test_no_innocent_is_accused(subject):
    fault, dtype, seed = subject
    report(fault, dtype, seed).assert_ok()
