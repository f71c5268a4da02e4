"""Mutation testing: changes the code in one place at a time, and counts how many of these faults the tests find.

    python scripts/mutate.py --count 200 --seed 1 --report mutants.md
    python scripts/mutate.py --count 20 revhrnet_hf/data/translation.py

The seed selects a sample of statements, and one fault in each of them: a comparison, an operator, a number, a name or a condition
is changed, or a keyword or a statement is removed. Each mutant runs in a process that is forked from one that has already
imported torch and other libraries, so it takes only the time of its tests. These are the tests that import the module, nearest
and fastest first, until one fails. All of this happens in copies of the repository. A mutant that makes a test run without end is
counted by itself: the limits are of processor time, so that a busy machine makes no mutant too slow.

`--results FILE` keeps each result as soon as it is known. A later run with the same file continues there, and with `--retry` it
tries again what was not caught, for example with new tests.

Why not another tool: mutmut 3 changes no function with a decorator and no table at module level, and needs a run of the whole
suite first. cosmic-ray starts a new process for each mutant, which takes ten seconds of imports, and runs the same tests for all.

`scripts/equivalent_mutants.txt` lists mutants that do not change behaviour (equivalent ones), with the reason.
"""

import argparse
import ast
import contextlib
import gc
import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path

# Nothing of the package may be imported here: the forked processes would have it already, and not import the mutant.

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "revhrnet_hf"
EQUIVALENT = ROOT / "scripts" / "equivalent_mutants.txt"
# Folders of the sample if no files are given, and files that are excluded, because people look at their results.
SAMPLED = ("models", "data", "training", "evaluation")
LEFT_OUT = ("curves", "dry_run")

COMPARISONS = {
    "<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "==", "is": "is not", "is not": "is", "in": "not in",
    "not in": "in",
}  # fmt: skip
OPERATORS = {"+": "-", "-": "+", "*": "/", "/": "*", "//": "*", "%": "*", "**": "*", "&": "|", "<<": ">>", ">>": "<<"}
FUNCTIONS = {"min": "max", "max": "min", "any": "all", "all": "any", "floor": "ceil", "ceil": "floor", "argmax": "argmin",
             "zeros": "ones", "ones": "zeros"}  # fmt: skip
MESSAGE_CALLS = {"print", "warn", "warning", "info", "_setting", "_wrong"}  # their texts are for people
# Keywords that change only texts for people, or that check for errors that cannot occur.
IGNORED_KEYWORDS = {"strict", "encoding", "desc", "unit", "leave", "disable", "help", "hash", "hint"}
NAME = r"[\w.#/{}:*+-]*\w[\w.#/{}:*+ -]*"  # a text that does not consist of punctuation only
TIMEOUT = 60  # seconds of processor time for one test
BUSY = 6  # the clock may run so many times as fast as the processor time, on a machine that others use too
NO_TESTS = 5  # pytest's exit status


@dataclass(frozen=True)
class Mutant:
    """A fault: `replacement` replaces the bytes `source[start:end]`. `statement` is the first line of its statement."""

    path: str
    line: int
    statement: int
    start: int
    end: int
    replacement: str

    def lines(self, source: bytes) -> tuple[str, str]:
        """The lines of the fault, without and with it, without indentation."""
        first, last = source.rfind(b"\n", 0, self.start) + 1, source.find(b"\n", self.end)
        before, after = source[first : self.start].decode(), source[self.end : last].decode()
        old = before + source[self.start : self.end].decode() + after
        return " ".join(old.split()), " ".join((before + self.replacement + after).split())

    def applied(self, source: bytes) -> bytes:
        return source[: self.start] + self.replacement.encode() + source[self.end :]


