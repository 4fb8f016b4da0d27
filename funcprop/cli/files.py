"""Files that the command line writes: whole or not at all."""

from __future__ import annotations

import json
import math
import os
import secrets
import signal
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class CommandError(Exception):
    """What was typed cannot be done: one line for the user, and the exit code."""

    def __init__(self, message: str, code: int = 2):
        super().__init__(message)
        self.code = code


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns what goes wrong while writing to ``path`` into a line for the user."""
    try:
        yield
    except OSError as error:
        raise CommandError(f"cannot write to {path}: {error.strerror or error}") from None


ASKED: list[KeyboardInterrupt] = []
"""What Ctrl-C or SIGTERM has raised in the command that runs."""


def stop_if_asked() -> None:
    """Raises it again: an exception that hits a callback of C code, such as JAX's own at every
    collection of garbage, is lost there."""
    if ASKED:
        raise ASKED[0]


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C and SIGTERM are ignored: for a few milliseconds that must not be cut in two."""
    before: dict[signal.Signals, Any] = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                before[number] = signal.getsignal(number)
                signal.signal(number, signal.SIG_IGN)
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # not one that Python cannot set again
                signal.signal(number, handler)


def write_durably(path: Path, content: bytes) -> None:
    """Writes a new file, and returns when the disk has it."""
    with open(path, "xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_file(path: str | Path, text: str) -> None:
    """Writes a text file: the old one stays as it is until the new one is whole.

    Args:
        path: a file, whose permissions stay; or a device or a named pipe, which is written to
            directly; a symbolic link is followed.
        text: what it is to hold, in UTF-8.

    Raises:
        CommandError: when that fails; the old file is then untouched.

    >>> import pathlib, tempfile
    >>> from funcprop.cli.files import write_file
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_file(pathlib.Path(folder, "a.txt"), "one\\n")
    ...     pathlib.Path(folder, "a.txt").read_text()
    'one\\n'
    """
    path, content = Path(path), text.encode()
    with writing(path):
        old = path.stat() if path.exists() else None
        if old is not None and (not stat.S_ISREG(old.st_mode) or _is_our_output(old)):
            with open(path, "ab") as device:  # which raises for a folder
                device.write(content)
            return
        if old is not None and not os.access(path, os.W_OK):
            raise PermissionError(None, "the file is read-only")
        target = Path(os.path.realpath(path))
        new = target.with_name(f".{target.name[:100]}-{secrets.token_hex(4)}.tmp")
        try:
            write_durably(new, content)
            if old is not None:
                os.chmod(new, stat.S_IMODE(old.st_mode))
            os.replace(new, target)
        finally:
            with uninterrupted():
                new.unlink(missing_ok=True)


def _is_our_output(status: os.stat_result) -> bool:
    """Whether it is the file that standard output or error goes to, as of --out /dev/stdout."""
    for number in (1, 2):
        try:
            if os.path.samestat(status, os.fstat(number)):
                return True
        except OSError:  # that one is closed
            continue
    return False


def to_json(value: Any, **options: Any) -> str:
    """JSON as its standard has it: a number that is not finite becomes ``null``.

    >>> from funcprop.cli.files import to_json
    >>> to_json({"loss": [0.5, float("nan")]})
    '{"loss": [0.5, null]}'
    """
    return json.dumps(_finite(value), allow_nan=False, **options)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
