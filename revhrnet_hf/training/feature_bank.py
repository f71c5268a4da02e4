"""The feature bank of a stage: the frozen backbone's maps of its first epochs, kept on the disk and trained on from then on.

With `feature_bank: K`, the images of an epoch are augmented in only K ways, its views: each later epoch has those of the epoch K
before it, in another order. The steps of the first K epochs write the maps as they compute them, so the images lie in the bank in
the order in which training comes to them, and a number of steps says how far it is filled. A step that is repeated after a
resume computes the same maps of the same batches.

The maps are in one safetensors file, which gets its whole size before the first step, so the disk cannot become full later. It is
read by position and not mapped into memory: a mapped file would count as memory of the process.
"""

import hashlib
import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn

from ..data.archive import location_size
from ..data.class_index import files_of
from ..errors import CheckpointError, RecipeError
from ..io import flush, lock_file, whole_file, write_json
from ..text import size_on_disk
from .agreement import SharedErrors
from .recipe import OF_THE_RUN, Recipe

BANK_FOLDER = "feature_bank"  # in the output folder, unless a run says another place
MAPS_FILE, STATE_FILE, LOCK_FILE = "maps.safetensors", "bank.json", ".lock"
LABELS = "labels"
FORMAT = 1  # counts up when files change so that older ones cannot be read
DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.uint8: "U8"}  # safetensors' names

# Fields of a recipe that change neither maps nor labels nor their order. A new field is taken to change them unless it is here.
FREE = {
    *("label_space", "image_column", "label_column", "eval_split"),  # data; classes and images have digests of their own
    *("variant", "backbone_weights", "freeze_backbone", "lora_rank", "lora_alpha", "lora_targets", "pyramid", "stream_channels"),
    *("num_modules", "num_blocks", "final_block", "head", "init_from", "transfer_classifier", "initializer"),
    *("zero_init_residual", "zero_init_exchange", "batch_norm_momentum", "loss", "label_smoothing", "boundary_relaxation"),
    *("focal_gamma", "tversky_alpha", "tversky_beta", "auxiliary_loss_weight", "class_weights", "effective_number_beta"),
    *("ohem_threshold", "ohem_min_kept", "epochs", "optimizer", "learning_rate", "schedule", "warmup_steps"),
    *("backbone_learning_rate", "layer_decay", "head_learning_rate", "poly_power", "momentum", "weight_decay"),
    *("decay_norm_and_bias", "max_grad_norm", "ema_decay", "recompute", "sync_batch_norm", "eval_size", "eval_every"),
    *("eval_at_start", "early_stopping_patience"),
    *OF_THE_RUN,
}


@dataclass(frozen=True)
class Kept:
    """How a tensor of one image lies in the bank.

    Attributes:
        name: of the tensor in the file.
        shape: of one image, in the order in which it is stored.
        channels_last: whether the network has it as (channels, rows, columns), and it is stored with the channels last.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    channels_last: bool = False

    @classmethod
    def of_map(cls, name: str, x: Tensor) -> "Kept":
        """Describes maps (images, channels, rows, columns), with their memory format: convolutions choose an algorithm by it."""
        channels_last = x.stride(1) == 1
        return cls(name, tuple(x.permute(0, 2, 3, 1).shape[1:] if channels_last else x.shape[1:]), x.dtype, channels_last)

    @property
    def nbytes(self) -> int:
        """Size of one image's share in bytes."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    def rows(self, x: Tensor):
        """The bytes of each image of a batch in host memory, without a copy; (images, …) uint8, for NumPy knows no bfloat16."""
        return x.reshape(len(x), -1).view(torch.uint8).numpy()

    def to_store(self, x: Tensor) -> Tensor:
        return (x.permute(0, 2, 3, 1) if self.channels_last else x).to("cpu", self.dtype).contiguous()

    def from_store(self, x: Tensor) -> Tensor:
        return x.permute(0, 3, 1, 2) if self.channels_last else x


