"""What waits for an import: it happens once, after it, and not for a question whether the module exists."""

import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from revhrnet_hf.deferred import when_imported

ROOT = Path(__file__).parents[1]


@pytest.fixture
def library(tmp_path, monkeypatch):
    (tmp_path / "late_library.py").write_text("value = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "late_library"
    sys.modules.pop("late_library", None)


def test_after_the_import_and_once(library):
    seen = []
    for number in (1, 2):  # two who wait
        when_imported(library, lambda number=number: seen.append((number, sys.modules[library].value)))
    assert importlib.util.find_spec(library) is not None
    assert seen == []
    module = importlib.import_module(library)
    assert sorted(seen) == [(1, 1), (2, 1)]
    assert "exec_module" not in vars(module.__spec__.loader)
    importlib.reload(module)
    assert len(seen) == 2
    when_imported(library, lambda: seen.append("at once"))
    assert seen[-1] == "at once"


def test_nobody_waits_after_the_context(library):
    before, seen = list(sys.meta_path), []
    with when_imported(library, lambda: seen.append(1)):
        assert sys.meta_path != before
    importlib.import_module(library)
    assert seen == [] and sys.meta_path == before


def test_an_absent_library_is_absent():
    with when_imported("no_such_library", lambda: None), pytest.raises(ModuleNotFoundError):
        importlib.import_module("no_such_library")


@pytest.mark.slow
@pytest.mark.parametrize(
    "imports",
    [
        "import revhrnet_hf; assert 'torch' not in sys.modules; from transformers import AutoConfig",
        "from transformers import AutoConfig; import revhrnet_hf",
        "import revhrnet_hf.images; from transformers import AutoConfig",
        "import revhrnet_hf.pipelines; from transformers import AutoConfig",
        "from revhrnet_hf import RevHRNetConfig; from transformers import AutoConfig",
    ],
)
def test_the_package_registers_its_models(imports):
    """In whatever order; a process for each, because an import happens once."""
    program = f"import sys; {imports}; print(AutoConfig.for_model('revhrnet').model_type); "
    program += "from transformers.pipelines import PIPELINE_REGISTRY as r; print(r.supported_tasks['image-segmentation']['impl'])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "revhrnet\n<class 'revhrnet_hf.pipelines.SegmentationPipeline'>\n", done.stderr