class Mutator(ast.NodeVisitor):
    """Collects the mutants of a file. Annotations, docstrings and messages for people are not changed."""

    def __init__(self, path: str, source: bytes):
        self.path, self.source, self.mutants, self.statement = path, source, [], 0
        self.starts = [0]
        for line in source.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))
        self.visit(ast.parse(source))

    def span(self, node: ast.AST) -> tuple[int, int]:
        return (
            self.starts[node.lineno - 1] + node.col_offset,
            self.starts[node.end_lineno - 1] + node.end_col_offset,
        )

    def visit(self, node: ast.AST) -> None:
        if isinstance(node, ast.stmt):
            self.statement = node.lineno
        super().visit(node)

    def add(self, line: int, start: int, end: int, replacement: str) -> None:
        self.mutants.append(Mutant(self.path, line, self.statement, start, end, replacement))

    def replace(self, node: ast.AST, replacement: str) -> None:
        self.add(node.lineno, *self.span(node), replacement)

    def between(self, left: ast.AST, right: ast.AST, table: dict[str, str]) -> None:
        """Replaces the operator between two nodes."""
        start, end = self.span(left)[1], self.span(right)[0]
        found = re.search(rb"is\s+not|not\s+in|\bis\b|\bin\b|[-+*/%<>=!|&@^]+", self.source[start:end])
        operator = " ".join(found.group().decode().split()) if found else ""
        if operator in table:
            self.add(left.end_lineno, start + found.start(), start + found.end(), table[operator])

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        if node.name in ("__repr__", "__str__"):
            return
        for decorator in node.decorator_list:
            if ast.unparse(decorator) in ("torch.no_grad()", "torch.inference_mode()"):
                start, end = self.span(decorator)
                self.add(decorator.lineno, start - 1, end, "")
        for default in (*node.args.defaults, *node.args.kw_defaults):
            if default is not None:
                self.visit(default)
        self.body(node.body)

    def visit_Module(self, node: ast.Module) -> None:
        self.body(node.body)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.body(node.body)

    def body(self, statements: list[ast.stmt]) -> None:
        for statement in statements:
            is_text = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
            if not is_text:  # not a docstring
                self.visit(statement)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_Import(self, node: ast.Import) -> None:
        pass

    visit_ImportFrom = visit_JoinedStr = visit_Import

    def visit_Raise(self, node: ast.Raise) -> None:
        self.replace(node, "pass")

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Call):
            if called(node.value) in MESSAGE_CALLS:
                return
            self.replace(node, "pass")
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        if getattr(node.targets[0], "id", "") == "__all__":
            return
        if isinstance(node.targets[0], ast.Attribute | ast.Subscript):
            self.replace(node, "pass")
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.between(node.target, node.value, {f"{old}=": f"{new}=" for old, new in OPERATORS.items()})
        self.replace(node, "pass")
        self.generic_visit(node)

    def visit_Return(self, node: ast.Return) -> None:
        if node.value is not None and not isinstance(node.value, ast.Constant):
            self.replace(node, "return None")
        self.generic_visit(node)

    def visit_Continue(self, node: ast.Continue) -> None:
        self.replace(node, "break")

    def visit_Break(self, node: ast.Break) -> None:
        self.replace(node, "continue")

    def visit_If(self, node: ast.If | ast.IfExp) -> None:
        start, end = self.span(node.test)
        self.add(node.test.lineno, start, end, f"not ({self.source[start:end].decode()})")
        self.generic_visit(node)

    visit_IfExp = visit_If

    def visit_Compare(self, node: ast.Compare) -> None:
        for left, right in zip((node.left, *node.comparators), node.comparators, strict=False):
            self.between(left, right, COMPARISONS)
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        texts = any(isinstance(side, ast.JoinedStr) or is_text(side) for side in (node.left, node.right))
        if not texts:
            self.between(node.left, node.right, OPERATORS)
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        old, new = (b"and", "or") if isinstance(node.op, ast.And) else (b"or", "and")
        for left, right in pairwise(node.values):
            start = self.span(left)[1]
            place = self.source.find(old, start, self.span(right)[0])
            if place >= 0:
                self.add(left.end_lineno, place, place + len(old), new)
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not | ast.USub):
            self.add(node.lineno, self.span(node)[0], self.span(node.operand)[0], "")
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        if called(node) in MESSAGE_CALLS:
            return
        if called(node) in FUNCTIONS:
            _, end = self.span(node.func)
            self.add(node.lineno, end - len(called(node)), end, FUNCTIONS[called(node)])
        node.keywords = [keyword for keyword in node.keywords if keyword.arg not in IGNORED_KEYWORDS]
        for keyword in node.keywords:
            start, end = self.span(keyword)
            comma = re.match(rb"\s*,[ ]*", self.source[end:])
            self.add(keyword.lineno, start, end + (comma.end() if comma else 0), "")
        self.generic_visit(node)

    def visit_Tuple(self, node: ast.Tuple | ast.List) -> None:
        """Two neighbouring texts of a table are swapped."""
        texts = [item for item in node.elts if is_text(item)]
        for left, right in pairwise(texts):
            (start, middle), (other, end) = self.span(left), self.span(right)
            swapped = self.source[other:end] + self.source[middle:other] + self.source[start:middle]
            self.add(left.lineno, start, end, swapped.decode())
        self.generic_visit(node)

    visit_List = visit_Tuple

    def visit_Constant(self, node: ast.Constant) -> None:
        value = node.value
        if isinstance(value, bool):
            self.replace(node, str(not value))
        elif isinstance(value, int | float):
            # A whole number becomes one more, any other is doubled: 0.5 → 1.0, 1e-5 → 2e-5.
            self.replace(node, repr(value + 1 if value == int(value) else value * 2))
        elif is_text(node) and re.fullmatch(NAME, value):
            self.replace(node, repr(value + "_"))


