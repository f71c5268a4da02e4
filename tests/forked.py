"""Child processes without the seconds that `import torch` takes: a server imports once and forks for each command.

`run` and `Popen` are `subprocess.run` and `subprocess.Popen` for commands that begin with this interpreter: the child has its own
arguments, folder, environment and streams, a process id that signals reach, and an exit status. What differs from a fresh
interpreter: third-party modules, and this package unless `BARE`, are imported already; variables that they read while they are
imported must be those of the tests (an error says so); and a child ends with the `Popen` that it was started for.

The processes of launchers (torchrun, accelerate) are forked too: PYTHON_EXEC, which torchrun obeys, names a program that asks the
server.

This file is also the server and that program; both need the standard library alone.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import types
from pathlib import Path

ROOT = Path(__file__).parents[1]
BARE, OURS, DEMO = "bare", "ours", "demo"
PRELOADED = {
    # What pyproject.toml requires, with the parts that are imported late.
    BARE: [
        "accelerate.commands.accelerate_cli", "accelerate.commands.launch", "datasets", "evaluate", "numpy.testing", "PIL.Image",
        "pycocotools.mask", "scipy.ndimage", "tensorboard", "timm", "torch.distributed.run", "torch.utils.tensorboard",
        "torchvision", "torchvision.transforms.v2", "transformers.pipelines", "transformers.modeling_utils",
        "transformers.image_processing_utils_fast",
    ],
    OURS: ["revhrnet_hf.evaluation", "revhrnet_hf.hub", "revhrnet_hf.synthetic", "revhrnet_hf.training.chain", "revhrnet_hf.viz"],
    DEMO: ["gradio"],
}  # fmt: skip
PARENTS = {OURS: BARE, DEMO: BARE}
READ_WHILE_IMPORTED = ("HF_", "TRANSFORMERS_", "OMP_", "PYTHON")
NOT_READ = {"PYTHONPATH", "PYTHON_EXEC"}
WORD = 4  # bytes of a number that is sent


# --- In the tests ---


def run(command, *, input=None, capture_output=False, timeout=None, check=False, preloaded=OURS, **options):
    """`subprocess.run` in a forked process."""
    if input is not None:
        options["stdin"] = subprocess.PIPE
    if capture_output:
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with Popen(command, preloaded=preloaded, **options) as process:
        try:
            stdout, stderr = process.communicate(input, timeout=timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)
    if check:
        done.check_returncode()
    return done


class Popen(subprocess.Popen):
    """`subprocess.Popen` of a process that a server forks; `preloaded` says with which modules."""

    def __init__(self, command, *, preloaded=OURS, **options):
        interpreter, *self._arguments = map(os.fspath, command)
        if interpreter != sys.executable or not self._arguments:
            raise ValueError(f"a command of this interpreter begins with {sys.executable}, got {command}")
        self._server = _Server.of(preloaded)
        super().__init__(command, **options)

    def _execute_child(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *others):
        _, _, shell, p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite = others[:9]
        if shell or preexec_fn or pass_fds:
            raise ValueError("a forked process knows no shell, preexec_fn or pass_fds")
        env = dict(os.environ if env is None else env)
        self._server.check(env)
        job = {"arguments": self._arguments, "cwd": os.fspath(cwd or os.getcwd()), "env": {k: str(v) for k, v in env.items()}}
        streams = [given if given >= 0 else own for given, own in zip((p2cread, c2pwrite, errwrite), range(3), strict=True)]
        self._connection = _ask(self._server.address, job, streams)
        self.pid = self._answer()
        self._child_created = True
        for mine, theirs in ((p2cwrite, p2cread), (c2pread, c2pwrite), (errread, errwrite)):
            if theirs >= 0 and theirs != getattr(self, "_devnull", None) and mine >= 0:
                os.close(theirs)
        if getattr(self, "_devnull", None) is not None:
            os.close(self._devnull)

    def _answer(self):
        answer = self._connection.recv(WORD)
        if not answer:
            raise RuntimeError(f"the server of forked processes is gone (preloaded: {self._server.preloaded})")
        return int.from_bytes(answer, "big")

    def _try_wait(self, wait_flags):
        self._connection.setblocking(not wait_flags & os.WNOHANG)
        try:
            return self.pid, self._answer()
        except BlockingIOError:
            return 0, 0

    def _internal_poll(self, _deadstate=None, **_):
        if self.returncode is None and self._waitpid_lock.acquire(False):
            try:
                pid, status = self._try_wait(os.WNOHANG) if self.returncode is None else (0, 0)
                if pid:
                    self._handle_exitstatus(status)
            finally:
                self._waitpid_lock.release()
        return self.returncode


class _Server:
    """The process that has imported the modules; started when it is first asked for, ended with this one."""

    started: dict[str, "_Server"] = {}  # noqa: RUF012
    owner: int | None = None

    @classmethod
    def of(cls, preloaded):
        if cls.owner != os.getpid():  # first use, or in a fork of the tests' process, whose servers are not ours to end
            cls.started, cls.owner = {}, os.getpid()
        if preloaded not in cls.started:
            cls.started[preloaded] = cls(preloaded)
        return cls.started[preloaded]

    def __init__(self, preloaded):
        self.preloaded, self.folder = preloaded, tempfile.mkdtemp(prefix="forked-")
        self.address = os.path.join(self.folder, "socket")
        path = os.pathsep.join([str(ROOT), *_python_path()])
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
        stub = Path(self.folder, "python")
        stub.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -E "{__file__}" ask "{self.address}" "$@"\n')
        stub.chmod(0o700)
        command = [sys.executable, __file__, "serve", self.address, *PRELOADED[preloaded]]
        options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": self.environment}
        if preloaded in PARENTS:
            self.process = Popen(command, preloaded=PARENTS[preloaded], **options)
        else:
            self.process = subprocess.Popen(command, **options)
        atexit.register(self.end, os.getpid())
        if self.process.stdout.readline() != "ready\n":
            raise RuntimeError(f"the server of forked processes did not start (preloaded: {preloaded})")

    def check(self, environment):
        """Refuse what the modules would have read while they were imported."""
        names = {name for name in environment.keys() | self.environment.keys() if name.startswith(READ_WHILE_IMPORTED)}
        given = {"OMP_NUM_THREADS": "1", **environment}
        other = sorted(name for name in names - NOT_READ if given.get(name) != self.environment.get(name))
        if other:
            raise ValueError(f"{', '.join(other)} cannot differ from the tests' in a forked process: use subprocess")

    def end(self, owner):
        if os.getpid() == owner:
            self.process.terminate()
            self.process.wait()
            shutil.rmtree(self.folder, ignore_errors=True)


def _ask(address, job, streams):
    """A connection to a server that has been asked to fork for a job; it answers the process id, and at the end its status."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)
    text = json.dumps(job).encode()
    socket.send_fds(connection, [len(text).to_bytes(WORD, "big")], streams)
    connection.sendall(text)
    return connection


