"""What is left in the folder of a run when something goes wrong while `funcprop train` replaces it.

Writers are killed with -9 (before and after each of their calls that change the disk, and at random
moments), terminated, run into a full disk, or write two at once; bits of the folder are flipped. It
is judged by `funcprop predict`, whose lines must be those of the old or of the new run to the
letter, by the bare files and their checksums, and by the user's own files in the folder, which must
still be there.

    whole old, whole new    the predictions are those of that run
    refused                 predict says that the folder is damaged
    lost                    the same, where nothing was damaged; or a file of the user's is gone
    mixed                   files of two runs, or predictions that are neither's
    silently other          a bit was flipped, and the predictions are not the old run's
    rubbish                 a hidden file is left; of killed writers, when the next one has written
"""

from __future__ import annotations

import argparse
import builtins
import collections
import contextlib
import ctypes
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

HEADER = (
    *("fault", "times", "whole old", "whole new", "refused", "lost", "mixed", "silently other"),
    *("rubbish", "exit codes"),
)
RUNS: dict[str, tuple[int, int, tuple[str, str]]] = {  # scale and shift of features, classes
    "old": (1, 0, ("neg", "pos")),
    "new": (1000, 500, ("zz", "ay")),  # the classes come the other way round
    "other": (1, -3, ("q", "p")),
}
PICTURE_SIZE = 20_000  # bytes of the picture, which is not drawn
CLONE_NEWUSER, CLONE_NEWNS = 0x10000000, 0x20000
CALLS = ("mkdir", "rename", "replace", "unlink", "rmdir", "fsync")


# ------------------------------------------------------------------------------- processes


class Process:
    """``cli.main(words)`` in a fork of this process, which has imported all and started no JAX.

    ``prepare`` runs in it first, and ``finish`` last.
    """

    def __init__(
        self,
        words: list[str],
        prepare: Callable[[], None] = lambda: None,
        finish: Callable[[], None] = lambda: None,
    ):
        self.output = tempfile.TemporaryFile()  # noqa: SIM115
        sys.stdout.flush()
        self.begun = time.perf_counter()
        self.number = os.fork()
        if self.number:
            return
        code = 99
        try:
            os.dup2(self.output.fileno(), 1)
            os.dup2(self.output.fileno(), 2)
            prepare()
            from funcprop.cli import main as cli

            code = cli.main(words)
            sys.stdout.flush()
            finish()
        finally:
            os._exit(code)

    def wait(self) -> int:
        code = os.waitstatus_to_exitcode(os.waitpid(self.number, 0)[1])
        self.seconds = time.perf_counter() - self.begun
        return code

    def said(self) -> str:
        self.output.seek(0)
        return self.output.read().decode()


def undrawn() -> None:
    """A picture takes a second to draw, in which nothing happens to the folder."""
    from funcprop.cli import runs

    runs._draw = lambda file, *rest: bool(file.write(os.urandom(PICTURE_SIZE)))


