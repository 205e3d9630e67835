"""Command-line usage errors, reported like all others: one line that says what is wrong and how to fix it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

from benchmark.files import UserError, unknown

UsageError = typer.BadParameter.__mro__[1]  # click's, wherever this version of typer keeps its click
LONGEST = 300  # characters of a message, which holds what was given


class Verbs(TyperGroup):
    """The commands, whose usage errors are UserErrors instead of typer's boxes."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        with plainly():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        with plainly():
            return super().invoke(ctx)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if self.get_command(ctx, args[0]) is None:
            raise unknown("verb", args[0], self.list_commands(ctx))
        return super().resolve_command(ctx, args)


@contextmanager
def plainly() -> Iterator[None]:
    """Raises usage errors as UserErrors; the help shown when no arguments are given is left as it is."""
    try:
        yield
    except UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            raise
        raise told(error) from None


def told(error: Any) -> UserError:
    """A usage error in one line, with the choices if there are any."""
    verb = error.ctx.info_name if error.ctx is not None and error.ctx.parent is not None else ""  # some errors know no verb
    if hasattr(error, "possibilities"):  # an option that there is not
        params = error.ctx.command.get_params(error.ctx)
        choices = {name for param in params for name in (*param.opts, *param.secondary_opts) if name.startswith("--")}
        return unknown(f"option of {verb}" if verb else "option", error.option_name, choices)
    param = getattr(error, "param", None)
    if param is None:
        text = error.format_message()
        text = f"{text[:1].lower()}{text[1:].rstrip('.')}; see `python -m benchmark {verb or 'VERB'} --help`"
    else:
        name = max(param.opts, key=len) if param.param_type_name == "option" else (param.metavar or param.name).upper()
        about = f": {param.help}" if getattr(param, "help", None) else ""
        missing = hasattr(error, "param_type")
        text = f"{verb} needs {name}{about}" if missing else f"{name}: {error.message.rstrip('.')}"
    text = " ".join(text.split())
    return UserError(text if len(text) <= LONGEST else f"{text[:LONGEST]}…")