def is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def called(node: ast.AST) -> str:
    """The last part of the name of the function that is called."""
    function = getattr(node, "func", None)
    return getattr(function, "attr", None) or getattr(function, "id", "")


def draw(files: list[str], count: int, seed: int) -> list[Mutant]:
    """One mutant in each of `count` statements, so that tables and long calls do not dominate the sample."""
    by_statement = defaultdict(list)
    for path in files:
        for mutant in Mutator(path, (ROOT / path).read_bytes()).mutants:
            by_statement[path, mutant.statement].append(mutant)
    generator, drawn = random.Random(seed), []
    for statement in generator.sample(sorted(by_statement), len(by_statement)):
        mutants = by_statement[statement]
        mutant = next(filter(can_be_parsed, generator.sample(mutants, len(mutants))), None)
        drawn += [] if mutant is None else [mutant]
        if len(drawn) == count:
            break
    return drawn


def can_be_parsed(mutant: Mutant) -> bool:
    try:
        ast.parse(mutant.applied((ROOT / mutant.path).read_bytes()))
    except SyntaxError:
        return False
    return True


class Imports:
    """The imports between modules, from the import statements, and the distance of each test file from a module."""

    def __init__(self):
        self.modules = {module_name(path): path for path in sources(PACKAGE)}
        self.public = names_of_all(ROOT / PACKAGE / "__init__.py")
        self.imported = {name: set(self._imported(path, name)) for name, path in self.modules.items()}
        self.tests = {path: set(self._imported(path, None)) for path in sources("tests") if "/test_" in path}
        for path, names in self.tests.items():
            script = f"scripts/{Path(path).name.removeprefix('test_')}"
            if path.startswith("tests/scripts/") and (ROOT / script).exists():
                names.update(self._imported(script, None))

    def _imported(self, path: str, name: str | None) -> Iterator[str]:
        text = (ROOT / path).read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level and name is None:
                    continue  # an import of another test file
                if node.level:
                    parents = name.split(".")
                    keep = len(parents) - node.level + (self.modules[name].endswith("__init__.py"))
                    base = ".".join([*parents[:keep], *([node.module] if node.module else [])])
                for alias in node.names:
                    yield from self._resolved(base, alias.name)
        for attribute in re.findall(rf"\b{PACKAGE}\.([\w.]+)", text):
            yield from self._resolved(PACKAGE, attribute)

    def _resolved(self, base: str, name: str) -> Iterator[str]:
        """The modules that `from base import name` uses. If a package re-exports `name`, it is the module that defines it."""
        if not base.startswith(PACKAGE):
            return
        if f"{base}.{name}" in self.modules:
            yield f"{base}.{name}"
            return
        if base in self.modules:
            path = self.modules[base]
            if path.endswith("__init__.py"):
                found = re.search(rf"from (\.\w*(?:\.\w+)*) import [^\n]*?(?:\([^)]*)?\b{re.escape(name.split('.')[0])}\b",
                                  (ROOT / path).read_text(encoding="utf-8"))  # fmt: skip
                if found:
                    yield from self._resolved(f"{base}{found.group(1)}", name)
                    return
                if base == PACKAGE and name in self.public:  # imported when it is first asked for
                    yield from self._resolved(f"{PACKAGE}.models", name)
                    return
            yield base

    def distances(self, path: str) -> dict[str, int]:
        """Distance of each test file: 0 for the module's own, 1 if it imports the module, 2 if it imports one that does …"""
        module = module_name(path)
        near, layer, steps = {module: 0}, {module}, 0
        while layer:
            steps += 1
            layer = {name for name, imported in self.imported.items() if name not in near and imported & layer}
            near.update(dict.fromkeys(layer, steps))
        own = f"tests/{path.removeprefix(f'{PACKAGE}/').rpartition('/')[0]}/test_{Path(path).name}"
        found = {
            test: 1 + min(near[name] for name in names & near.keys()) for test, names in self.tests.items() if names & near.keys()
        }
        return found | ({own: 0} if own in self.tests else {})


