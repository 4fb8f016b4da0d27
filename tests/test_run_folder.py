"""The folder of a run: whole or absent, whatever happens while it is written."""

import builtins
import errno
import functools
import io
import json
import os
import shutil
import stat
import sys
import threading

import jax
import numpy as np
import pytest

from funcprop import mlp
from funcprop.cli import files, run_folder, trained
from funcprop.cli.files import CommandError

SIZES = (2, 3, 2)
NAMES = {"params.npz", "metrics.jsonl", "training.png", "model.json"}


def fields(**changed):
    meaning = trained.Meaning(np.zeros(2), np.ones(2), 1.0, ["a", "b"])
    return trained.described(SIZES, "relu", "hinge", meaning) | changed


@functools.cache
def params(seed):
    return mlp(SIZES).init(jax.random.key(seed), SIZES[:1])[0]


def save(folder, seed, picture=b"PNG"):
    metrics = f"run {seed}\n"
    trained.save(folder, fields(), params(seed), metrics, picture and picture + bytes([seed]))


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def found(folder):
    """Which of the runs a folder holds, read twice: by the library, and as it lies there."""
    _, files_read = run_folder.read(folder)
    loaded = trained.load(folder)[1]
    (seed,) = [s for s in range(9) if np.array_equal(loaded[0]["w"], params(s)[0]["w"])]
    assert files_read["metrics.jsonl"] == b"run %d\n" % seed
    return seed


@pytest.fixture
def folder(tmp_path):
    """One that holds run 0, and a user's own files."""
    folder = tmp_path / "run"
    save(folder, 0)
    (folder / "notes.txt").write_text("mine")
    (folder / "plots").mkdir()
    (folder / "plots" / "a.txt").write_text("mine too")
    return folder


def is_mine(folder):
    assert (folder / "notes.txt").read_text() == "mine"
    assert (folder / "plots" / "a.txt").read_text() == "mine too"
    return {path.name for path in folder.iterdir()} - {"notes.txt", "plots"}


def test_a_run_takes_the_place_of_another(folder):
    number = folder.stat().st_ino
    save(folder, 1)
    assert found(folder) == 1
    assert is_mine(folder) == NAMES
    save(folder, 2, picture=None)
    assert found(folder) == 2
    assert is_mine(folder) == NAMES - {"training.png"}
    assert folder.stat().st_ino == number


def test_what_is_written_has_the_usual_permissions(tmp_path):
    before = os.umask(0o027)
    try:
        save(tmp_path / "deep" / "run", 0)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "deep" / "run").stat().st_mode) == 0o750
    for path in (tmp_path / "deep" / "run").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_link_to_a_folder_is_followed(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder, target_is_directory=True)
    run_folder.check_writable(tmp_path / "link")
    save(tmp_path / "link", 1)
    assert (tmp_path / "link").is_symlink()
    assert found(folder) == 1


def test_the_current_folder_stays_it(folder, monkeypatch):
    monkeypatch.chdir(folder)
    save(type(folder)("."), 1)
    assert set(os.listdir()) > NAMES
    assert found(folder) == 1


# --------------------------------------------------------------------------- every moment


class Killed(BaseException):
    """Stands for kill -9: nothing that the process does after it reaches the disk."""


