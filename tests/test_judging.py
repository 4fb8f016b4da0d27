"""The program that judges the checker; its faults are proven by `python -m benchmarks.judging`."""

import importlib.util
import re
from pathlib import Path
from types import SimpleNamespace

import pytest


@pytest.fixture
def judging(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1])
    from benchmarks import judging

    return judging


@pytest.fixture
def course(judging):
    (found,) = judging.subjects("open", ["course_softmax"])
    return found


def test_every_key_fits_its_file(judging):
    missing = [name for name in ("equinox", "flax") if importlib.util.find_spec(name) is None]
    needs = re.compile(rf"^(?:import|from) (?:{'|'.join(missing)})\b" if missing else "(?!)", re.M)
    paths = (judging.HERE / "open").glob("*.py")
    there = [path.stem for path in paths if not needs.search(path.read_text())]
    assert len(there) >= 20
    for subject in judging.subjects("open", there):
        assert len(subject.keys.FAULTS) == len(subject.keys.HARD) == 5
        for fault in subject.keys.FAULTS:
            judging.planted(subject.code, fault)
            assert subject.line(fault) > 0
            assert not fault.forward or subject.code.count(fault.forward) == 1
            assert set(fault.kind.split("|")) <= set(judging_kinds())


def judging_kinds():
    from funcprop.checking import MISTAKES

    return MISTAKES


def test_a_fault_is_proven_and_what_is_none_is_not(judging, course):
    first, *_ = course.keys.FAULTS
    harmless = first._replace(new="dscores = dscores / num_train", leaves="0")
    forward = first._replace(old="0.5 * REG", new="0.6 * REG", leaves="0")
    named = (harmless._replace(name="harmless"), forward._replace(name="forward"), first)
    changed = {"FAULTS": named, "HARD": course.keys.HARD[:1]}
    keys = SimpleNamespace(**vars(course.keys) | changed)
    said = judging.prove(course._replace(keys=keys))
    assert "it hits [], the key says 0" in said[0]
    assert any("it changes the forward pass" in line for line in said)
    assert {line.split(": ")[1] for line in said} == {"harmless", "forward"}


@pytest.mark.slow
def test_the_faults_of_a_file_are_proven(judging, course):
    assert not judging.prove(course)


def test_a_line_that_mends_the_fault_names_it(judging, course):
    fault, *_ = course.keys.FAULTS
    number = course.line(fault)
    assert judging.mends(course, fault, number, "dscores /= num_train")
    assert judging.mends(course, fault, number, "dscores = dscores / len(y)")
    assert not judging.mends(course, fault, number, "dscores /= 2 * num_train")
    assert not judging.mends(course, fault, number, "dscores /=")


@pytest.mark.parametrize(
    ("kind", "line", "verdict"),
    [
        ("factor", "course_softmax.py:14: data_loss = ...", "named"),
        ("factor", "", "kind alone"),
        ("factor", "course_softmax.py:15: reg_loss = ...", "kind, another line"),
        ("sign", "course_softmax.py:14: data_loss = ...", "wrong cause"),
        ("unknown", "", "unknown"),
    ],
)
def test_verdicts(judging, course, kind, line, verdict):
    fault, *_ = course.keys.FAULTS
    assert course.forward_line(fault) == 14
    report = SimpleNamespace(findings=[SimpleNamespace(kind=kind, line=line)])
    assert judging.verdict(course, fault, report) == verdict
    assert judging.verdict(course, fault, SimpleNamespace(findings=[])) == "unknown"


def test_a_wrong_gradient_is_judged_and_a_right_one_cleared(judging, course):
    fault, hard = course.keys.FAULTS[1], course.keys.HARD[2]
    row = judging.judge(course, fault)
    assert row.found
    assert row.placed
    assert row.verdict == "named"
    assert judging.alarm(course, hard).found is False
