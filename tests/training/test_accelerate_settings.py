"""The recipe decides, whatever Accelerate finds in the environment; what disagrees there is named."""

import os
import re
from pathlib import Path

import accelerate
import pytest
from accelerate.commands.launch import launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env, prepare_simple_launcher_cmd_env

from revhrnet_hf.errors import RecipeError
from revhrnet_hf.training import processes
from revhrnet_hf.training.processes import AGREES, REFUSED, refuse_other_settings
from revhrnet_hf.training.recipe import Recipe

# Settings that are not the recipe's business (where a run takes place, what is logged), or have an effect only with refused ones.
FREE = (
    "ACCELERATE_ALLOW_CP_STANDALONE",
    "ACCELERATE_BYPASS_DEVICE_MAP",
    "ACCELERATE_CONFIG_DS_FIELDS",
    "ACCELERATE_CPU_AFFINITY",
    "ACCELERATE_DEBUG_MODE",
    "ACCELERATE_DEBUG_RDV_FILE",
    "ACCELERATE_ENABLE_RICH",
    "ACCELERATE_INIT_INCLUDE_BUFFERS",
    "ACCELERATE_IN_TPU_POD",
    "ACCELERATE_LOG_LEVEL",
    "ACCELERATE_NUM_PROCESSES",
    "ACCELERATE_SAGEMAKER_DISTRIBUTED_TYPE",
    "ACCELERATE_TORCH_DEVICE",
    "ACCELERATE_USE_CPU",
)


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
        monkeypatch.delenv(name)


def recipe(**settings):
    return Recipe(dataset="camvid", **settings)


def test_every_setting_is_known():
    """Each name in Accelerate's own source is of a field, refused, or free: a new version's new ones are looked at first."""
    sources = [path.read_text(encoding="utf-8") for path in Path(accelerate.__file__).parent.rglob("*.py")]
    names = {name for source in sources for name in re.findall(r"\bACCELERATE_[A-Z0-9_]+", source)}
    assert len(names) > 30
    prefixes = tuple(name for name in REFUSED if name.endswith("_"))
    known = {*AGREES, *REFUSED, *FREE, "ACCELERATE_DYNAMO_"}
    assert {name for name in names if name not in known and not name.startswith(prefixes)} == set()


@pytest.mark.parametrize(
    ("name", "value", "field"),
    [
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "gradient_accumulation_steps is 1"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "auto", "gradient_accumulation_steps is 1"),
        ("ACCELERATE_MIXED_PRECISION", "bf16", "precision is no"),
        ("ACCELERATE_MIXED_PRECISION", "fp8", "precision is no"),
        ("ACCELERATE_MIXED_PRECISION", "FP16", "precision is no"),
        ("ACCELERATE_GRADIENT_CLIPPING", "1.0", "max_grad_norm is None"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "torch_compile is False"),
        ("ACCELERATE_DYNAMO_MODE", "max-autotune", "torch_compile is False"),
        ("ACCELERATE_DYNAMO_USE_DYNAMIC", "True", "no recipe asks for that"),
        ("ACCELERATE_USE_FSDP", "true", "no recipe asks for that"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "no recipe asks for that"),
        ("ACCELERATE_USE_MEGATRON_LM", "true", "no recipe asks for that"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "true", "no recipe asks for that"),
        ("ACCELERATE_DOWNCAST_BF16", "1", "no recipe asks for that"),
        ("ACCELERATE_FP8_BACKEND", "TE", "no recipe asks for that"),
        ("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2", "no recipe asks for that"),
    ],
)
def test_what_disagrees_is_named(monkeypatch, name, value, field):
    """Before anything is started."""
    monkeypatch.setattr(processes, "Accelerator", None)
    monkeypatch.setenv(name, value)
    with pytest.raises(RecipeError, match=rf"disagree with the recipe: {name}={value} \([\w' ]*{field}\)\. The recipe decides"):
        processes.start_processes(recipe())


@pytest.mark.parametrize(
    ("name", "value", "settings"),
    [
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", {"gradient_accumulation_steps": 4, "batch_size": 8}),
        ("ACCELERATE_MIXED_PRECISION", "bf16", {"precision": "bf16"}),
        ("ACCELERATE_MIXED_PRECISION", "no", {"precision": "bf16"}),  # which `accelerate launch` writes unasked
        ("ACCELERATE_GRADIENT_CLIPPING", "5", {"max_grad_norm": 5.0}),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", {"torch_compile": True}),
        ("ACCELERATE_USE_FSDP", "false", {}),
        ("ACCELERATE_USE_CPU", "true", {}),
        ("ACCELERATE_DEBUG_MODE", "1", {}),
    ],
)
def test_what_agrees(monkeypatch, name, value, settings):
    monkeypatch.setenv(name, value)
    refuse_other_settings(recipe(**settings))


@pytest.mark.parametrize("text", ["", " "])
def test_empty_counts_as_unset(monkeypatch, text):
    """Also for those that Accelerate itself does not take empty (USE_CPU, TORCH_DEVICE, …)."""
    names = sorted(name for name in {*AGREES, *REFUSED, *FREE} if not name.endswith("_"))
    for name in names:
        monkeypatch.setenv(name, text)
    accelerator = processes.start_processes(recipe())
    assert accelerator.mixed_precision == "no"
    assert [name for name in names if name in os.environ] == []


def test_the_recipe_wins(monkeypatch):
    """Even over what no check has seen: the numbers of Accelerate's own objects are the recipe's."""
    monkeypatch.setattr(processes, "refuse_other_settings", lambda recipe: None)
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    accelerator = processes.start_processes(recipe(gradient_accumulation_steps=2))
    assert accelerator.gradient_accumulation_steps == 2
    assert accelerator.gradient_state.num_steps == 2
    assert accelerator.mixed_precision == "no"
    assert accelerator.state.dynamo_plugin.backend.value == "NO"
    assert processes.start_processes(recipe()).gradient_state.num_steps == 1  # as of a chain's next stage


def launched(monkeypatch, prepare, *options):
    """The environment that `accelerate launch` gives a program, by its own code."""
    arguments = launch_command_parser().parse_args([*options, "run_seg.py"])
    defaults = {"mixed_precision": "no", "dynamo_backend": "no", "num_machines": 1, "num_processes": 2, "main_process_port": 0}
    for name, value in {**defaults, "num_cpu_threads_per_process": 1, "use_cpu": True}.items():
        if getattr(arguments, name, None) is None:
            setattr(arguments, name, value)
    prepared = prepare(arguments)
    environment = prepared if isinstance(prepared, dict) else prepared[1]
    for name in [name for name in environment if name.startswith("ACCELERATE_")]:
        monkeypatch.setenv(name, environment[name])
    assert "ACCELERATE_MIXED_PRECISION" in environment


@pytest.mark.parametrize("prepare", [prepare_simple_launcher_cmd_env, prepare_multi_gpu_env])
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), None),
        (("--mixed_precision", "fp16"), "ACCELERATE_MIXED_PRECISION=fp16"),
        (("--dynamo_backend", "inductor"), "ACCELERATE_DYNAMO_BACKEND=INDUCTOR"),
    ],
)
def test_against_the_launcher(monkeypatch, prepare, options, said):
    launched(monkeypatch, prepare, *options)
    if said is None:
        refuse_other_settings(recipe(precision="bf16"))
    else:
        with pytest.raises(RecipeError, match=said):
            refuse_other_settings(recipe())
