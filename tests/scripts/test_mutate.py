"""The mutation script: which faults it puts in, which it does not, and which tests it takes to be a module's."""

import importlib.util
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
