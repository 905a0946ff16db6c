"""Placeholders for what Feast imports at its start and calls only offline, where it is not installed.

An event's way into the store and a shelf's way out of it use Feast's definitions, registry, keys and store, and none of pandas, pyarrow,
SQLAlchemy or a web framework. The images of the roles on that way leave these packages out, which takes 179 MB from an image and 97 MB
from the memory of a process. Where they are installed they are used, and nothing here is.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

PACKAGES = frozenset({"dask", "fastapi", "fsspec", "gunicorn", "pandas", "pyarrow", "sqlalchemy"})


class _Placeholder(type):
    """Of a class or function. Modules may name it and call it as they are imported: in annotations, as a base class, in a table."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _placeholder(f"{cls.__module__}.{cls.__qualname__}", name)

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if sys._getframe(1).f_code.co_name != "<module>":
            package = cls.__module__.partition(".")[0]
            raise ModuleNotFoundError(
                f"{cls.__module__}.{cls.__name__} was called, but {package} is not installed here: pip install {package}",
                name=package,
            )
        return cls

    def __or__(cls, other: Any) -> Any:
        return cls

    __ror__ = __or__


def _placeholder(module: str, name: str) -> Any:
    return _Placeholder(name, (), {"__module__": module})


class _Module(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _placeholder(self.__name__, name)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        package, _, within = fullname.partition(".")
        if package not in PACKAGES or (within and not isinstance(sys.modules[package], _Module)):
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run."""


def allow() -> None:
    """Let Feast, where it is installed, be imported without PACKAGES. Last among the finders: what is installed was found before."""
    if importlib.util.find_spec("feast") and not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
