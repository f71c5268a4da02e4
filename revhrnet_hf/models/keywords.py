"""Checks keywords: an unknown one is one clear error, and is never ignored."""

import inspect
from collections.abc import Collection, Iterable
from difflib import get_close_matches

from transformers import PreTrainedModel

# Keywords of `from_pretrained` that are not settings. Transformers passes the same keywords to the model, its configuration and
# its image processor (`pipeline(…, model_kwargs=…)`), and each of them uses some. The signature names only a part of them.
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
    """Raises a TypeError that names the first unknown keyword, and the known keyword that is most similar to it.

    Keywords that begin with an underscore are Transformers' own and always pass.

    Args:
        given: the keywords of the caller.
        known: the keywords that are used.
        where: the function that was called; the message begins with it.
    """
    for keyword in given:
        if keyword not in known and not keyword.startswith("_"):
            raise TypeError(f"{where} does not know the keyword {keyword!r}{did_you_mean(keyword, known)}")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown word: a guess, or an empty text if no known word is similar."""
    (*guess,) = get_close_matches(word, known, n=1)
    return f"; did you mean {guess[0]!r}?" if guess else ""
