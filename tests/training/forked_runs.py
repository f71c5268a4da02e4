"""Runs of chains in processes of their own, with faults at exact places; itself forked (tests/forked.py), it forks for each run.

Reads a job (JSON, `Runs.start` makes it) from each line of stdin and answers with each process's exit status, negative for a
signal.
"""

import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator

from revhrnet_hf import cli, errors
from revhrnet_hf.data import TrainingSamples
from revhrnet_hf.training import checkpoint, evaluation_hook
from revhrnet_hf.training import dry_run as rehearsal
from revhrnet_hf.training.chain import run_chain
from revhrnet_hf.training.dry_run import dry_run
from revhrnet_hf.training.log import RunLog
from revhrnet_hf.training.recipe import read_chain
from revhrnet_hf.training.trainer import Stage


def place_fault(dataset: str, step: int, where: str, what: str | int) -> None:
    """Let a signal come in a stage after `step` steps: before a step, between two forward passes, in saving, in saving `best`,
    in moving, in an evaluation, before a line is logged, before an image is loaded. `SIGNAL to all` reaches the loaders' workers
    first, as it may where a scheduler signals each process of a job. Or, with a number for a name, let no file be written any
    longer than this many bytes, as on a full disk; or with the name of an error of the user's, raise it."""
    running = {}
    sent = []

    def fault(here: str) -> None:
        state = running["stage"].state
        if (here, state.step, running["stage"].recipe.dataset) == (where, step, dataset) and not sent:
            sent.append(here)
            if isinstance(what, int):
                resource.setrlimit(resource.RLIMIT_FSIZE, (what, what))
                return
            if hasattr(errors, what):
                raise getattr(errors, what)("planted")
            name, _, to_all = what.partition(" ")
            if to_all:
                workers = [str(worker.pid) for worker in multiprocessing.active_children()]
                subprocess.run(["kill", "-s", name.removeprefix("SIG"), *workers], check=True)  # by a process beside
                time.sleep(0.3)
            os.kill(os.getpid(), signal.Signals[name])

    def before(publisher, name: str, here: str, condition=lambda *arguments: True) -> None:
        original = getattr(publisher, name)

        def wrapper(*arguments, **settings):
            if condition(*arguments):
                fault(here)
            return original(*arguments, **settings)

        setattr(publisher, name, wrapper)

    run = Stage.run

    def remember(self):
        running["stage"] = self
        return run(self)

    Stage.run = remember
    before(Stage, "train_step", "step")
    before(Accelerator, "clip_grad_norm_", "pass")
    before(checkpoint, "save_training_state", "saving")
    before(checkpoint, "save_model_folder", "saving best", lambda folder, *_: folder.name.startswith(".best."))
    before(RunLog, "write", "logging")
    before(TrainingSamples, "crop", "loading")
    before(Path, "rename", "moving", lambda path, _: path.name.startswith(".last.revhrnet-new-"))
    evaluate = evaluation_hook.evaluate_dataset

    def evaluate_with_fault(*arguments, progress, **settings):
        return evaluate(*arguments, progress=lambda done: (fault("evaluating"), progress(done)), **settings)

    evaluation_hook.evaluate_dataset = evaluate_with_fault


def with_scaler() -> None:
    """fp16's loss scaler, which Accelerate makes for GPUs only, on float32 numbers."""
    make = Accelerator.__init__

    def init(self, *arguments, **settings):
        make(self, *arguments, **settings)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=3)

    Accelerator.__init__ = init


def meet(job: dict, rank: int) -> None:
    """Find the other processes, through a file; with `machines`, as if each were on a machine of its own."""
    count = len(job["said"])
    local = {"LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1} if job["machines"] else {"LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": count}
    places = {"RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", **local}  # what torchrun says to its processes
    os.environ.update({name: str(value) for name, value in places.items()})
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{job['meeting']}", rank=rank, world_size=count, timeout=timedelta(seconds=job["timeout"])
    )
    if job["machines"] and rank > 0:
        # The first one's temporary folder is on its own disk.
        broadcast = rehearsal.broadcast_object_list
        rehearsal.broadcast_object_list = lambda given: [_as_seen_here(entry) for entry in broadcast(given)]


def _as_seen_here(sent: object) -> object:
    return f"/of_another_machine{sent}" if isinstance(sent, str) else sent


def run(job: dict, rank: int) -> None:
    """One process of a run; does not return."""
    with open(job["said"][rank], "w") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    if len(job["said"]) > 1:
        meet(job, rank)
    status = 0
    try:
        fault = job["fault"] or []
        if fault and rank == (fault[4] if len(fault) > 4 else len(job["said"]) - 1):
            place_fault(*fault[:4])
        if job["scaler"]:
            with_scaler()
        recipes = read_chain(job["recipe"])
        do = dry_run if job["dry"] else run_chain
        cli.run(lambda: do(recipes, job["data"], job["output_dir"], resume=job["resume"], timeout=job["timeout"]))
    except SystemExit as stop:
        status = stop.code
    except BaseException:
        traceback.print_exc()
        status = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def main() -> None:
    for line in sys.stdin:
        job = json.loads(line)
        children = []
        for rank in range(len(job["said"])):
            children.append(os.fork())
            if children[-1] == 0:
                run(job, rank)
        statuses = []
        for child in children:
            if statuses and job["fault"] and job["fault"][3] == "SIGSTOP":
                os.kill(child, signal.SIGKILL)  # it would stand still for ever
            statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        print(json.dumps(statuses), flush=True)


if __name__ == "__main__":
    main()
