"""A package with a method in it, to begin a plugin from: the files of `templates/plugin`, with the names filled in."""

import keyword
import re
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import Distribution
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from string import Template

from . import __version__
from .errors import InputError
from .registry import METHODS, entries

SUFFIX = ".template"


@dataclass(frozen=True)
class Package:
    """A package, not yet written, whose distribution and method are called `name`, and module and function `module`."""

    name: str
    module: str

    @classmethod
    def called(cls, name: str) -> "Package":
        """Capitals become small letters, and underscores hyphens, as in every name of a method.

        **Raises:** `InputError` for a name that a distribution, a method or a module cannot have, or that one has.
        """
        module = name.lower().replace("-", "_")
        canonical = module.replace("_", "-")
        if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", canonical):
            raise InputError(
                f"NAME = {name!r}: letters, digits and single hyphens are wanted, a letter first, as in my-method."
            )
        if keyword.iskeyword(module):
            raise InputError(f"NAME = {name!r} is a word of Python's own: no module can be called so.")
        for entry in entries(METHODS):
            if entry.answers_to(canonical):
                raise InputError(f"NAME = {name!r}: there is such a method already, of {entry}. Take another name.")
        for installed in Distribution.discover(name=canonical):
            raise InputError(f"NAME = {name!r}: {installed.name} {installed.version} is installed. Take another name.")
        if spec := find_spec(module):
            raise InputError(
                f"NAME = {name!r}: there is a module {module!r} already, {spec.origin}. Take another name."
            )
        return cls(canonical, module)

    def texts(self) -> dict[str, str]:
        """Every file by its name."""
        names = {"name": self.name, "module": self.module, "version": __version__}
        templates = (files("metabilevel") / "templates" / "plugin").iterdir()
        texts = {each.name.removesuffix(SUFFIX): Template(each.read_text("utf-8")) for each in templates}
        return {name.replace("module", self.module): text.substitute(names) for name, text in texts.items()}

    def write(self, folder: Path) -> list[Path]:
        """Writes all files into `folder`, which is new or empty, or else none.

        **Raises:** `InputError` where the folder is not empty or cannot be written to.
        """
        with ExitStack() as undo:
            try:
                if folder.is_dir() and (items := sorted(item.name for item in folder.iterdir())):
                    raise InputError(f"{folder} holds {items[0]!r}: give an empty directory, or a new one, as --out.")
                for missing in [each for each in (*reversed(folder.parents), folder) if not each.exists()]:
                    missing.mkdir()
                    undo.callback(missing.rmdir)
                for name, text in self.texts().items():
                    with (folder / name).open("x", encoding="utf-8") as file:
                        undo.callback((folder / name).unlink)
                        file.write(text)
            except OSError as error:
                raise InputError(f"{error.filename or folder} cannot be written: {error.strerror}.") from error
            undo.pop_all()
        return sorted(folder.iterdir())
