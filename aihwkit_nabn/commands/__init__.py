"""The commands of `nabn`: one file each, found by being here.

A command file ``name.py`` holds a function ``command`` with typer annotations; it imports torch and everything that
imports torch inside that function, so that ``nabn --help`` answers at once.
"""

from __future__ import annotations

import importlib
import pkgutil

import typer


def add_commands(app: typer.Typer) -> None:
    """Add the function ``command`` of every file in this folder to `app`, under the file's name.

    Files whose name begins with an underscore are helpers, folders are no commands.
    """
    for module in pkgutil.iter_modules(__path__):
        if not module.name.startswith("_") and not module.ispkg:
            command = importlib.import_module(f"{__name__}.{module.name}").command
            app.command(module.name.replace("_", "-"))(command)