def identity(recipe: Recipe, sets: list, data: dict[str, Any], backbone: nn.Module, image_processor) -> dict[str, Any]:
    """Everything that maps and labels of a stage depend on; banks with another identity are refused.

    Args:
        sets: `TrainingSet`s.
        data: the data's fingerprint (dataset_checks.py).
    """
    found = {
        "format": FORMAT,
        "recipe": {name: value for name, value in asdict(recipe).items() if name not in FREE},
        "images": data["trained_on"],
        "files": {str(position): _digest_of_sizes(entry.images) for position, entry in enumerate(sets)},
        "classes": data["classes"],
        "weights": _digest_of_weights(backbone),
        "streams": len(backbone.channels),  # a map for each, whatever variant or channels asked for them
        "normalisation": [list(image_processor.image_mean), list(image_processor.image_std)],
    }
    return json.loads(json.dumps(found))  # as it is read back


def _digest_of_weights(backbone: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(backbone.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _digest_of_sizes(images) -> str:
    """A digest of the sizes in bytes of the files of images and label maps."""
    sizes = [[location_size(file) for file in files_of(images, column)] for column in ("image", "label_map")]
    return hashlib.sha256(json.dumps(sizes).encode()).hexdigest()


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The differences of two identities, in words."""
    old, new = before.get("recipe", {}), now["recipe"]
    said = [f"recipe field {name} was {old.get(name)!r}, is {new[name]!r}" for name in new if old.get(name) != new[name]]
    words = {
        "format": "it was written by another version of this package",
        "images": "its images are other ones",
        "files": "files of images or label maps have other sizes",
        "classes": "its classes are other ones",
        "weights": "the backbone had other weights",
        "streams": "it has the maps of another number of streams",
        "normalisation": "images were normalised with another mean or standard deviation",
    }
    return said + [text for name, text in words.items() if before.get(name) != now[name]]


class FeatureBank:
    """The file with the maps of a stage's views; one for all its processes, which are on one machine.

    Args:
        folder: of the bank.
        views: epochs that fill it.
        steps_of_epoch, batch_size: steps of an epoch, and the images of a step over all processes.
        crop_size: (height, width) of the crops, pixels.
        run_backbone: from normalised images (batch, 3, height, width) to the backbone's maps, on the device.
        identity: what the maps depend on ([`identity`]).
        device: of the batches.

    Attributes:
        steps: that it has room for.
        filled: steps whose maps it holds, counted from the stage's first one.
    """

    def __init__(
        self,
        folder: Path,
        views: int,
        steps_of_epoch: int,
        batch_size: int,
        crop_size: tuple[int, int],
        run_backbone: Callable[[Tensor], tuple[Tensor, ...]],
        identity: dict[str, Any],
        device: torch.device,
    ):
        self.folder, self.path = folder, folder / MAPS_FILE
        self.steps_of_epoch, self.batch_size, self.steps = steps_of_epoch, batch_size, views * steps_of_epoch
        self.run_backbone, self.identity, self.device = run_backbone, identity, device
        self.crop_size = tuple(crop_size)
        self.filled = self._flushed = 0
        self._file: IO[bytes] | None = None
        self._lock: IO[bytes] | None = None
        maps = run_backbone(torch.zeros(2, 3, *crop_size, device=device).to(memory_format=torch.channels_last))
        self._maps = [Kept.of_map(f"map_{number}", x) for number, x in enumerate(maps)]
        self._kept = [*self._maps, Kept(LABELS, self.crop_size, torch.uint8)]

    @classmethod
    def of_stage(cls, folder: Path, data, learner, fingerprint: dict[str, Any]) -> "FeatureBank":
        """The bank of a stage with this `TrainingData`, `Learner` and fingerprint of the data; nothing is written yet."""
        recipe, backbone = data.recipe, learner.network.base_model.backbone
        of_maps = identity(recipe, data.sets, fingerprint, backbone, learner.image_processor)
        sizes = recipe.feature_bank, data.batches.steps, recipe.batch_size, recipe.crop_size
        return cls(folder, *sizes, learner.run_backbone, of_maps, learner.accelerator.device)

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return len(self._header()) + self._images * sum(kept.nbytes for kept in self._kept)

    @property
    def _images(self) -> int:
        return self.steps * self.batch_size

    def _header(self) -> bytes:
        """The beginning of the safetensors file: its own length, then JSON that says where each tensor lies."""
        entries, start = {}, 0
        for kept in self._kept:
            end = start + self._images * kept.nbytes
            entries[kept.name] = {"dtype": DTYPES[kept.dtype], "shape": [self._images, *kept.shape], "data_offsets": [start, end]}
            start = end
        text = json.dumps(entries).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    def _starts(self) -> list[int]:
        """Where each tensor begins in the file."""
        starts = [len(self._header())]
        for kept in self._kept[:-1]:
            starts.append(starts[-1] + self._images * kept.nbytes)
        return starts

    def rehearse(self, steps: int) -> None:
        """Have room for so many steps only, of a dry run."""
        self.steps = min(self.steps, steps)

    # The folder

    def open(self, errors: SharedErrors) -> None:
        """Take the bank in the folder, or make one of the whole size there. All processes come here.

        Raises:
            RecipeError: the processes are on several machines.
            CheckpointError: the bank belongs to other maps or is being filled by another run, or there is no room for it.
        """
        accelerator = errors.accelerator
        with errors.together():
            if int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes)) < accelerator.num_processes:
                raise RecipeError("feature_bank: the processes are on several machines, and share no bank: leave the field out")
        with errors.together():
            if accelerator.is_main_process:
                self._prepare()
        with errors.together():
            self._attach()

    def _prepare(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = lock_file(self.folder / LOCK_FILE)
        except OSError as error:
            if self._is_whole() and self._is_full():  # it is only read
                self.check_state()
                return
            raise CheckpointError(f"Cannot write the feature bank in {self.folder}: {error.strerror}") from error
        if self._lock is None:
            raise CheckpointError(f"Another run fills the feature bank in {self.folder}: wait for it, or choose another place")
        try:
            self.check_state()
            if not self._is_whole():
                self._allocate()
        except BaseException:
            self.close()
            raise

    def check_state(self) -> None:
        """Raises a CheckpointError if the folder holds other maps than this bank's; writes nothing."""
        state = self._read_state()
        if state is None and self.path.exists():
            raise CheckpointError(
                f"{self.path} lies where the feature bank belongs, and {STATE_FILE}, which says whose it is, is missing: "
                "move it away"
            )
        if state is None:
            return
        said = differences(state.get("identity", {}), self.identity)
        if said:
            raise CheckpointError(
                f"The feature bank in {self.folder} holds other maps than this run's: {'; '.join(said)}. Delete it, or let this "
                "run fill one of its own in another place (--bank_dir)"
            )

    def _read_state(self) -> dict[str, Any] | None:
        path = self.folder / STATE_FILE
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be read ({error}): delete the feature bank, and it is filled anew") from error
        return state if isinstance(state, dict) else {}

    def _is_whole(self) -> bool:
        """Whether the file is there with this bank's header and size; of a file that is not, nothing is used."""
        header = self._header()
        if not self.path.is_file() or self.path.stat().st_size != self.size:
            return False
        with self.path.open("rb") as file:
            return file.read(len(header)) == header

    def _is_full(self) -> bool:
        return (self._read_state() or {}).get("filled_steps") == self.steps

    def _allocate(self) -> None:
        """Make the file, with room on the disk for all maps. `bank.json` comes first: it says whose the file is."""
        self._write_state(0)
        size, free = self.size, shutil.disk_usage(self.folder).free
        try:
            if size > free:
                raise OSError("not enough room")
            with whole_file(self.path) as partial, partial.open("wb") as file:
                file.write(self._header())
                file.flush()
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, size)
                else:  # macOS, Windows: the room is taken when maps are written
                    file.truncate(size)
        except OSError as error:
            raise CheckpointError(
                f"Cannot make the feature bank {self.path} of {size_on_disk(size / 2**30)}, "
                f"with {size_on_disk(free / 2**30)} free: {error.strerror or error}. Make room, choose "
                "another place (--bank_dir), or keep fewer views (feature_bank)"
            ) from error

    def _write_state(self, filled: int) -> None:
        try:
            write_json(self.folder / STATE_FILE, {"filled_steps": filled, "of_steps": self.steps, "identity": self.identity})
        except OSError as error:
            raise CheckpointError(f"Cannot write {self.folder / STATE_FILE}: {error.strerror}. Resume with --resume") from error

    def _attach(self) -> None:
        self._file = self.path.open("r+b" if os.access(self.path, os.W_OK) else "rb", buffering=0)
        self.filled = self._flushed = int(self._read_state()["filled_steps"])
        self._unlock_if_full()

    def flush(self) -> None:
        """Bring everything to the disk, then note how far the bank is filled. For one process, when all have finished a step.

        Raises:
            CheckpointError: it cannot be written.
        """
        if self._flushed == self.filled:
            return
        try:
            flush(self.path)
        except OSError as error:
            raise CheckpointError(f"Cannot write {self.path}: {error.strerror}. Resume with --resume") from error
        self._write_state(self.filled)
        self._flushed = self.filled
        self._unlock_if_full()

    def _unlock_if_full(self) -> None:
        if self._flushed == self.steps and self._lock is not None:
            self._lock.close()
            self._lock = None

    def close(self) -> None:
        for file in (self._file, self._lock):
            if file is not None:
                file.close()
        self._file = self._lock = None

    # Its content

    def kept_steps(self, view: int, first: int) -> int:
        """The end of the steps, from `first` on, of an epoch with this view whose maps the bank has."""
        return min(max(first, self.filled - view * self.steps_of_epoch), self.steps_of_epoch)

    def fill(self, places: list[list[int]], passes: list[dict[str, Tensor]], errors: SharedErrors) -> list[dict[str, Any]]:
        """Compute and write the maps of the step after the last one that is filled.

        Args:
            places: the numbers of the images of each forward pass.
            passes: `pixel_values` and `labels` of each, on the device.

        Returns:
            What the network takes instead of them.
        """
        batches = []
        for numbers, batch in zip(places, passes, strict=True):
            maps = self.run_backbone(batch["pixel_values"])
            with errors.hold():
                self._write(numbers, [*maps, batch[LABELS]])
            batches.append(self._batch(maps, batch[LABELS]))
        self.filled += 1
        return batches

    def _batch(self, maps: Iterable[Tensor], labels: Tensor) -> dict[str, Any]:
        return {"backbone_maps": tuple(maps), "image_size": self.crop_size, LABELS: labels}

    def _write(self, places: list[int], tensors: list[Tensor]) -> None:
        try:
            for kept, start, tensor in zip(self._kept, self._starts(), tensors, strict=True):
                for place, row in zip(places, kept.rows(kept.to_store(tensor)), strict=True):
                    self._file.seek(start + place * kept.nbytes)
                    if self._file.write(row) != kept.nbytes:
                        raise OSError(None, "it was written only in part")
        except OSError as error:
            raise CheckpointError(f"Cannot write {self.path}: {error.strerror}. Resume with --resume") from error

    def read(self, places: Iterable[list[int]]) -> Iterator[dict[str, Any]]:
        """The kept batches, in host memory, each read while the one before it is used.

        Args:
            places: the numbers of the images of each batch.

        Raises:
            CheckpointError: the file cannot be read.
        """
        with self.path.open("rb", buffering=0) as file, ThreadPoolExecutor(1, "feature bank") as thread:
            ahead = deque()
            for numbers in places:
                ahead.append(thread.submit(self._read, file, numbers))
                if len(ahead) > 1:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()

    def _read(self, file: IO[bytes], places: list[int]) -> dict[str, Any]:
        tensors = self._empty(len(places))
        try:
            for kept, start, tensor in zip(self._kept, self._starts(), tensors, strict=True):
                for place, row in zip(places, kept.rows(tensor), strict=True):
                    file.seek(start + place * kept.nbytes)
                    if file.readinto(row) != kept.nbytes:
                        raise OSError(None, "it is shorter than it was")
        except OSError as error:
            raise CheckpointError(f"Cannot read the feature bank {self.path}: {error.strerror}") from error
        return {"tensors": tensors}

    def _empty(self, images: int) -> list[Tensor]:
        pinned = self.device.type == "cuda"
        return [torch.empty((images, *kept.shape), dtype=kept.dtype, pin_memory=pinned) for kept in self._kept]

    def blank(self, images: int) -> dict[str, Any]:
        """A batch for steps that nothing is kept of, because a process has failed."""
        return {"tensors": [tensor.zero_() for tensor in self._empty(images)]}

    def on_device(self, tensors: list[Tensor]) -> dict[str, Any]:
        """A batch that was read, as the network takes it."""
        *maps, labels = send_to_device(tensors, self.device, non_blocking=True)
        return self._batch([kept.from_store(x) for kept, x in zip(self._maps, maps, strict=True)], labels.long())


def bank_files(folder: Path) -> set[Path]:
    """The files of a bank in its folder, none through a link; none if the folder is no bank's."""
    files = {folder / name for name in (STATE_FILE, MAPS_FILE, LOCK_FILE)}
    return {path for path in files if path.is_file() and not path.is_symlink()} if (folder / STATE_FILE).is_file() else set()