# --- In place of the interpreter, for launchers ---


def ask(address, *arguments):
    """Does as the forked process does: passes signals on and ends as it ends."""
    job = {"arguments": arguments, "cwd": os.getcwd(), "env": dict(os.environ)}
    connection = _ask(address, job, [0, 1, 2])
    child = int.from_bytes(connection.recv(WORD), "big")
    for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(name, lambda number, _: os.kill(child, number))
    code = os.waitstatus_to_exitcode(int.from_bytes(connection.recv(WORD), "big"))
    if code >= 0:
        os._exit(code)
    signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
    os.kill(os.getpid(), -code)


# --- In the server ---


def serve(address, *modules):
    """Imports the modules and forks for each job, until standard input ends."""
    for name in modules:
        importlib.import_module(name)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address)
    listening.listen(64)
    gc.collect()
    gc.freeze()  # or the first collection of each child would copy all memory
    if threading.active_count() > 1:
        raise RuntimeError(f"threads do not outlive a fork: {threading.enumerate()}")
    print("ready", flush=True)
    while sys.stdin not in select.select([listening, sys.stdin], [], [])[0]:
        connection, _ = listening.accept()
        if os.fork() == 0:
            listening.close()
            _keep(connection, os.path.join(os.path.dirname(address), "python"))
        connection.close()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass  # a keeper that has ended


def _keep(connection, interpreter):
    """Forks for the job, waits for it and answers how it ended; if nobody listens any more, ends it. Does not return."""
    length, streams, _, _ = socket.recv_fds(connection, WORD, 3)
    text = connection.makefile("rb").read(int.from_bytes(length, "big"))
    child = os.fork()
    if child == 0:
        connection.close()
        _become(json.loads(text), streams, interpreter)
    for stream in (*streams, 0, 1):
        os.close(stream)
    connection.sendall(child.to_bytes(WORD, "big"))

    def end_with_the_asker():
        if not connection.recv(1):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)

    threading.Thread(target=end_with_the_asker, daemon=True).start()
    status = os.waitpid(child, 0)[1]
    with contextlib.suppress(OSError):
        connection.sendall(status.to_bytes(WORD, "big"))
    os._exit(0)


def _become(job, streams, interpreter):
    """This process as if the interpreter had been started with the job's arguments. Does not return."""
    for target, stream in enumerate(streams):
        os.dup2(stream, target)
        os.close(stream)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    inherited = sys.path[1 + len(_python_path()) :]  # without the server's folder and PYTHONPATH
    os.environ.clear()
    os.environ.update({**job["env"], "PYTHON_EXEC": interpreter, "OMP_NUM_THREADS": "1"})
    os.chdir(job["cwd"])
    sys.path[:] = [*_python_path(), *inherited]
    tempfile.tempdir = None
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    code = 1
    try:
        _run_as_main(list(job["arguments"]))
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if end.code is not None and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
    except BaseException as error:
        _show(error)
        code = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    with contextlib.suppress(BaseException):
        threading._shutdown()  # waits for threads, as the interpreter does
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    if code == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code & 0xFF)


def _python_path():
    return [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]


def _run_as_main(arguments):
    if arguments[0] == "-u":
        sys.stdout.reconfigure(write_through=True)
        del arguments[0]
    first, *others = arguments
    if first == "-m":
        sys.argv = others
        sys.path.insert(0, os.getcwd())
        sys.modules.pop(others[0], None)  # it may be imported already, and is to run anew
        runpy.run_module(others[0], run_name="__main__", alter_sys=True)
        return
    if first.startswith("-") and first != "-c":
        raise ValueError(f"a forked process does not know the interpreter's option {first}")
    main = types.ModuleType("__main__")
    if first == "-c":
        source, name = others.pop(0), "<string>"
        sys.path.insert(0, "")
    else:
        source, name = Path(first).read_bytes(), first
        sys.path.insert(0, os.path.dirname(os.path.realpath(first)))
        main.__file__ = first
    sys.argv = [first, *others]
    sys.modules["__main__"] = main
    main.__builtins__ = __builtins__
    exec(compile(source, name, "exec"), main.__dict__)


def _show(error):
    """The traceback, from the program on."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename in (__file__, runpy.__file__):
        trace = trace.tb_next
    traceback.print_exception(type(error), error, trace)


if __name__ == "__main__":
    {"ask": ask, "serve": serve}[sys.argv[1]](*sys.argv[2:])