def trapped(patch, at, error, *, names=("unlink", "rmdir"), forever=False):
    """Makes call ``at`` of those that change a disk raise, and with ``forever`` all after it.

    Returns the names of the calls made, a list that grows.
    """
    made = []

    def trap(name, call):
        def called(*arguments, **options):
            made.append(name)
            if len(made) == at or (forever and len(made) > at):
                raise error
            return call(*arguments, **options)

        return called

    class Torn(io.FileIO):
        """A new file, written in two halves."""

        def write(self, data):
            half = trap("write", super().write)
            return half(data[: len(data) // 2]) + half(data[len(data) // 2 :])

    opened = builtins.open
    create = trap("create", Torn)
    patch.setattr(
        builtins,
        "open",
        lambda path, mode="r", *a, **k: (
            create(path, mode) if "x" in mode else opened(path, mode, *a, **k)
        ),
    )
    for name in ("mkdir", "rename", "replace", "fsync", *names):
        patch.setattr(os, name, trap(name, getattr(os, name)))
    return made


def as_it_lies(folder):
    """Checks the bare files, as somebody else's program finds them."""
    lying = content(folder)
    if "model.json" in lying:  # without it the folder holds no run
        companions = {n: c for n, c in lying.items() if n in run_folder.COMPANIONS}
        run_folder.check(folder, json.loads(lying["model.json"]), companions)


@pytest.mark.parametrize("picture", [b"PNG", None])
def test_a_writer_killed_at_any_call_leaves_a_whole_run(folder, tmp_path, monkeypatch, picture):
    start, names = tmp_path / "start", NAMES if picture else NAMES - {"training.png"}
    folder.rename(start)
    seen, done = [], False
    while not done:
        shutil.copytree(start, folder)
        with monkeypatch.context() as patch:
            made = trapped(patch, len(seen) + 1, Killed, forever=True)
            try:
                save(folder, 1, picture)
                done = True
            except Killed:
                pass
        as_it_lies(folder)
        copy = shutil.copytree(folder, tmp_path / "copy")
        seen.append(found(folder))
        as_it_lies(folder)
        assert is_mine(folder) - {*NAMES} == {n for n in os.listdir(folder) if "unfinished" in n}
        # The next writer finds the same, and leaves no rubbish.
        save(copy, 2, picture)
        assert found(copy) == 2
        assert is_mine(copy) == names
        for path in (folder, copy):
            shutil.rmtree(path)
    assert len(seen) == len(made) + 1 > 20
    assert {"mkdir", "create", "write", "fsync", "rename", "unlink", "replace"} <= set(made)
    # Each file and the folder of them are on the disk before they count.
    assert made[: made.index("rename")].count("fsync") == len(names) + 1
    assert seen == sorted(seen)
    assert set(seen) == {0, 1}


def test_a_reader_killed_while_it_finishes_a_run_leaves_it_whole(folder, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        made = trapped(patch, 99, Killed)
        save(tmp_path / "other", 1, None)
    with monkeypatch.context() as patch:
        trapped(patch, made.index("rename") + 2, Killed, forever=True)
        with pytest.raises(Killed):
            save(folder, 1, None)
    assert (folder / "model.json").exists()
    assert (folder / run_folder.PENDING / "model.json").exists()
    at, done = 0, False
    while not done:
        at += 1
        copy = shutil.copytree(folder, tmp_path / f"copy {at}")
        with monkeypatch.context() as patch:
            trapped(patch, at, Killed, forever=True)
            try:
                run_folder.read(copy)
                done = True
            except Killed:
                pass
        as_it_lies(copy)
        assert found(copy) == 1
        assert is_mine(copy) == NAMES - {"training.png"}
    assert at > 5


def test_a_new_run_is_whole_or_absent_when_its_writer_is_killed(tmp_path, monkeypatch):
    folder, seen, done = tmp_path / "deep" / "run", [], False
    while not done:
        with monkeypatch.context() as patch:
            trapped(patch, len(seen) + 1, Killed, forever=True)
            try:
                save(folder, 1)
                done = True
            except Killed:
                pass
        if folder.exists():
            as_it_lies(folder)
        if (folder / run_folder.PENDING).exists() or (folder / "model.json").exists():
            seen.append(found(folder))
        else:
            seen.append(0)
            with pytest.raises(CommandError, match="holds no trained network"):
                trained.load(folder)
        shutil.rmtree(tmp_path / "deep", ignore_errors=True)
    assert len(seen) > 20
    assert seen == sorted(seen)


def test_a_disk_that_is_full_at_any_call_leaves_the_old_run(folder, monkeypatch):
    at, after = 1, []  # the first call makes the folder, and it is there
    full = OSError(errno.ENOSPC, "No space left on device")
    while True:
        at += 1
        with monkeypatch.context() as patch:
            made = trapped(patch, at, full, names=())
            try:
                save(folder, 1)
            except CommandError as error:
                problem = str(error)
            else:
                break
        assert problem.startswith(f"cannot write to {folder}: No space left on device")
        if "the new run stands in" in problem:
            after.append(made[-1])
            assert found(folder) == 1
            save(folder, 0)
        assert found(folder) == 0
        assert is_mine(folder) == NAMES
    assert at > 15
    assert after == ["replace", "replace", "replace", "fsync", "replace", "fsync"]


def test_a_new_folder_is_whole_or_absent_on_a_full_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda number: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(CommandError, match=r"cannot write to .*: full"):
        save(tmp_path / "deep" / "run", 0)
    assert list(tmp_path.iterdir()) == []


def test_writers_and_readers_at_once(folder):
    # What they do to the disk is in one process as in several: the lock is that of an open folder.
    seen, problems = set(), []

    def work(seed):
        try:
            for _ in range(8):
                run_folder.write(folder, fields(), contents[seed])
        except BaseException as error:
            problems.append(error)

    contents = [
        {"params.npz": bytes([i]), "metrics.jsonl": bytes([i])}
        | ({"training.png": b"0"} if i else {})
        for i in range(3)
    ]
    run_folder.write(folder, fields(), contents[0])
    writers = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        described, found = run_folder.read(folder)
        run_folder.check(folder, described, found)
        assert found in contents
        seen.add(found["params.npz"])
    assert problems == []
    assert len(seen) > 1
    assert is_mine(folder) | {"training.png"} == NAMES


def test_where_there_are_no_locks_a_living_writer_is_not_swept_away(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    (folder / f"{run_folder.UNFINISHED}1").mkdir()
    save(folder, 1)
    assert found(folder) == 1
    assert is_mine(folder) == {*NAMES, f"{run_folder.UNFINISHED}1"}


def test_a_pending_run_is_read_where_nothing_can_be_moved(folder, monkeypatch):
    with monkeypatch.context() as patch:
        made = trapped(patch, 99, Killed)
        save(folder, 0, None)
        at = made.index("replace") + 2
    with monkeypatch.context() as patch:
        trapped(patch, at, Killed, forever=True)
        with pytest.raises(Killed):
            save(folder, 1, None)
    monkeypatch.setattr(os, "replace", lambda *paths: (_ for _ in ()).throw(PermissionError()))
    assert found(folder) == 1
    assert run_folder.PENDING in is_mine(folder)


# ------------------------------------------------------------------------ before a training


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda out: out.write_text(""), "Not a directory"),
        (lambda out: out.symlink_to("nowhere"), "is a symbolic link to nothing; make its target"),
        (lambda out: (out / "model.json").mkdir(parents=True), "its model.json is a folder"),
        (lambda out: (out / "training.png").mkdir(parents=True), "its training.png is a folder"),
    ],
)
@pytest.mark.parametrize("under", ["", "deep/run"])
def test_a_place_that_is_none_is_found_out_before(tmp_path, prepare, message, under):
    out = tmp_path / "out"
    prepare(out)
    if under and out.is_dir():
        return run_folder.check_writable(out / under)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CommandError, match=f"cannot write to {out / under}: .*{message}"):
        run_folder.check_writable(out / under)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_name_too_long_is_found_out_before(tmp_path):
    with pytest.raises(CommandError, match="File name too long"):
        run_folder.check_writable(tmp_path / ("x" * 300))


