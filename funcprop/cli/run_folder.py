"""The folder of a training run: whole or absent, and never of two runs.

A run is written into a hidden folder inside of its folder, and one rename to ``PENDING`` makes it
the run that counts. Its files are then moved to their places, ``model.json`` last; whoever finds
``PENDING`` there, a reader or the next writer, goes on with that. So a process may be killed at any
moment. The folder itself is never moved: it may be a mount point, a link or the current folder,
keeps its permissions, and what else lies in it is not touched.

A lock on the folder keeps two writers, or a writer and a reader, apart. Where the system has none,
the checksums in ``model.json`` still refuse what is of two runs.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .files import CommandError, uninterrupted, write_durably, writing

PICTURE, METRICS, PARAMS, MODEL = "training.png", "metrics.jsonl", "params.npz", "model.json"
PENDING, UNFINISHED = ".funcprop-new", ".funcprop-unfinished-"
COMPANIONS = (PICTURE, METRICS, PARAMS)  # the files whose checksums are in MODEL
DAMAGE = (ValueError, KeyError, TypeError, RecursionError)  # what a damaged MODEL raises


def check_writable(folder: Path) -> None:
    """Finds out before a training whether a run can be written, and leaves nothing behind.

    Args:
        folder: where the run is to go; it and its parents may be absent.

    Raises:
        CommandError: when one cannot write there.

    >>> import pathlib, tempfile
    >>> from funcprop.cli import run_folder
    >>> with tempfile.TemporaryDirectory() as parent:
    ...     run_folder.check_writable(pathlib.Path(parent, "deep", "run"))
    ...     list(pathlib.Path(parent).iterdir())
    []
    """
    with writing(folder):
        place = folder
        while True:
            try:
                os.stat(place)
                break
            except FileNotFoundError:
                if place.is_symlink():
                    raise FileNotFoundError(
                        None, f"{place} is a symbolic link to nothing; make its target or remove it"
                    ) from None
                if place == place.parent:
                    raise
                place = place.parent
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(bytes(4096))  # a disk that is full already is found out too
            file.flush()
            os.fsync(file.fileno())
        _check_names(folder)


def write(folder: Path, described: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
    """Puts a run in the place of the one that the folder holds.

    Args:
        folder: made where it is absent; what else lies in it stays.
        described: what ``model.json`` is to say, of finite numbers, strings, lists and ``None``.
        files: the contents of the other files, by name: ``params.npz``, and maybe
            ``metrics.jsonl`` and ``training.png``.

    Raises:
        CommandError: when that fails; the old run is then untouched, unless the message says
            otherwise.

    >>> import pathlib, tempfile
    >>> from funcprop.cli import run_folder
    >>> with tempfile.TemporaryDirectory() as parent:
    ...     folder = pathlib.Path(parent, "run")
    ...     run_folder.write(folder, {"sizes": [2, 1]}, {"params.npz": b"weights"})
    ...     sorted(path.name for path in folder.iterdir())
    ['model.json', 'params.npz']
    """
    contents = {**files, MODEL: seal(described, files)}
    made: list[Path] = []
    new = folder / f"{UNFINISHED}{os.getpid()}-{secrets.token_hex(4)}"
    stands = False
    try:
        with writing(folder):
            made += [place for place in (folder, *folder.parents) if not place.exists()]
            folder.mkdir(parents=True, exist_ok=True)
            with _locked(folder) as locked:
                _check_names(folder)
                with contextlib.suppress(*DAMAGE):  # of a run that is replaced now
                    _finish(folder)
                if locked:
                    _sweep(folder)
                new.mkdir()
                for name, content in contents.items():
                    write_durably(new / name, content)
                _sync(new)
                with uninterrupted():
                    shutil.rmtree(folder / PENDING, ignore_errors=True)
                    os.rename(new, folder / PENDING)
                    try:
                        _sync(folder)
                        (folder / MODEL).unlink(missing_ok=True)
                    except OSError:
                        os.rename(folder / PENDING, new)
                        raise
                    stands = True
                    _finish(folder)
    except CommandError as error:
        if stands:
            raise CommandError(
                f"{error}; the new run stands in {folder / PENDING}, where funcprop predict "
                "finds it"
            ) from None
        raise
    finally:
        if not stands:
            with uninterrupted():
                shutil.rmtree(new, ignore_errors=True)
                with contextlib.suppress(OSError):  # not empty: somebody else has use for it
                    for place in made:
                        place.rmdir()


def read(folder: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """What a run's folder holds; its checksums are not compared yet, see :func:`check`.

    Args:
        folder: that of a run.

    Returns:
        What ``model.json`` says, with the table ``sha256`` of checksums, and the contents of the
        other files by name; deleted ones are left out.

    Raises:
        CommandError: when there is no run, or one of an older version, or ``model.json`` is
            damaged.
    """
    with _locked(folder) as locked:
        if locked:
            with contextlib.suppress(OSError, *DAMAGE):
                _finish(folder)
        # Where that could not be done, as in a folder that is read-only, both places are read.
        pending = (folder / PENDING / MODEL).is_file()
        places = [folder / PENDING, folder] if pending else [folder]
        contents: dict[str, bytes] = {}
        for name in (*COMPANIONS, MODEL):
            for place in places:
                try:
                    contents.setdefault(name, (place / name).read_bytes())
                except (FileNotFoundError, NotADirectoryError):
                    continue
                except OSError as error:
                    raise CommandError(
                        f"{folder}: cannot read its {name}: {error.strerror or error}"
                    ) from None
    for name in (MODEL, PARAMS):
        if name not in contents:
            raise CommandError(
                f"{folder} holds no trained network ({name} is missing); "
                f"funcprop train --out {folder} makes one"
            )
    described = _parsed(folder, contents.pop(MODEL))
    table = described.get("sha256")
    if table is None:
        raise CommandError(
            f"{folder}: its {MODEL} has no checksums (sha256), an older version of funcprop wrote "
            f"it; train again with funcprop train --out {folder}"
        )
    if not isinstance(table, dict) or not {PARAMS, MODEL} <= set(table):
        raise CommandError(
            f"{folder}: its {MODEL} is damaged: sha256 must have the checksums of {PARAMS} and "
            f"{MODEL}; train again"
        )
    if pending:  # a picture of the run before may still be there
        contents = {name: content for name, content in contents.items() if name in table}
    return described, contents


def check(folder: Path, described: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
    """Compares the checksums of what :func:`read` found.

    Raises:
        CommandError: when a file is damaged, was changed, or is of another run.
    """
    table = described["sha256"]
    if table[MODEL] != _own_checksum(described):
        raise CommandError(
            f"{folder}: its {MODEL} is damaged or was changed: it does not have the checksum that "
            "it names; train again"
        )
    for name, content in files.items():
        if name not in table:
            raise CommandError(
                f"{folder}: its {name} is of another run: {MODEL} does not name it; remove it"
            )
        if table[name] != hashlib.sha256(content).hexdigest():
            raise CommandError(
                f"{folder}: its {name} is damaged or of another run: it does not have the checksum "
                f"that {MODEL} names; "
                + ("train again" if name == PARAMS else "remove it, or train again")
            )


def seal(described: Mapping[str, Any], files: Mapping[str, bytes]) -> bytes:
    """The content of ``model.json``, a line a field, with the checksums of all files.

    Args:
        described, files: as of :func:`write`.

    Raises:
        ValueError: for a number that is not finite, which JSON does not have.

    >>> import json
    >>> from funcprop.cli import run_folder
    >>> sorted(json.loads(run_folder.seal({"sizes": [2, 1]}, {"params.npz": b""}))["sha256"])
    ['model.json', 'params.npz']
    """
    table = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    whole = {**described, "sha256": table}
    whole["sha256"] = {**table, MODEL: _own_checksum(whole)}
    lines = [
        f" {json.dumps(name)}: {json.dumps(value, allow_nan=False)}"
        for name, value in whole.items()
    ]
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def _own_checksum(described: Mapping[str, Any]) -> str:
    """Of what ``model.json`` says, all but this checksum; spaces and line ends do not count."""
    table = {name: value for name, value in described["sha256"].items() if name != MODEL}
    text = json.dumps({**described, "sha256": table}, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _parsed(folder: Path, content: bytes) -> dict[str, Any]:
    def refuse(word: str) -> None:
        raise ValueError(f"{word} is not a number of JSON")

    try:
        described = json.loads(content, parse_constant=refuse)
        if not isinstance(described, dict):
            raise ValueError(f"it holds a {type(described).__name__}, it must hold an object")
    except (ValueError, RecursionError) as error:
        raise CommandError(f"{folder}: its {MODEL} is damaged ({error}); train again") from None
    return described


def _check_names(folder: Path) -> None:
    for name in (*COMPANIONS, MODEL):
        if (folder / name).is_dir():
            raise IsADirectoryError(None, f"its {name} is a folder, a file must go there")


def _finish(folder: Path) -> None:
    """Moves a run that stands in ``PENDING`` to its place, from wherever that was interrupted."""
    new = folder / PENDING
    if (new / MODEL).is_file():
        table = set(json.loads((new / MODEL).read_bytes())["sha256"])
        # Without its model.json the folder holds no run, never half of one.
        (folder / MODEL).unlink(missing_ok=True)
        for name in COMPANIONS:
            if (new / name).is_file():
                os.replace(new / name, folder / name)
            elif name not in table:
                (folder / name).unlink(missing_ok=True)
        _sync(folder)
        os.replace(new / MODEL, folder / MODEL)
        _sync(folder)
    if new.is_dir():
        shutil.rmtree(new, ignore_errors=True)


def _sweep(folder: Path) -> None:
    """Removes what writers left that were killed; the lock says that none of them is alive."""
    for path in folder.glob(f"{UNFINISHED}*"):
        shutil.rmtree(path, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Returns when the disk has the names in a folder; not every system can say."""
    try:
        number = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        return
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(number)


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Waits until nobody else reads or writes the folder; ``False`` where there are no locks."""
    try:
        import fcntl

        number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)  # and never wait for a pipe
    except (ImportError, OSError):
        yield False
        return
    try:
        try:
            fcntl.flock(number, fcntl.LOCK_EX)
            locked = True
        except OSError:  # a network file system without them
            locked = False
        yield locked
    finally:
        os.close(number)  # which gives the lock back, as the end of the process does
