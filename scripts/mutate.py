"""Mutation testing: puts faults into the code, one at a time, and counts how many of them the tests notice.

    python scripts/mutate.py --count 200 --seed 1 --report mutants.md
    python scripts/mutate.py --count 20 revhrnet_hf/data/translation.py

A sample of statements is drawn by the seed, and in each of them one fault: a comparison, an operator, a number, a name or a
condition
is changed, a keyword or a statement is left out. Each mutant is tried in a process that is forked from one that has imported
torch and the like already, so that it costs the seconds of its tests. These are the tests that import the module, nearest and
quickest first, until one fails. All of that happens in copies of the repository.

mutmut 3 changes no function with a decorator and no table at module level, and needs a run of the whole suite first; cosmic-ray
starts a new process for each mutant, ten seconds of imports, and runs the same tests for all of them.

Mutants that change nothing (equivalent ones) are named in `scripts/equivalent_mutants.txt`, with the reason.
"""

import ast
import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from revhrnet_hf.cli import ArgumentParser

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "revhrnet_hf"
EQUIVALENT = ROOT / "scripts" / "equivalent_mutants.txt"
# What the sample is drawn from if no files are named, and what of it is left out: what is only shown.
SAMPLED = ("models", "data", "training", "evaluation")
LEFT_OUT = ("curves", "dry_run")

COMPARISONS = {
    "<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "==", "is": "is not", "is not": "is", "in": "not in",
    "not in": "in",
}  # fmt: skip
OPERATORS = {"+": "-", "-": "+", "*": "/", "/": "*", "//": "*", "%": "*", "**": "*", "&": "|", "<<": ">>", ">>": "<<"}
FUNCTIONS = {"min": "max", "max": "min", "any": "all", "all": "any", "floor": "ceil", "ceil": "floor", "argmax": "argmin",
             "zeros": "ones", "ones": "zeros"}  # fmt: skip
TALK = {"print", "warn", "warning", "info", "_setting", "_wrong"}  # calls whose texts are for people
# Keywords that change nothing but what is shown, or guard what cannot happen.
IDLE = {"strict", "encoding", "desc", "unit", "leave", "disable", "help", "hash", "hint"}
NAME = r"[\w.#/{}:*+-]*\w[\w.#/{}:*+ -]*"  # a text that is not only punctuation
TIMEOUT = 60  # seconds of one test
NO_TESTS = 5  # pytest's exit status


@dataclass(frozen=True)
class Mutant:
    """A fault: `source[start:end]`, in bytes, becomes `replacement`; `statement` is the line where its statement begins."""

    path: str
    line: int
    statement: int
    start: int
    end: int
    replacement: str

    def lines(self, source: bytes) -> tuple[str, str]:
        """The lines that the fault is in, before and after, without indentation."""
        first, last = source.rfind(b"\n", 0, self.start) + 1, source.find(b"\n", self.end)
        before, after = source[first : self.start].decode(), source[self.end : last].decode()
        old = before + source[self.start : self.end].decode() + after
        return " ".join(old.split()), " ".join((before + self.replacement + after).split())

    def applied(self, source: bytes) -> bytes:
        return source[: self.start] + self.replacement.encode() + source[self.end :]


class Mutator(ast.NodeVisitor):
    """Collects the mutants of a file. Annotations, docstrings and what is said to people are left alone."""

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
        """Replaces the operator that stands between two nodes."""
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
            if not is_text:  # a docstring
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
            if called(node.value) in TALK:
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
        if called(node) in TALK:
            return
        if called(node) in FUNCTIONS:
            _, end = self.span(node.func)
            self.add(node.lineno, end - len(called(node)), end, FUNCTIONS[called(node)])
        node.keywords = [keyword for keyword in node.keywords if keyword.arg not in IDLE]
        for keyword in node.keywords:
            start, end = self.span(keyword)
            comma = re.match(rb"\s*,[ ]*", self.source[end:])
            self.add(keyword.lineno, start, end + (comma.end() if comma else 0), "")
        self.generic_visit(node)

    def visit_Tuple(self, node: ast.Tuple | ast.List) -> None:
        """Two neighbours of a table change places."""
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
            # A number that is not one off is doubled: 0.5 → 1.0, 1e-5 → 2e-5.
            self.replace(node, repr(value + 1 if value == int(value) else value * 2))
        elif is_text(node) and re.fullmatch(NAME, value):
            self.replace(node, repr(value + "_"))


def is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def called(node: ast.AST) -> str:
    """The last part of the name that a call calls."""
    function = getattr(node, "func", None)
    return getattr(function, "attr", None) or getattr(function, "id", "")


