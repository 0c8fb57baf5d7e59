"""Files: written whole or not at all; folders that may be written to, and locked by one process.

Every file is written under another name beside its path and then renamed, so that a full disk or a
killed process leaves the old file whole.
"""
import hashlib
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK = ".lock"


# --------------------------------------------------------------------------------------------------
# Writing.

@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Yields a path beside `path` to write to; renames it on success, removes it on failure.

    Raises OSError naming the file and a remedy where it cannot be written; the old file stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield beside
        os.replace(beside, path)
    except OSError as error:
        raise OSError(f"{path} could not be written ({error.strerror or error}); the old file is "
                      "untouched. Free some space or choose another folder.") from error
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: Path | str, text: str) -> None:
    """Write a text file whole or not at all. Raises OSError (see `replacing`)."""
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")


def writable(folder: Path | str) -> Path:
    """Create a folder and write a file in it as a test, before hours of work depend on it.

    Returns the folder as a Path. Raises OSError naming the folder where either fails.
    """
    folder = Path(folder)
    probe = folder / f".writable.{os.getpid()}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"test")
        probe.unlink()
    except OSError as error:
        raise OSError(f"cannot write to the folder {folder} ({error.strerror or error}); "
                      "choose another --out, or change its permissions") from error
    return folder


def sha256(path: Path | str) -> str:
    """Hex digest of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --------------------------------------------------------------------------------------------------
# Locks: one process a folder.

_held: set[Path] = set()   # locks of this process


@contextmanager
def locked(folder: Path | str) -> Iterator[Path]:
    """Holds the folder of a run for this process; unfinished files of dead processes are deleted.

    The lock is a file with the process id and the host. The lock of a process that has died on this
    host is taken over. Raises BlockingIOError if another process holds the folder, or if the lock
    was made on another host, where nobody can tell whether it is alive.
    """
    folder = writable(folder)
    path = folder.resolve() / LOCK
    _take(path)
    _held.add(path)
    try:
        remove_dead_parts(folder)
        yield folder
    finally:
        _held.discard(path)
        path.unlink(missing_ok=True)


def _take(path: Path) -> None:
    """Create the lock file, after removing one that a dead process has left."""
    mine = dict(pid=os.getpid(), host=socket.gethostname(), since=time.strftime("%Y-%m-%d %H:%M"))
    for _ in range(2):
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            _remove_if_dead(path)
            continue
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(mine, file)
        return
    raise BlockingIOError(f"another run has just started in {path.parent}; give another --out")


def _remove_if_dead(path: Path) -> None:
    """Remove the lock of a dead process. Raises BlockingIOError if its process may be alive."""
    try:
        text = path.read_text(encoding="utf-8")
        owner = json.loads(text)
        pid, host, since = int(owner["pid"]), str(owner["host"]), str(owner["since"])
    except FileNotFoundError:
        return                                                     # released in the meantime
    except (ValueError, TypeError, KeyError) as error:
        raise BlockingIOError(f"{path} is no lock of a run; delete it if no training runs in "
                              f"{path.parent}, or give another --out") from error
    own = pid == os.getpid() and path not in _held                 # our process id, used before us
    if host == socket.gethostname() and (own or not is_alive(pid)):
        aside = path.with_name(f"{LOCK}.{os.getpid()}.part")
        os.replace(path, aside)
        if aside.read_text(encoding="utf-8") == text:              # else somebody was faster
            aside.unlink()
            return
        os.replace(aside, path)
    raise BlockingIOError(f"process {pid} on {host} has been using {path.parent} since {since}; "
                          f"wait for it, give another --out, or, if it is dead, delete {path}")


def remove_dead_parts(folder: Path | str) -> None:
    """Delete what killed processes were writing in a folder. Live processes keep their files."""
    for part in Path(folder).glob(".*.part"):
        pid = part.name.split(".")[-2]
        if pid.isdecimal() and not is_alive(int(pid)):
            part.unlink(missing_ok=True)


def is_alive(pid: int) -> bool:
    """True if a process with this id exists on this machine."""
    if os.name == "nt":                        # there os.kill(pid, 0) would end the process
        return _is_alive_on_windows(pid)
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:                    # it exists and belongs to somebody else
        return True
    return True


def _is_alive_on_windows(pid: int) -> bool:
    import ctypes
    query_limited_information, still_active, access_denied = 0x1000, 259, 5
    kernel = ctypes.windll.kernel32
    handle = kernel.OpenProcess(query_limited_information, False, pid)
    if not handle:
        return kernel.GetLastError() == access_denied
    code = ctypes.c_ulong()
    kernel.GetExitCodeProcess(handle, ctypes.byref(code))
    kernel.CloseHandle(handle)
    return code.value == still_active