def test_a_full_disk_is_found_out_before(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda number: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(CommandError, match=r"cannot write to .*: full"):
        run_folder.check_writable(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write all")
def test_a_folder_that_is_read_only_is_found_out_before(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(CommandError, match=r"cannot write to .*: Permission denied"):
        run_folder.check_writable(tmp_path / "run")
    tmp_path.chmod(0o700)


# ----------------------------------------------------------------------------- what is read


def test_every_flipped_bit_is_found(folder):
    random = np.random.default_rng(0)
    for name in sorted(NAMES):
        good = (folder / name).read_bytes()
        for place in random.integers(8 * len(good), size=60):
            bad = bytearray(good)
            bad[place // 8] ^= 1 << (place % 8)
            (folder / name).write_bytes(bad)
            try:
                same = name == "model.json" and json.loads(bad) == json.loads(good)
            except ValueError:
                same = False
            if same:  # a space or the like
                trained.load(folder)
                continue
            with pytest.raises(CommandError, match=f"{folder}: its {name} "):
                trained.load(folder)
        (folder / name).write_bytes(good)
    assert found(folder) == 0


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_file_of_another_run_is_refused(folder, tmp_path, name):
    save(tmp_path / "other", 1)
    # model.json of the two runs differs in the checksums alone.
    shutil.copy(tmp_path / "other" / name, folder)
    wrong = "metrics.jsonl" if name == "model.json" else name
    wrong = "training.png" if name == "model.json" else name
    with pytest.raises(CommandError, match=f"its {wrong} is damaged or of another run"):
        trained.load(folder)


def test_a_picture_may_be_deleted_and_not_come_from_elsewhere(folder):
    (folder / "training.png").unlink()
    (folder / "metrics.jsonl").unlink()
    assert np.array_equal(trained.load(folder)[1][0]["w"], params(0)[0]["w"])
    save(folder, 1, picture=None)
    (folder / "training.png").write_bytes(b"PNG")
    with pytest.raises(CommandError, match=r"training.png is of another run: .* remove it"):
        trained.load(folder)


def test_a_run_of_an_older_version_is_to_be_trained_again(folder):
    (folder / "model.json").write_text(json.dumps(fields()))
    with pytest.raises(CommandError, match=r"no checksums .*an older version .*; train again with"):
        trained.load(folder)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"mean": NaN}', "[" * 100_000, '{"a": ' + "9" * 5000 + "}", "\x00"]
)
def test_what_is_no_json_is_refused(folder, text):
    (folder / "model.json").write_text(text)
    with pytest.raises(CommandError, match=f"{folder}: its model.json is damaged \\("):
        trained.load(folder)


HUGE = 10**400


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("funcprop", [1, None, ""]),
        ("sizes", [None, 3, [], [2], [2, 0], [2, 3.0, 2], [2, True, 2], [-2, 2], ["2", 2]]),
        ("activation", ["rely", None, ["relu"]]),
        ("loss", ["mse", None, {}]),
        ("mean", [None, 0.0, [0.0], [0, "0"], [0, None], [0, True], [0, HUGE], [0, 0, 0]]),
        ("scale", [None, [1], [1, 0], [1, -1.0], [HUGE, 1], [1, "1"]]),
        ("reach", [None, -1, "1", True, HUGE]),
        (
            "classes",
            [None, [], ["a"], ["a", "a"], ["a", 1], [1.0, 2.0], [True, False], "ab", [1, 1]],
        ),
        ("target_mean", [None, "0", HUGE, [0.0]]),
        ("target_scale", [None, 0, -1, HUGE]),
    ],
)
def test_every_field_of_model_json_is_checked_for_sense(folder, field, values):
    _, contents = run_folder.read(folder)
    for value in [*values, "absent"]:
        changed = fields(**{field: value})
        if value == "absent":
            del changed[field]
        (folder / "model.json").write_bytes(run_folder.seal(changed, contents))
        what = f"it has no field {field}," if value == "absent" else f"{field} is "
        with pytest.raises(CommandError, match=f"{folder}: its model.json is damaged: {what}"):
            trained.load(folder)


def test_fields_that_make_sense(folder):
    _, contents = run_folder.read(folder)
    for changed in ({"classes": [3, -1]}, {"mean": [0, 1]}, {"of_a_later_version": None}):
        (folder / "model.json").write_bytes(run_folder.seal(fields(**changed), contents))
        trained.load(folder)
    (folder / "model.json").write_bytes(run_folder.seal(fields(reach=2.0), contents))
    text = (folder / "model.json").read_text()
    (folder / "model.json").write_text(text.replace('"reach": 2.0', '"reach": 3.0'))
    with pytest.raises(CommandError, match=r"model.json is damaged or was changed: it does not"):
        trained.load(folder)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_cannot_be_loaded_is_not_trained(bad):
    meaning = trained.Meaning(np.zeros(2), np.array([1, bad]), 1.0, ["a", "b"])
    with pytest.raises(CommandError, match=f"could not be loaded again: scale is .*{bad}"):
        trained.described(SIZES, "relu", "hinge", meaning)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"w1": None}, "it holds b1, b2, w2; it must hold w1, b1, w2, b2"),
        ({"w3": np.zeros(2)}, "it holds b1, b2, w1, w2, w3; it must hold"),
        (
            {"w1": np.zeros((2, 3), "f")},
            r"w1 has shape \(2, 3\), sizes \[2, 3, 2\] make it \(3, 2\)",
        ),
        ({"b2": np.zeros(2)}, "b2 is float64, it must be float32"),
        ({"b2": np.zeros(2, int)}, "b2 is int64, it must be float32"),
        ({"b1": np.array([0, np.nan, np.inf], "f")}, "b1 must be finite, 2 of its numbers are not"),
        ({"b1": np.array([None] * 3)}, "Object arrays cannot be loaded"),
    ],
)
def test_every_array_is_checked_for_sense(folder, change, message):
    arrays = dict(np.load(folder / "params.npz")) | change
    stored = io.BytesIO()
    np.savez(stored, **{name: array for name, array in arrays.items() if array is not None})
    run_folder.write(folder, fields(), {"params.npz": stored.getvalue()})
    with pytest.raises(CommandError, match=f"{folder}: its params.npz is damaged.*{message}"):
        trained.load(folder)