def draw(files: list[str], count: int, seed: int) -> list[Mutant]:
    """One mutant in each of `count` statements, so that tables and long calls do not outweigh the rest."""
    by_statement = defaultdict(list)
    for path in files:
        for mutant in Mutator(path, (ROOT / path).read_bytes()).mutants:
            by_statement[path, mutant.statement].append(mutant)
    generator, drawn = random.Random(seed), []
    for statement in generator.sample(sorted(by_statement), len(by_statement)):
        mutants = by_statement[statement]
        mutant = next(filter(is_python, generator.sample(mutants, len(mutants))), None)
        drawn += [] if mutant is None else [mutant]
        if len(drawn) == count:
            break
    return drawn


def is_python(mutant: Mutant) -> bool:
    try:
        ast.parse(mutant.applied((ROOT / mutant.path).read_bytes()))
    except SyntaxError:
        return False
    return True


class Imports:
    """Which module imports which, by the import statements, and how far each test file is from a module."""

    def __init__(self):
        self.modules = {module_name(path): path for path in sources(PACKAGE)}
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
                    continue  # between tests
                if node.level:
                    parents = name.split(".")
                    keep = len(parents) - node.level + (self.modules[name].endswith("__init__.py"))
                    base = ".".join([*parents[:keep], *([node.module] if node.module else [])])
                for alias in node.names:
                    yield from self._resolved(base, alias.name)
        for attribute in re.findall(rf"\b{PACKAGE}\.([\w.]+)", text):
            yield from self._resolved(PACKAGE, attribute)

    def _resolved(self, base: str, name: str) -> Iterator[str]:
        """The modules that `from base import name` reads, those behind a package's own names too."""
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
            yield base

    def distances(self, path: str) -> dict[str, int]:
        """Test file → 0 for the module's own, 1 for those that import it, 2 for those that import a module that does …"""
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