def sources(below: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / below).rglob("*.py"))


def is_left_out(path: str) -> bool:
    return Path(path).name.startswith(LEFT_OUT)


def names_of_all(path: Path) -> list[str]:
    """The names in a module's `__all__`, without an import of the module."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return ast.literal_eval(node.value)
    return []


def module_name(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def warm_up() -> None:
    """Import the libraries that the package and its tests use, in this process, so that its forks have them already."""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    statements = set()
    for path in (*sources(PACKAGE), *sources("tests")):
        for node in ast.parse((ROOT / path).read_text(encoding="utf-8")).body:
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in getattr(node, "names", [])]
            is_import = isinstance(node, ast.Import | ast.ImportFrom) and not getattr(node, "level", 0)
            if is_import and not any(name.startswith((PACKAGE, "tests")) for name in names):
                statements.add(ast.unparse(node))
    for statement in sorted(statements):
        with contextlib.suppress(ImportError):
            exec(statement, {})
    if PACKAGE in sys.modules:
        raise RuntimeError(f"{PACKAGE} has been imported: the tests would run without the faults")
    gc.collect()
    gc.freeze()  # or the first collection of each child would copy all memory


@dataclass
class Child:
    """A forked run of pytest. It is the only one that uses `tree`, a copy of the repository."""

    pid: int
    tree: Path
    until: float
    job: object
    started: float = field(default_factory=time.monotonic)


class Recorder:
    """A pytest plugin that records which tests failed and the time of all tests, with fixtures."""

    def __init__(self, place: Path):
        self.place, self.failed, self.seconds = place, set(), Counter()

    def pytest_runtest_logreport(self, report) -> None:
        self.seconds[report.nodeid] += report.duration
        if report.failed:
            self.failed.add(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        self.place.write_text(json.dumps({"failed": sorted(self.failed), "seconds": sum(self.seconds.values())}))


class TimeLimit:
    """A pytest plugin that ends the process by SIGPROF when one test has used `TIMEOUT` seconds of processor time."""

    def pytest_runtest_logstart(self) -> None:
        signal.setitimer(signal.ITIMER_PROF, TIMEOUT)

    def pytest_runtest_logfinish(self) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)


def fork(tree: Path, job: object, tests: list[str], arguments: list[str], limit: float) -> Child:
    """Run test files in a child of this process, in a new process group, with `limit` seconds of processor time.

    It ends with the first file that fails, and with pytest's exit status for it.
    """
    pid = os.fork()
    if pid:
        return Child(pid, tree, time.monotonic() + BUSY * limit, job)
    os.setsid()
    resource.setrlimit(resource.RLIMIT_CPU, (int(sum(os.times()[:2]) + limit), resource.RLIM_INFINITY))
    os.chdir(tree)
    sys.path.insert(0, str(tree))
    os.environ["PYTHONPATH"] = str(tree)
    with (tree / "output.txt").open("w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    import pytest

    usual = ["-q", "-m", "not slow", "-p", "no:cacheprovider", "-p", "no:randomly"]
    plugins = [TimeLimit(), *([] if "-x" in arguments else [Recorder(tree / "recorded.json")])]
    code = 3
    try:
        for test in tests:  # one file after the other, so that the first fault ends it before other files are imported
            code = int(pytest.main([*usual, f"--basetemp={tree}/tmp", *arguments, test], plugins=plugins))
            if code not in (0, NO_TESTS):
                break
    finally:
        os._exit(code)


def run_all(jobs: Iterator, trees: list[Path], start, finish) -> None:
    """Call `start(tree, job)` for each job, one at a time in each tree, and `finish(child, exit status or None)` at its end."""
    free, running = list(trees), []
    pending = iter(jobs)
    while True:
        while free and (job := next(pending, None)) is not None:
            running.append(start(free.pop(), job))
        if not running:
            return
        time.sleep(0.02)
        for child in list(running):
            pid, status = os.waitpid(child.pid, os.WNOHANG)
            late = time.monotonic() > child.until
            if pid or late:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)  # the whole group, with its own children
                if not pid:
                    os.waitpid(child.pid, 0)
                running.remove(child)
                free.append(child.tree)
                finish(child, os.waitstatus_to_exitcode(status) if pid else None)


def copy_repository(folder: Path) -> Path:
    """Copy all files that git tracks or does not ignore into `folder`."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