def trapped(at: float, act: Callable[[], None], after: bool = False) -> list[str]:
    """Calls ``act`` at call ``at`` of those that change the disk; returns the list of calls."""
    made: list[str] = []

    def trap(name: str, call: Any) -> Any:
        def called(*arguments: Any, **options: Any) -> Any:
            made.append(name)
            here = len(made) == at
            if here and not after:
                act()
            try:
                return call(*arguments, **options)
            finally:
                if here and after:
                    act()

        return called

    class Torn(io.FileIO):
        """A new file, written in two halves."""

        def write(self, data: Any) -> int:
            half = trap("write", super().write)
            return half(data[: len(data) // 2]) + half(data[len(data) // 2 :])

    opened, create = builtins.open, trap("create", Torn)
    builtins.open = lambda path, mode="r", *rest, **options: (  # type: ignore[assignment]
        create(path, mode) if "x" in mode else opened(path, mode, *rest, **options)
    )
    for name in CALLS:
        setattr(os, name, trap(name, getattr(os, name)))
    return made


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


# ----------------------------------------------------------------------------- the judge


class Place:
    """A folder of work: data, an old and a new run, and what faults leave of them."""

    def __init__(self, root: Path, seed: int):
        self.root, self.random = root, np.random.default_rng(seed)
        self.count, times = 0, []
        x = self.random.normal(size=(200, 2))
        for name, (scale, shift, classes) in RUNS.items():
            lines = [
                f"{a:.5f},{b:.5f},{classes[int(i)]}\n"
                for (a, b), i in zip(scale * x + shift, x.sum(axis=1) > 0, strict=True)
            ]
            (root / f"{name}.csv").write_text("".join(lines))
            process = Process(self.train(root / name, name), undrawn)
            assert process.wait() == 0, process.said()
            times.append(process.seconds)
        self.seconds = min(times)
        (root / "old" / "notes.txt").write_text("mine")
        (root / "old" / "plots").mkdir()
        (root / "old" / "plots" / "a.txt").write_text("mine")
        self.answers = dict(zip(RUNS, self.predicted([root / name for name in RUNS]), strict=True))
        assert len({said for _, said in self.answers.values()}) == len(RUNS), self.answers

    def train(self, folder: Path, name: str = "new") -> list[str]:
        words = ["train", "--data", str(self.root / f"{name}.csv"), "--out", str(folder)]
        return [*words, "--sizes", "4", "--epochs", "2", "--quiet"]

    def fresh(self) -> Path:
        """A folder that holds the old run."""
        self.count += 1
        folder = self.root / "left" / str(self.count) / "run"
        shutil.copytree(self.root / "old", folder)
        return folder

    def predicted(self, folders: list[Path]) -> list[tuple[int, str]]:
        """What `funcprop predict` says to each folder, all in one process."""
        found = self.root / "found.json"
        data = str(self.root / "old.csv")

        def predict() -> None:
            from funcprop.cli import main as cli

            results = []
            for folder in folders:
                out, err = io.StringIO(), io.StringIO()
                with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                    code = cli.main(["predict", str(folder), data])
                results.append((code, out.getvalue() if code == 0 else err.getvalue()))
            found.write_text(json.dumps(results))

        process = Process(["--version"], predict)
        assert process.wait() == 0, process.said()
        return [(code, text) for code, text in json.loads(found.read_text())]

    def verdicts(
        self, folders: list[Path], new: tuple[str, ...] = ("new",), damaged: bool = False
    ) -> collections.Counter[str]:
        """How many folders are what."""
        counts: collections.Counter[str] = collections.Counter()
        bare = [_bare(folder) for folder in folders]
        said = self.predicted(folders) if folders else []
        for folder, lies, answer in zip(folders, bare, said, strict=True):
            if answer == self.answers["old"]:
                verdict = "whole old"
            elif damaged:
                verdict = "refused" if answer[0] == 2 else "silently other"
            elif answer[0] != 0:
                verdict = "lost"
            elif answer in [self.answers[name] for name in new]:
                verdict = "whole new"
            else:
                verdict = "mixed"
            if not damaged and lies == "mixed":
                verdict = "mixed"
            notes = [folder / "notes.txt", folder / "plots" / "a.txt"]
            if not all(path.is_file() and path.read_text() == "mine" for path in notes):
                verdict = "lost"
            if verdict in ("lost", "mixed", "silently other"):
                print(f"{verdict}: {answer}: {sorted(os.listdir(folder))}", file=sys.stderr)
            counts[verdict] += 1
        return counts


def _bare(folder: Path) -> str:
    """The files as they lie, to a program that knows nothing of a run that is not in place yet."""
    from funcprop.cli import run_folder

    try:
        described = json.loads((folder / run_folder.MODEL).read_bytes())
        files = {
            name: (folder / name).read_bytes()
            for name in run_folder.COMPANIONS
            if (folder / name).is_file()
        }
        run_folder.check(folder, described, files)
    except FileNotFoundError:
        return "absent"
    except Exception:
        return "mixed"
    return "whole"


def rubbish(folder: Path) -> bool:
    """Whether anything hidden is in a run's folder or next to it."""
    return any(path.name.startswith(".") for path in (*folder.parent.iterdir(), *folder.iterdir()))


def rewritten(folder: Path) -> Path:
    """The same folder when the next writer has been there, in a copy."""
    from funcprop.cli import run_folder

    copy = folder.parent.with_name(f"{folder.parent.name}-next") / "run"
    shutil.copytree(folder, copy)
    run_folder.write(copy, {}, {run_folder.PARAMS: b""})
    return copy


# -------------------------------------------------------------------------------- faults


def kills(place: Place, times: int) -> Iterator[list[str]]:
    """Half of them at a call, a quarter while the folder is written, a quarter at any moment."""
    log = place.root / "calls"

    def listed() -> None:
        undrawn()
        made = trapped(0, die)
        from funcprop.cli import run_folder

        write = run_folder.write

        def logged(*arguments: Any) -> None:
            made.clear()
            begun = time.perf_counter()
            write(*arguments)
            seconds = time.perf_counter() - begun
            log.write_text(json.dumps([seconds, made]))

        run_folder.write = logged

    process = Process(place.train(place.fresh()), listed)
    assert process.wait() == 0, process.said()
    seconds, made = json.loads(log.read_text())

    def writing(act: Callable[[], Any]) -> Callable[[], None]:
        def prepare() -> None:
            from funcprop.cli import run_folder

            undrawn()
            write = run_folder.write
            run_folder.write = lambda *arguments: (act(), write(*arguments))[1]

        return prepare

    def at(call: int, after: bool) -> Callable[[], None]:
        return writing(lambda: trapped(call, die, after))

    calls = [(n + 1, after) for n in range(len(made)) for after in (False, True)]
    chosen = [calls[i] for i in place.random.permutation(len(calls))[: -(-times // 2)]]
    yield row(f"kill -9 at one of {len(made)} calls", *_killed(place, [at(*c) for c in chosen]))
    ready, begins = os.pipe()
    part = times // 4
    waits = [lambda: os.read(ready, 1)] * part
    prepares = [writing(lambda: os.write(begins, b"."))] * part
    delays = place.random.uniform(0, 1.2 * seconds, size=part)
    yield row("kill -9 while it writes", *_killed(place, prepares, waits, delays))
    rest = max(0, times - len(chosen) - part)
    delays = place.random.uniform(0, 1.1 * place.seconds, size=rest)
    yield row(
        "kill -9 at any moment", *_killed(place, [undrawn] * rest, [lambda: b""] * rest, delays)
    )


def _killed(
    place: Place,
    prepares: list[Callable[[], None]],
    waits: list[Callable[[], bytes]] | None = None,
    delays: Any = None,
) -> tuple[list[int], collections.Counter[str], int]:
    """Writers that kill themselves; or are killed so many seconds after what is waited for."""
    folders, codes = [], []
    for i, prepare in enumerate(prepares):
        folders.append(place.fresh())
        process = Process(place.train(folders[-1]), prepare)
        if waits is not None:
            waits[i]()
            time.sleep(delays[i])
            os.kill(process.number, signal.SIGKILL)
        codes.append(process.wait())
    dirty = sum(rubbish(rewritten(folder)) for folder in folders)
    return codes, place.verdicts(folders), dirty


def terminations(place: Place, times: int) -> list[str]:
    """SIGTERM at any moment and, every other time, once the network is trained."""
    folders, codes = [], []
    for i in range(times):
        folders.append(place.fresh())
        moment = float(place.random.uniform(0, 1))

        def prepare(late: bool = i % 2 == 1, moment: float = moment) -> None:
            from funcprop.cli import runs

            undrawn()
            if late:
                save = runs.save

                def soon(*arguments: Any) -> Any:
                    threading.Timer(0.03 * moment, os.kill, (os.getpid(), signal.SIGTERM)).start()
                    return save(*arguments)

                runs.save = soon

        process = Process(place.train(folders[-1]), prepare)
        if i % 2 == 0:
            # The command must have begun: before that, Python's own end of a process is meant.
            time.sleep(0.2 + moment * place.seconds)
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.number, signal.SIGTERM)
        codes.append(process.wait())
        last = process.said().splitlines()[-1]
        assert codes[-1] == 0 or last.startswith("funcprop train: terminated"), last
    return row("SIGTERM", codes, place.verdicts(folders), sum(map(rubbish, folders)))


def flips(place: Place, times: int) -> list[str]:
    """One bit of one file."""
    folders = []
    for i in range(times):
        folder = place.fresh()
        name = ("params.npz", "model.json", "metrics.jsonl", "training.png")[i % 4]
        content = bytearray((folder / name).read_bytes())
        bit = int(place.random.integers(8 * len(content)))
        content[bit // 8] ^= 1 << bit % 8
        (folder / name).write_bytes(content)
        folders.append(folder)
    counts = place.verdicts(folders, damaged=True)
    return row("one bit flipped", [], counts, sum(map(rubbish, folders)))


def full_disks(place: Place, times: int) -> list[str]:
    """A file system of its own with some pages left; else a limit to the size of a file."""
    library = ctypes.CDLL(None, use_errno=True)
    mounts = subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode == 0
    folders, codes = [], []
    for i in range(times):
        folder = place.fresh()
        kib = 4 * (i * 12 // max(1, times - 1))  # what the run needs is somewhat less at the end
        disk = folder.parent / "disk"
        disk.mkdir()

        def prepare(kib: int = kib, disk: Path = disk, folder: Path = folder) -> None:
            undrawn()
            if not mounts:
                import resource

                resource.setrlimit(resource.RLIMIT_FSIZE, (1024 * kib, resource.RLIM_INFINITY))
                return
            user, group = os.getuid(), os.getgid()
            assert library.unshare(CLONE_NEWUSER | CLONE_NEWNS) == 0
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"0 {user} 1")
            Path("/proc/self/gid_map").write_text(f"0 {group} 1")
            options = b"size=128k"
            assert library.mount(b"tmpfs", bytes(disk), b"tmpfs", 0, options) == 0
            shutil.copytree(folder, disk / "run")
            free = os.statvfs(disk)
            filler = free.f_bavail * free.f_bsize - 1024 * kib
            (disk / "filler").write_bytes(bytes(max(0, filler)))

        def finish(disk: Path = disk, folder: Path = folder) -> None:
            if mounts:  # nobody else sees that disk
                shutil.rmtree(folder)
                shutil.copytree(disk / "run", folder)

        process = Process(place.train(disk / "run" if mounts else folder), prepare, finish)
        codes.append(process.wait())
        shutil.rmtree(disk)
        folders.append(folder)
        last = process.said().splitlines()[-1]
        assert codes[-1] == 0 or last.startswith("funcprop train: cannot write to "), last
    kind = "a tmpfs of its own" if mounts else "RLIMIT_FSIZE"
    return row(f"full disk ({kind})", codes, place.verdicts(folders), sum(map(rubbish, folders)))


def two_writers(place: Place, times: int) -> list[str]:
    """Two that come to the end of their training together, and a reader all the while."""
    from funcprop.cli import run_folder

    folders, codes = [], []
    for _ in range(times):
        folder = place.fresh()
        folders.append(folder)
        go = folder.parent / "go"

        def prepare(ready: Path, go: Path = go) -> None:
            from funcprop.cli import runs

            undrawn()
            save = runs.save

            def together(*arguments: Any) -> Any:
                ready.touch()
                while not go.exists():
                    time.sleep(0.0001)
                return save(*arguments)

            runs.save = together

        both = [folder.parent / name for name in ("new", "other")]
        writers = [
            Process(place.train(folder, ready.name), lambda ready=ready: prepare(ready))
            for ready in both
        ]
        while not all(ready.exists() for ready in both):
            time.sleep(0.001)
        go.touch()
        until = time.perf_counter() + 0.3
        while time.perf_counter() < until:
            described, files = run_folder.read(folder)  # which raises where it finds none
            run_folder.check(folder, described, files)
        codes += [writer.wait() for writer in writers]
    counts = place.verdicts(folders, new=("new", "other"))
    return row("two writers and a reader", codes, counts, sum(map(rubbish, folders)))


def row(name: str, codes: list[int], counts: collections.Counter[str], dirty: int) -> list[str]:
    times = sum(counts.values())
    ends = collections.Counter(codes)
    seen = ", ".join(f"{code}: {n}" for code, n in sorted(ends.items()))
    return [name, str(times), *(str(counts[kind]) for kind in HEADER[2:8]), str(dirty), seen or "-"]


def main(arguments: list[str] | None = None) -> list[list[str]]:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faults",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name, default in (
        *(("kills", 100), ("flips", 100), ("terms", 20), ("disks", 13), ("pairs", 10)),
        ("seed", 0),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default: {default}")
    options = parser.parse_args(arguments)
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="funcprop-faults-") as root:
        # Before JAX is imported: programs compiled once serve all forks.
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(root) / "programs")
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
        import funcprop.cli  # noqa: F401

        from .timing import table

        place = Place(Path(root), options.seed)
        rows = [
            *kills(place, options.kills),
            terminations(place, options.terms),
            flips(place, options.flips),
            full_disks(place, options.disks),
            two_writers(place, options.pairs),
        ]
    rows = [cells for cells in rows if cells[1] != "0"]
    print(table(HEADER, rows))
    print(f"\n{time.perf_counter() - begun:.0f} s, a training takes {place.seconds:.1f} s")
    return rows


if __name__ == "__main__":
    main()
