"""Files that appear whole or not at all.

A file is written under a temporary name in the folder of its target, flushed to the disk and renamed. A process that is
killed leaves a `.NAME.graphopt-XXXX.tmp`, which the next save to NAME removes. Temporary files are locked while they
are written, so that another process that is still at work does not lose its own.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from graphopt.errors import OutputError

try:
    import fcntl
except ImportError:  # not a POSIX system: leftovers are then judged by age
    fcntl = None  # type: ignore[assignment]

#: Without locks, a temporary file is a leftover after this many seconds.
_STALE = 24 * 3600


class Pending:
    """A file being written beside its target."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.path = target.with_name(f".{target.name}.graphopt-{os.getpid()}-{secrets.token_hex(4)}.tmp")
        descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_CLOEXEC", 0), 0o666)
        self.file: BinaryIO = os.fdopen(descriptor, "wb", buffering=1 << 20)
        if fcntl is not None:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with contextlib.suppress(OSError):  # a file that is replaced keeps its permissions
            os.fchmod(descriptor, stat.S_IMODE(os.stat(target).st_mode))

    def finish(self) -> None:
        """Makes sure that the contents are on the disk before any name leads to them."""
        self.file.flush()
        os.fsync(self.file.fileno())

    def rename(self) -> None:
        os.replace(self.path, self.target)
        self.file.close()

    def discard(self) -> None:
        with contextlib.suppress(OSError):
            self.file.close()
        with contextlib.suppress(OSError):
            self.path.unlink()


def sync_folder(folder: Path) -> None:
    """Puts renames on the disk. Not every system can; the renames are atomic all the same."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_leftovers(target: Path) -> None:
    """Removes temporary files that a save to ``target`` left behind when it was killed."""
    pattern = re.compile(rf"\.{re.escape(target.name)}\.graphopt-(\d+)-[0-9a-f]+\.tmp")
    with contextlib.suppress(OSError), os.scandir(target.parent) as entries:
        for entry in entries:
            match = pattern.fullmatch(entry.name)
            if match and _is_leftover(entry, int(match[1])):
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)


def _is_leftover(entry: os.DirEntry[str], process: int) -> bool:
    if fcntl is None:
        import time

        return time.time() - entry.stat().st_mtime > _STALE
    try:
        descriptor = os.open(entry.path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False  # someone is writing it
    finally:
        os.close(descriptor)
    # Between creating a file and locking it there is a moment: a process that lives may be in it.
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return False


def same_file(one: Path, other: Path) -> bool:
    """Whether two names lead to one file, through symbolic or hard links too."""
    try:
        return os.path.samefile(one, other)
    except OSError:
        return os.path.abspath(one) == os.path.abspath(other)


def mentions(path: Path, name: str) -> bool:
    """Whether a file holds ``name`` anywhere in its bytes. True where that cannot be found out."""
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return data.find(name.encode()) >= 0
    except ValueError:  # an empty file cannot be mapped
        return False
    except OSError:
        return True


def mentioned_by_others(data: Path, target: Path) -> bool:
    """Whether any other model in the folder may refer to this data file."""
    with os.scandir(data.parent) as entries:
        models = [Path(e.path) for e in entries if e.name.endswith((".onnx", ".onnx_data", ".ort")) and e.name != target.name]
    return any(mentions(model, data.name) for model in models if model.suffix != ".onnx_data")


def check_target(target: Path) -> None:
    """Refuses a target before any work is done for it.

    Raises:
        OutputError: no such folder, no permission, or the target is a folder.
    """
    folder = target.parent
    if not folder.exists():
        raise OutputError(f"{target}: the folder {folder} does not exist")
    if not folder.is_dir():
        raise OutputError(f"{target}: {folder} is not a folder")
    if target.is_dir():
        raise OutputError(f"{target}: is a folder; name a file")
    if target.exists() and not target.is_file():
        raise OutputError(f"{target}: is not a regular file")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{target}: no permission to write into {folder}")


@contextlib.contextmanager
def explained(target: Path) -> Iterator[None]:
    """Turns an OSError of writing ``target`` into one line."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            cause = "no space left" if error.errno != errno.EFBIG else "the file would be larger than allowed here"
        else:
            cause = error.strerror or str(error)
        raise OutputError(f"{target}: cannot be written: {cause}") from None


def write_text(path: Path, text: str) -> None:
    """Writes a file of text, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    pending = None
    with explained(path):
        try:
            pending = Pending(path)
            pending.file.write(text.encode())
            pending.finish()
            pending.rename()
        except BaseException:
            if pending is not None:
                pending.discard()
            raise


def discard_all(pending: Iterable[Pending]) -> None:
    for file in pending:
        file.discard()