class Trial:
    """Tries mutants in copies of the repository.

    Args:
        mutants: the mutants to try.
        trees: copies of the repository, one for each process that may run at the same time.
        seconds: time for the tests of a mutant; test files that would exceed it are not run.
        reach: largest distance of a test file (see `Imports.distances`).
        kept: the file of results, or None.
        retry: whether mutants of `kept` that were not caught are tried again.
    """

    def __init__(
        self, mutants: list[Mutant], trees: list[Path], seconds: float, reach: int, kept: Path | None = None, retry: bool = False
    ):
        self.mutants, self.trees, self.seconds, self.reach, self.kept = mutants, trees, seconds, reach, kept
        self.sources = {mutant.path: (trees[0] / mutant.path).read_bytes() for mutant in mutants}
        self.baseline: dict[str, dict] = {}
        self.results: dict[Mutant, str] = {}
        self.tests: dict[str, list[str]] = {}
        self._read_kept(retry)
        self.touched = int(time.time())

    def run(self) -> None:
        imports = Imports()
        distances = {path: imports.distances(path) for path in {mutant.path for mutant in self.mutants}}
        near = sorted({test for found in distances.values() for test, steps in found.items() if steps <= self.reach})
        print(f"first, {len(near)} test files run without a fault", flush=True)
        run_all([test for test in near if test not in self.baseline], self.trees, self._start_baseline, self._finish_baseline)
        for path, found in distances.items():
            self.tests[path] = self._chosen(found)
        left = [mutant for mutant in self.mutants if mutant not in self.results]
        run_all(left, self.trees, self._start, self._finish)

    def _read_kept(self, retry: bool) -> None:
        """Results of earlier runs; those of test files and statements that have changed since are ignored."""
        lines = self.kept.read_text(encoding="utf-8").splitlines() if self.kept and self.kept.exists() else []
        for entry in map(json.loads, lines):
            if "test" in entry:
                if entry["sha"] == self._sha(entry["test"]):
                    self.baseline[entry["test"]] = entry
                continue
            mutant = Mutant(**entry["mutant"])
            if mutant in self.mutants and mutant.lines(self.sources[mutant.path])[0] == entry["without"]:
                self.results[mutant] = entry["result"]
        if retry:
            self.results = {mutant: result for mutant, result in self.results.items() if result == "caught"}

    def _sha(self, path: str) -> str:
        file = self.trees[0] / path
        return hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else ""

    def _keep(self, entry: dict) -> None:
        if self.kept:
            with self.kept.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry, ensure_ascii=False) + "\n")

    def _chosen(self, distances: dict[str, int]) -> list[str]:
        """The nearest test file, and as many others as there is time for: nearer ones first, then faster ones."""
        chosen, seconds = [], 0.0
        for test in sorted(distances, key=lambda test: (distances[test], self._seconds(test))):
            if test in self.baseline and (not chosen or seconds + self._seconds(test) <= self.seconds):
                chosen.append(test)
                seconds += self._seconds(test)
        return chosen

    def _seconds(self, test: str) -> float:
        return self.baseline[test]["seconds"] if test in self.baseline else 0.0

    def _start_baseline(self, tree: Path, test: str) -> Child:
        (tree / "recorded.json").unlink(missing_ok=True)
        return fork(tree, test, [test], [], limit=600)

    def _finish_baseline(self, child: Child, status: int | None) -> None:
        record = child.tree / "recorded.json"
        if status not in (0, 1) or not record.exists():
            print(f"not used: {child.job} (pytest's exit status is {status})", flush=True)
            return
        self.baseline[child.job] = json.loads(record.read_text())
        self._keep({"test": child.job, "sha": self._sha(child.job), **self.baseline[child.job]})
        print(f"{len(self.baseline)}: {child.job}, {self._seconds(child.job):.0f} s", flush=True)
        for test in self.baseline[child.job]["failed"]:
            print(f"not used: {test} fails without a fault", flush=True)

    def _start(self, tree: Path, mutant: Mutant) -> Child:
        self._write(tree / mutant.path, mutant.applied(self.sources[mutant.path]))
        tests = self.tests[mutant.path]
        deselected = [f"--deselect={name}" for test in tests for name in self.baseline[test]["failed"]]
        limit = 30 + 3 * sum(map(self._seconds, tests))
        return fork(tree, mutant, tests, ["-x", *deselected], limit)

    def _finish(self, child: Child, status: int | None) -> None:
        mutant, source = child.job, self.sources[child.job.path]
        self._write(child.tree / mutant.path, source)
        self.results[mutant] = result = self._result(mutant, status)
        old, new = mutant.lines(source)
        self._keep({"mutant": asdict(mutant), "without": old, "with": new, "result": result, "status": status})
        took = f"{time.monotonic() - child.started:.0f} s"
        print(f"{len(self.results)}/{len(self.mutants)} {result}, {took}, {mutant.path}:{mutant.line}: {old} → {new}", flush=True)

    def _result(self, mutant: Mutant, status: int | None) -> str:
        if status in (0, NO_TESTS) or not self.tests[mutant.path]:
            return "survived"
        return "too slow" if status in (None, -signal.SIGPROF, -signal.SIGXCPU) else "caught"

    def _write(self, path: Path, source: bytes) -> None:
        """Write with a new modification time each time, so that Python does not use compiled code of another version."""
        path.write_bytes(source)
        self.touched += 2
        os.utime(path, (self.touched, self.touched))