# -------------------------------------------------------------------------- single files


def test_a_file_is_whole_or_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    files.write_file(path, "old")
    path.chmod(0o604)
    (tmp_path / "link").symlink_to(path)
    files.write_file(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o604
    at = 0
    while True:
        at += 1
        with monkeypatch.context() as patch:
            made = trapped(patch, at, OSError(errno.ENOSPC, "No space left on device"), names=())
            if at == 6:
                files.write_file(path, "newer")
                break
            with pytest.raises(CommandError, match=f"cannot write to {path}: No space left on"):
                files.write_file(path, "newer")
        assert path.read_text() == "new"
        assert sorted(os.listdir(tmp_path)) == ["a.txt", "link"]
    assert made == ["create", "write", "write", "fsync", "replace"]


def test_a_pipe_is_written_to_and_stays_one(tmp_path):
    # It stands for devices too: a test that fails must not replace one of the machine's.
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    files.write_file(tmp_path / "pipe", "through")
    assert os.read(reader, 99) == b"through"
    with pytest.raises(CommandError, match="pipe holds no trained network"):
        trained.load(tmp_path / "pipe")
    os.close(reader)
    assert os.listdir(tmp_path) == ["pipe"]
    with pytest.raises(CommandError, match="Is a directory"):
        files.write_file(tmp_path, "")


def test_the_file_of_standard_output_is_appended_to(tmp_path, monkeypatch):
    path = tmp_path / "log"
    path.write_text("before\n")
    with path.open("a") as log:
        status = os.fstat(log.fileno())
        monkeypatch.setattr(os, "fstat", lambda number: status)
        files.write_file(path, "after\n")
    assert path.read_text() == "before\nafter\n"
