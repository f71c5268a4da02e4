"""The results of a part of the check: each is written to the part's JSON file at once, with the time that the part has left."""

import hashlib
import json
import math
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from revhrnet_hf.errors import RevHRNetError
from revhrnet_hf.io import write_json
from revhrnet_hf.text import table
from revhrnet_hf.versions import versions

PROVED, FAILED, MEASURED = "proved", "FAILED", "measured"
OUT_OF_MEMORY, OUT_OF_TIME, NOT_POSSIBLE, ERROR = "out of memory", "out of time", "not possible", "ERROR"
DONE = (PROVED, MEASURED, OUT_OF_MEMORY, NOT_POSSIBLE)
"""Results that are not tried again under the same conditions."""

CODE = Path(__file__).parents[2]
SOURCES = ("revhrnet_hf/**/*.py", "revhrnet_hf/recipes/*.yaml", "scripts/gpu_check*/*.py", "scripts/benchmarks/*.py")


class OutOfTime(BaseException):
    """The time of a part is over. No `Exception`, so that no library takes it for an error of its own."""


class NotPossible(Exception):
    """This machine cannot make the check; the message says why."""


@dataclass(frozen=True)
class Difference:
    """How far a quantity is from what it is compared with, and how far it may be."""

    quantity: str
    found: float
    allowed: float

    @property
    def holds(self) -> bool:
        return self.found <= self.allowed  # NaN does not hold

    @property
    def share(self) -> float:
        """Of what is allowed."""
        if not math.isfinite(self.found):
            return math.inf
        if self.allowed > 0:
            return self.found / self.allowed
        return math.inf if self.found else 0.0

    def __str__(self) -> str:
        return f"{self.quantity} {_number(self.found)} (≤ {_number(self.allowed)})"


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.1e}" if value else "0"


@dataclass(frozen=True)
class Check:
    """Something to prove or to measure.

    Attributes:
        name, case: identify the check in its part.
        work: returns a dictionary of values; with `differences`, it is a proof, which holds if all of them do.
        needs: seconds; with less left the check is not begun.
    """

    name: str
    case: str
    work: Callable[[], dict]
    needs: float = 2.0


class Part:
    """A part of the check and its results.

    Args:
        letter: a, b, c or d; the JSON file is named by it.
        folder: of the JSON files; it belongs to one machine and one state of the code (`folder_of`).
        deadline: of this part (`time.monotonic()`).
        again: whether to make checks anew whose results the JSON file has.
    """

    def __init__(self, letter: str, title: str, folder: Path, deadline: float, again: bool = False):
        self.letter, self.title, self.deadline = letter, title, deadline
        self.file, self.rows = folder / f"{letter}.json", []
        known = json.loads(self.file.read_text(encoding="utf-8"))["rows"] if self.file.exists() and not again else []
        self.known = {(row["check"], row["case"]): row for row in known if row["status"] in DONE}
        self.began = time.monotonic()

    @property
    def left(self) -> float:
        return self.deadline - time.monotonic()

    def run(self, checks: list[Check]) -> None:
        print(f"\n{self.letter}. {self.title} ({max(self.left, 0):.0f} s)", flush=True)
        for check in checks:
            row = self.known.get((check.name, check.case)) or self._row(check)
            self.rows.append(row)
            self._write(checks)
            print(f"{time.monotonic() - self.began:6.1f} s  {_line(row)}", flush=True)

    def _row(self, check: Check) -> dict:
        started = time.monotonic()
        row = {"check": check.name, "case": check.case, **self._result(check)}
        return {**row, "took": time.monotonic() - started}

    def _result(self, check: Check) -> dict:
        if self.left < check.needs:
            return {"status": OUT_OF_TIME, "said": "not begun"}
        try:
            with time_limit(self.left):
                values = check.work()
        except OutOfTime:
            return {"status": OUT_OF_TIME, "said": f"ended after {check.needs:.0f} s or more"}
        except NotPossible as error:
            return {"status": NOT_POSSIBLE, "said": str(error)}
        except torch.OutOfMemoryError:
            return {"status": OUT_OF_MEMORY}
        except Exception as error:  # it is this check's result; the others are made all the same
            said = str(error) if isinstance(error, RevHRNetError) else f"{type(error).__name__}: {error}"
            return {"status": ERROR, "said": said.strip().splitlines()[-1][:300], "traceback": traceback.format_exc()}
        return judged(values)

    def _write(self, checks: list[Check]) -> None:
        done = {(row["check"], row["case"]) for row in self.rows}
        # What is known of checks that are not reached again stays in the file.
        others = [row for key, row in self.known.items() if key not in done]
        content = {"part": self.letter, "title": self.title, "checks": len(checks), "conditions": conditions_of(self.file.parent)}
        write_json(self.file, {**content, "rows": self.rows + others})


def judged(values: dict) -> dict:
    """The row of a check that came to an end: with `differences` proved or failed, else measured."""
    if "differences" not in values:
        return {"status": MEASURED, **values}
    differences = values["differences"]
    failed = [difference for difference in differences if not difference.holds]
    shown = failed or sorted(differences, key=lambda difference: difference.share)[-1:]
    return {
        "status": FAILED if failed else PROVED,
        **values,
        "said": "; ".join(filter(None, [*map(str, shown), values.get("said")])),
        "differences": [asdict(difference) for difference in differences],
    }


def _line(row: dict) -> str:
    return f"{row['status']:13}  {row['check']}: {row['case']}" + (f"  {row['said']}" if row.get("said") else "")


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises [`OutOfTime`] in the main thread after `seconds`, and again some time later if code in between has lost it."""

    def end(*_):
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001), 15)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def folder_of(output: Path, device: str, quick: bool) -> Path:
    """The folder for results of this machine, these versions and this state of the code, beside those of others."""
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    found = {name: version for name, version in versions().items() if name != "revision"}
    conditions = {"device": name, "quick": quick, "versions": found, "cuda": torch.version.cuda, "code": _digest_of_code()}
    digest = hashlib.sha256(json.dumps(conditions, sort_keys=True).encode()).hexdigest()[:8]
    folder = output / f"{'-'.join(name.split())}{'-quick' if quick else ''}-{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "conditions.json", {**conditions, "revision": versions().get("revision")})
    return folder


def conditions_of(folder: Path) -> dict:
    return json.loads((folder / "conditions.json").read_text(encoding="utf-8"))


def _digest_of_code() -> str:
    files = sorted(path for pattern in SOURCES for path in CODE.glob(pattern))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def print_proofs(rows: list[dict]) -> None:
    lines = [[row["check"], row["case"], row["status"], row.get("said", "")] for row in rows]
    print(table([["check", "case", "result", "greatest difference"], *lines]))
