"""Keywords that a constructor or a call does not know end in one clear error, never in silence."""

import inspect
from collections.abc import Collection, Iterable
from difflib import get_close_matches

from transformers import PreTrainedModel

# What `from_pretrained` takes besides settings. Transformers hands the same keywords to the model, its configuration and its
# image processor (`pipeline(…, model_kwargs=…)`), each of which uses its own. The first half is what its signature names.
LOADING_KEYWORDS = frozenset(inspect.signature(PreTrainedModel.from_pretrained).parameters) | {
    "adapter_kwargs",
    "adapter_name",
    "allow_all_kernels",
    "code_revision",
    "device_map",
    "device_mesh",
    "distributed_config",
    "dtype",
    "generation_config",
    "gguf_file",
    "kernel_config",
    "key_mapping",
    "local_files_only",
    "low_cpu_mem_usage",
    "max_memory",
    "offload_buffers",
    "offload_folder",
    "offload_state_dict",
    "output_loading_info",
    "proxies",
    "quantization_config",
    "resume_download",
    "state_dict",
    "subfolder",
    "torch_dtype",
    "tp_plan",
    "tp_size",
    "tqdm_class",
    "trust_remote_code",
    "use_auth_token",
    "use_kernels",
    "variant",
}


def check_keywords(given: Iterable[str], known: Collection[str], where: str) -> None:
    """Raises a TypeError that names the first unknown keyword, and the known one that it resembles.

    Keywords that begin with an underscore are Transformers' own and always pass.

    Args:
        given: the keywords that a caller used.
        known: those that are honoured.
        where: what was called, to begin the message with.
    """
    for keyword in given:
        if keyword not in known and not keyword.startswith("_"):
            raise TypeError(f"{where} does not know the keyword {keyword!r}{did_you_mean(keyword, known)}")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown word: a guess, or nothing where no known word resembles it."""
    (*guess,) = get_close_matches(word, known, n=1)
    return f"; did you mean {guess[0]!r}?" if guess else ""