def module_name(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def warm_up() -> None:
    """Runs the import statements of package and tests that are of other packages', in this process, for all that it forks."""
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


@dataclass
class Child:
    """A forked run of pytest; `tree` is the copy of the repository that it has to itself."""

    pid: int
    tree: Path
    until: float
    job: object
    started: float = field(default_factory=time.monotonic)


class Recorder:
    """A plugin of pytest that writes down which tests did not pass and how long each took, fixtures included."""

    def __init__(self, place: Path):
        self.place, self.failed, self.seconds = place, set(), Counter()

    def pytest_runtest_logreport(self, report) -> None:
        self.seconds[report.nodeid] += report.duration
        if report.failed:
            self.failed.add(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        self.place.write_text(json.dumps({"failed": sorted(self.failed), "seconds": sum(self.seconds.values())}))


def fork(tree: Path, job: object, tests: list[str], arguments: list[str], limit: float) -> Child:
    """Starts pytest in a child of this process, in a group of its own."""
    pid = os.fork()
    if pid:
        return Child(pid, tree, time.monotonic() + limit, job)
    os.setsid()
    os.chdir(tree)
    sys.path.insert(0, str(tree))
    os.environ["PYTHONPATH"] = str(tree)
    with (tree / "said.txt").open("w") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    import pytest

    usual = ["-q", "-m", "not slow", "-p", "no:cacheprovider", "-p", "no:randomly", f"--timeout={TIMEOUT}"]
    plugins = [] if "-x" in arguments else [Recorder(tree / "recorded.json")]
    code = 3
    try:
        code = int(pytest.main([*usual, f"--basetemp={tree}/tmp", *arguments, *tests], plugins=plugins))
    finally:
        os._exit(code)


def run_all(jobs: Iterator, trees: list[Path], start, finish) -> None:
    """Runs `start(tree, job)` for each job, one at a time in each tree, and `finish(child, exit status or None)` at its end."""
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
                    os.killpg(child.pid, signal.SIGKILL)  # with what it has started itself
                if not pid:
                    os.waitpid(child.pid, 0)
                running.remove(child)
                free.append(child.tree)
                finish(child, os.waitstatus_to_exitcode(status) if pid else None)


def copy_repository(folder: Path) -> Path:
    """The files that git knows or would add, in `folder`."""
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
        mutants: to be tried.
        trees: copies, as many as may run at once.
        seconds: of tests for each mutant; test files that would take longer than what is left are left out.
        reach: up to which distance test files are looked at.
    """

    def __init__(self, mutants: list[Mutant], trees: list[Path], seconds: float, reach: int):
        self.mutants, self.trees, self.seconds, self.reach = mutants, trees, seconds, reach
        self.sources = {mutant.path: (trees[0] / mutant.path).read_bytes() for mutant in mutants}
        self.baseline: dict[str, dict] = {}
        self.caught: dict[Mutant, bool] = {}
        self.tests: dict[str, list[str]] = {}
        self.touched = int(time.time())

    def run(self) -> None:
        imports = Imports()
        distances = {path: imports.distances(path) for path in {mutant.path for mutant in self.mutants}}
        near = sorted({test for found in distances.values() for test, steps in found.items() if steps <= self.reach})
        print(f"{len(near)} test files without a fault first", flush=True)
        run_all(near, self.trees, self._start_baseline, self._finish_baseline)
        for path, found in distances.items():
            self.tests[path] = self._chosen(found)
        run_all(self.mutants, self.trees, self._start, self._finish)

    def _chosen(self, distances: dict[str, int]) -> list[str]:
        """The nearest test file, and of the others, the nearer and quicker first, those that there is time for."""
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
            print(f"left out: {child.job} (pytest's exit status {status})", flush=True)
            return
        self.baseline[child.job] = json.loads(record.read_text())
        print(f"{len(self.baseline)}: {child.job}, {self._seconds(child.job):.0f} s", flush=True)
        for test in self.baseline[child.job]["failed"]:
            print(f"left out: {test} fails without any fault", flush=True)

    def _start(self, tree: Path, mutant: Mutant) -> Child:
        self._write(tree / mutant.path, mutant.applied(self.sources[mutant.path]))
        tests = self.tests[mutant.path]
        deselected = [f"--deselect={name}" for test in tests for name in self.baseline[test]["failed"]]
        limit = 30 + 3 * sum(map(self._seconds, tests))
        return fork(tree, mutant, tests, ["-x", *deselected], limit)

    def _finish(self, child: Child, status: int | None) -> None:
        mutant, source = child.job, self.sources[child.job.path]
        self._write(child.tree / mutant.path, source)
        self.caught[mutant] = status not in (0, NO_TESTS) and bool(self.tests[mutant.path])
        how = "caught" if self.caught[mutant] else "SURVIVED"
        how += " (too slow)" if status is None else ""
        old, new = mutant.lines(source)
        took = f"{time.monotonic() - child.started:.0f} s"
        print(f"{len(self.caught)}/{len(self.mutants)} {how}, {took}, {mutant.path}:{mutant.line}: {old} → {new}", flush=True)

    def _write(self, path: Path, source: bytes) -> None:
        """With a time of its own, by which Python knows that compiled code is of another source."""
        path.write_bytes(source)
        self.touched += 2
        os.utime(path, (self.touched, self.touched))


def known_equivalents() -> set[tuple[str, str, str]]:
    """(file, line before, line after) of the mutants that are said to change nothing."""
    lines = EQUIVALENT.read_text(encoding="utf-8").splitlines() if EQUIVALENT.exists() else []
    return {tuple(line.split(" | ")[:3]) for line in lines if line and not line.startswith("#")}


def report(trial: Trial) -> tuple[str, float]:
    """A table of the rooms and the list of survivors, as Markdown, and the share of mutants that were caught."""
    equivalents, rooms, survivors = known_equivalents(), defaultdict(Counter), []
    for mutant, caught in sorted(trial.caught.items(), key=lambda item: (item[0].path, item[0].line)):
        old, new = mutant.lines(trial.sources[mutant.path])
        kind = "caught" if caught else "equivalent" if (mutant.path, old, new) in equivalents else "survived"
        for room in (mutant.path.rpartition("/")[0], "all"):
            rooms[room][kind] += 1
        if kind == "survived":
            survivors.append(f"- `{mutant.path}:{mutant.line}`: `{old}` → `{new}`")
    lines = ["| room | mutants | equivalent | caught | share |", "|---|---|---|---|---|"]
    for room in sorted(rooms, key=lambda room: (room == "all", room)):
        found = rooms[room]
        share = found["caught"] / max(found["caught"] + found["survived"], 1)
        lines.append(f"| {room} | {found.total()} | {found['equivalent']} | {found['caught']} | {share:.0%} |")
    return "\n".join([*lines, "", "Survivors:", "", *survivors, ""]), share


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", help="Files to sample from (models, data, training and evaluation)")
    parser.add_argument("--count", type=int, default=200, help="Mutants")
    parser.add_argument("--seed", type=int, default=0, help="Of the sample")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="Mutants at once")
    parser.add_argument("--seconds", type=float, default=90, help="Of tests for a mutant that survives them")
    parser.add_argument(
        "--reach", type=int, default=2, help="1: only tests that import the module; 2: those one import further, …"
    )
    parser.add_argument("--report", type=Path, help="Markdown file that gets the table and the survivors")
    parser.add_argument("--least", type=float, default=0.0, help="Share that must be caught, else the exit status is 1")
    parser.add_argument("--list", action="store_true", help="Show the sample and try nothing")
    arguments = parser.parse_args()
    files = arguments.files or [path for room in SAMPLED for path in sources(f"{PACKAGE}/{room}") if not is_left_out(path)]
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        # First of all, so that work on the repository meanwhile changes nothing.
        trees = [copy_repository(Path(folder) / str(job)) for job in range(1 if arguments.list else arguments.jobs)]
        mutants = draw(files, arguments.count, arguments.seed)
        trial = Trial(mutants, trees, arguments.seconds, arguments.reach)
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
