"""Runs of tiny.py in processes of their own, and signals at chosen file operations.

TensorFlow takes seconds to load. A server loads it once, computes nothing with it, and forks a
process for each run.
"""

import contextlib
import gc
import itertools
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import tiny

from image_resizer import PART

gc.collect()
gc.freeze()  # what was loaded is not looked at again by the garbage collector of each run

CHANGES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.utime")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def watch(folder, signals, rooms, operations):
    """Note the operations that change files below `folder`, and send signals before some of them.

    signals: each of them by the number of an operation, from 0, or by the name of a file, for the
    moment at which it is there, still empty (under the name of an unfinished file)
    rooms: how many bytes a file of that name, and each file after it, may have: a full disk
    operations: where they are noted, such as "12 os.rename /output/trained-1.png", with their
    number; "fsync" has none, nor has one before which the files are as before the last one
    """
    prefix = os.path.join(os.path.abspath(folder), "")
    before = None
    signals, counted = dict(signals), 0

    def hook(event, arguments):
        nonlocal counted, before
        if event not in CHANGES or (event == "open" and not arguments[2] & WRITING):
            return
        path = arguments[1] if event == "os.rename" else arguments[0]
        path = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else ""
        if not os.path.join(os.path.abspath(path), "").startswith(prefix):
            return
        part = PART.fullmatch(os.path.basename(path))
        name = part[1] if part else os.path.basename(path)
        files = sorted((file, os.path.getsize(file)) for file in Path(folder).rglob("*"))
        if files == before:
            operations.append(f"- {event} {path}")
        else:
            operations.append(f"{counted} {event} {path}")
            if counted in signals:
                os.kill(os.getpid(), signals[counted])
            counted, before = counted + 1, files
        begun = part and os.path.exists(path)
        if begun and name in signals:
            os.kill(os.getpid(), signals.pop(name))
        if begun and name in rooms:
            resource.setrlimit(resource.RLIMIT_FSIZE, (rooms[name], resource.RLIM_INFINITY))

    def fsync(descriptor):
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        original(descriptor)
        operations.append(f"- fsync {path}")

    original, os.fsync = os.fsync, fsync
    sys.addaudithook(hook)


def run(arguments, output, log, folder, signals, ignored, rooms):
    """What the process does: `tiny.main`, with some signals ignored; for the others see `watch`."""
    for stream in (1, 2):
        os.dup2(output.fileno(), stream)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)
    if signal.SIGINT not in ignored:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ["TMPDIR"], tempfile.tempdir = str(log.parent), None
    operations = []
    watch(folder, signals, rooms, operations)
    try:
        code = tiny.main(arguments)
    except SystemExit as error:
        code = error.code
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    log.write_text("\n".join(operations))
    sys.stdout.flush()
    os._exit(code)


class Child:
    """A run of tiny.py that has been started."""

    numbers = itertools.count()

    def __init__(self, *arguments, logs, folder, signals=(), ignored=(), rooms=()):
        self.log, self.lines = Path(logs, f"{next(self.numbers)}.operations"), []
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["child"])
        reader, output = context.Pipe(duplex=False)
        options = (output, self.log, folder, dict(signals), ignored, dict(rooms))
        self.process = context.Process(target=run, args=(list(map(str, arguments)), *options))
        self.process.start()
        output.close()
        self.reader = threading.Thread(target=self.read, args=[reader], daemon=True)
        self.reader.start()

    def read(self, pipe):
        """Collect what it prints."""
        with pipe, open(pipe.fileno(), closefd=False, errors="replace") as file:
            self.lines.extend(file)

    @property
    def printed(self):
        """All that it has printed up to now, errors included."""
        return "".join(self.lines)

    @property
    def operations(self):
        """The operations of `watch`, once it has ended by itself."""
        return self.log.read_text().splitlines()

    def wait(self):
        """Wait for its end; return the exit code, negative for a signal."""
        self.process.join(120)
        self.reader.join(5)
        assert self.process.exitcode is not None, f"it does not end:\n{self.printed}"
        return self.process.exitcode

    def poll(self, condition):
        """Wait until `condition` holds; it may not end before."""
        deadline = time.monotonic() + 120
        while not condition():
            assert time.monotonic() < deadline, f"it hangs:\n{self.printed}"
            assert self.process.is_alive() or condition(), f"ended too early:\n{self.printed}"
            time.sleep(0.005)

    def wait_for(self, text, count=1):
        """Wait until it has printed `text` that often."""
        self.poll(lambda: self.printed.count(text) >= count)

    def send(self, number):
        """Send it a signal, if it still runs."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, number)
