"""Work that waits until a large library is imported by whoever needs it: `when_imported`.

`import revhrnet_hf` registers models with Transformers' Auto classes, and that takes PyTorch and seconds. A command's `--help` or
an error about a misspelt option should not wait for it. So the work is done at the moment when Transformers is imported: before
anybody can use an Auto class, and at once if Transformers is imported already.
"""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


def when_imported(name: str, action: Callable[[], None]) -> AbstractContextManager:
    """Calls `action` once: now if the top-level module `name` is imported, else right after its first import.

    An exception of `action` is then an exception of that import.

    Returns:
        A context at whose end nobody waits any longer.
    """
    context = ExitStack()
    if sys.modules.get(name) is not None:  # None: somebody forbids the import
        action()
    else:
        waiting = _Waiting(name, action)
        sys.meta_path.insert(0, waiting)
        context.callback(waiting.stop)
    return context


class _Waiting(MetaPathFinder):
    """Finds one module as the other finders do, and lets its loader call an action after it has run the module."""

    def __init__(self, name: str, action: Callable[[], None]):
        self.name, self.action = name, action

    def find_spec(self, name: str, path=None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != self.name:
            return None
        found = (finder.find_spec(name, path, target) for finder in sys.meta_path[sys.meta_path.index(self) + 1 :])
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            self._act_after(spec.loader)
        return spec  # somebody may only have asked whether the module exists

    def stop(self) -> bool:
        """Whether it was waiting."""
        waiting = self in sys.meta_path
        if waiting:
            sys.meta_path.remove(self)
        return waiting

    def _act_after(self, loader: Loader) -> None:
        execute = loader.exec_module

        def execute_and_act(module: ModuleType) -> None:
            vars(loader).pop("exec_module", None)  # the loader is as it was; another who waits has perhaps seen to it
            execute(module)
            if self.stop():
                self.action()

        loader.exec_module = execute_and_act
