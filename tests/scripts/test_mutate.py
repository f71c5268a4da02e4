"""The mutation script: which faults it puts in, which it does not, which tests it takes to be a module's, and what it counts."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "scripts" / "mutate.py"


@pytest.fixture(scope="module")
def mutate():
    spec = importlib.util.spec_from_file_location("mutate", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutate"] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    yield module
    del sys.modules["mutate"]


def mutants(mutate, text):
    """Each mutant of a text, as a whole."""
    source = text.encode()
    return {mutant.applied(source).decode() for mutant in mutate.Mutator("x.py", source).mutants}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a = b <= c", {"a = b < c"}),
        ("a = b is not c", {"a = b is c"}),
        ("a = b not in c", {"a = b in c"}),
        ("a = (b) * (c)", {"a = (b) / (c)"}),
        ("a = b and c", {"a = b or c"}),
        ("a = not b", {"a = b"}),
        ("a = -b", {"a = b"}),
        ("a = 3", {"a = 4"}),
        ("a = 0.5", {"a = 1.0"}),
        ("a = True", {"a = False"}),
        ("a = 'é', 'bird'", {"a = 'bird', 'é'", "a = 'é_', 'bird'", "a = 'é', 'bird_'"}),
        ("a = f(b, c=d)", {"a = f(b, )"}),
        ("a = min(b)", {"a = max(b)"}),
        ("f(b)", {"pass"}),
        ("a.b = c", {"pass"}),
        ("a += b", {"a -= b", "pass"}),
        ("def f():\n    return a", {"def f():\n    return None"}),
        ("if a:\n    raise b", {"if not (a):\n    raise b", "if a:\n    pass"}),
        ("a = b if c else d", {"a = b if not (c) else d"}),
        ("@torch.no_grad()\ndef f(): a", {"\ndef f(): a"}),
    ],
)
def test_faults(mutate, text, expected):
    assert mutants(mutate, text) == expected


@pytest.mark.parametrize(
    "text",
    [
        '"""Documentation of 3 things."""',
        "import a",
        "a: list[3]",
        "def f(a: 3) -> 4: b",
        "print('words', end='x')",
        "a = f'{b + 1} of 3'",
        "__all__ = ['a', 'b']",
        "a = zip(b, c, strict=True)",
        "def __repr__(self):\n    return 3 + 4",
    ],
)
def test_left_alone(mutate, text):
    assert mutants(mutate, text) == set()


def test_sample_is_of_the_seed(mutate):
    files = ["revhrnet_hf/data/translation.py", "revhrnet_hf/training/optimisation.py"]
    drawn = mutate.draw(files, 12, seed=3)
    assert drawn == mutate.draw(files, 12, seed=3) != mutate.draw(files, 12, seed=4)
    assert len({(mutant.path, mutant.statement) for mutant in drawn}) == 12
    assert all(mutate.can_be_parsed(mutant) for mutant in drawn)


def test_tests_of_a_module(mutate):
    imports = mutate.Imports()
    files = imports.distances("revhrnet_hf/training/checkpoint_files.py")
    assert files["tests/training/test_checkpoint_files.py"] == 0
    assert files["tests/training/test_checkpoint.py"] == 1
    assert files["tests/training/test_trainer.py"] == 2  # by way of output_dir.py
    assert "tests/models/test_upsampling.py" not in files
    # Through what a package gives out under its own name.
    assert imports.distances("revhrnet_hf/data/label_space.py")["tests/data/datasets/test_mapillary_vistas.py"] == 1
    assert imports.distances("revhrnet_hf/models/modeling_hrnetv2.py")["tests/models/test_loss_settings.py"] == 1


MODULE = """def doubled(x):
    return x + x


def twice(x):
    return x * 2


def count(x):
    done = 0
    while done < x:
        done += 1
    return done
"""
TESTS = """import pytest

from revhrnet_hf.data.numbers import count, doubled


def test_numbers():
    assert doubled(2) == 4 and count(4) == 4
"""
# One mutant of each statement that is named here: caught, survived, and without an end.
FAULTS = {"return x + x": "return x - x", "return x * 2": "return x / 2", "done += 1": "done -= 1"}
PROGRAM = """
import importlib.util, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("mutate", sys.argv.pop(1))
mutate = importlib.util.module_from_spec(spec)
sys.modules["mutate"] = mutate
spec.loader.exec_module(mutate)
mutate.ROOT, mutate.TIMEOUT, mutate.EQUIVALENT, faults = Path.cwd(), 1, Path("none"), eval(sys.argv.pop(1))
mutants = [mutant for path in mutate.sources("revhrnet_hf") for mutant in mutate.Mutator(path, Path(path).read_bytes()).mutants]
mutate.draw = lambda *_: [m for m in mutants if (lines := m.lines(Path(m.path).read_bytes()))[1] == faults.get(lines[0])]
mutate.main()
"""


@pytest.fixture
def repository(tmp_path):
    for name, text in {
        "revhrnet_hf/__init__.py": "__all__ = []\n",
        "revhrnet_hf/data/__init__.py": "",
        "revhrnet_hf/data/numbers.py": MODULE,
        "tests/data/test_numbers.py": TESTS,
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    return tmp_path


def tried(repository, *options):
    """The result of each statement that was tried, from what the script prints."""
    command = [sys.executable, "-c", PROGRAM, FILE, repr(FAULTS), "--jobs", "1", "--results", "kept.jsonl", *options]
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # plugins take seconds to import
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if " → " in line and line[0].isdigit()]
    return {line.partition(".py:")[2].split(": ", 1)[1]: line.split(" ", 1)[1].partition(",")[0] for line in lines}


def test_results_are_counted_kept_and_tried_again(repository):
    """A fault that is not in effect, because the process has the module already, would survive."""
    found = tried(repository, "--report", "report.md")
    assert found == dict(zip((" → ".join(pair) for pair in FAULTS.items()), ("caught", "survived", "too slow"), strict=True))
    assert "| all | 3 | 0 | 1 | 1 | 1 | 33% |" in (repository / "report.md").read_text()
    kept = [json.loads(line) for line in (repository / "kept.jsonl").read_text().splitlines()]
    assert [entry["result"] for entry in kept if "mutant" in entry] == ["caught", "survived", "too slow"]
    assert tried(repository) == {}  # all of them are known
    test = repository / "tests" / "data" / "test_numbers.py"
    test.write_text(
        TESTS + "\n\ndef test_more():\n    from revhrnet_hf.data import numbers\n\n    assert numbers.twice(2) == 4\n"
    )
    assert tried(repository, "--retry") == {"return x * 2 → return x / 2": "caught", "done += 1 → done -= 1": "too slow"}
    module = repository / "revhrnet_hf" / "data" / "numbers.py"
    module.write_text(MODULE.replace("return x + x", "return 3 * x - x"))  # another statement in the place of one that is known
    assert set(tried(repository)) == {"return x * 2 → return x / 2", "done += 1 → done -= 1"}