def known_equivalents() -> set[tuple[str, str, str]]:
    """(file, line without, line with the fault) of the mutants that are listed as equivalent."""
    lines = EQUIVALENT.read_text(encoding="utf-8").splitlines() if EQUIVALENT.exists() else []
    return {tuple(line.split("\t")[:3]) for line in lines if line and not line.startswith("#")}


def report(trial: Trial) -> tuple[str, float]:
    """A Markdown table by folder, with the list of survivors, and the share of mutants that were caught."""
    equivalents, folders, left = known_equivalents(), defaultdict(Counter), defaultdict(list)
    for mutant, result in sorted(trial.results.items(), key=lambda item: (item[0].path, item[0].line)):
        old, new = mutant.lines(trial.sources[mutant.path])
        kind = "equivalent" if result != "caught" and (mutant.path, old, new) in equivalents else result
        for folder in (mutant.path.rpartition("/")[0], "all"):
            folders[folder][kind] += 1
        left[kind].append(f"- `{mutant.path}:{mutant.line}`: `{old}` → `{new}`")
    lines = ["| folder | mutants | equivalent | caught | too slow | survived | share |", "|---|---|---|---|---|---|---|"]
    for folder in sorted(folders, key=lambda folder: (folder == "all", folder)):
        found = folders[folder]
        share = found["caught"] / max(found.total() - found["equivalent"], 1)
        numbers = " | ".join(str(found[kind]) for kind in ("equivalent", "caught", "too slow", "survived"))
        lines.append(f"| {folder} | {found.total()} | {numbers} | {share:.0%} |")
    return "\n".join([*lines, "", "Survivors:", "", *left["survived"], "", "Too slow:", "", *left["too slow"], ""]), share


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", help="Files to sample from (default: models, data, training and evaluation)")
    parser.add_argument("--count", type=int, default=200, help="Number of mutants")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the sample")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="Mutants that run at the same time")
    parser.add_argument("--seconds", type=float, default=90, help="Time for the tests of a mutant that survives")
    parser.add_argument(
        "--reach", type=int, default=2, help="1: only tests that import the module; 2: also tests one import further away, …"
    )
    parser.add_argument("--report", type=Path, help="Markdown file for the table and the survivors")
    parser.add_argument("--results", type=Path, help="File that keeps each result; a later run continues there")
    parser.add_argument("--retry", action="store_true", help="Try again what is in the results and was not caught")
    parser.add_argument("--least", type=float, default=0.0, help="Share that must be caught; otherwise the exit status is 1")
    parser.add_argument("--list", action="store_true", help="Only list the sample")
    arguments = parser.parse_args()
    files = arguments.files or [path for room in SAMPLED for path in sources(f"{PACKAGE}/{room}") if not is_left_out(path)]
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        # Copies are made first, so that changes in the repository meanwhile have no effect.
        trees = [copy_repository(Path(folder) / str(job)) for job in range(1 if arguments.list else arguments.jobs)]
        mutants = draw(files, arguments.count, arguments.seed)
        trial = Trial(mutants, trees, arguments.seconds, arguments.reach, arguments.results, arguments.retry)
        if arguments.list:
            for mutant in mutants:
                print(f"{mutant.path}:{mutant.line}: {' → '.join(mutant.lines(trial.sources[mutant.path]))}")
            return
        warm_up()
        trial.run()
    text, share = report(trial)
    print(f"\n{text}")
    if arguments.report:
        arguments.report.write_text(text, encoding="utf-8")
    sys.exit(share < arguments.least)


if __name__ == "__main__":
    main()
