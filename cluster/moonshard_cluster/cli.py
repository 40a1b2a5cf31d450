"""The `moonshard` command. Each subcommand lives in a module of its own; heavy imports happen inside them."""

import sys
from typing import Annotated

import typer
from rich.console import Console

import moonshard
from moonshard.errors import CheckpointError, ConfigError, MoonshardError, RequestError
from moonshard_cluster.commands import ask, bench, demo_model, experts, inspect, placement, plan, status, up

app = typer.Typer(
    name="moonshard",
    help="Serve Kimi K2.5 with its experts in processes of their own.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"moonshard {moonshard.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="and exit")] = False,
) -> None:
    pass


app.command("up")(up.up)
app.command("chat")(ask.chat)
app.command("generate")(ask.generate)
app.command("status")(status.status)
app.command("experts")(experts.experts)
app.add_typer(placement.app, name="placement")
app.command("inspect")(inspect.inspect)
app.command("plan")(plan.plan)
app.command("bench")(bench.bench)
app.command("demo-model")(demo_model.demo_model)

# As in sysexits and most command lines: 2 is the user's to mend, 1 is not.
USER_ERRORS = (ConfigError, CheckpointError, RequestError)


def main() -> None:
    """Entry point: refusals become one line on standard error and an exit status."""
    try:
        app()
    except MoonshardError as error:
        Console(stderr=True, soft_wrap=True).print(f"error: {error}", style="red", markup=False, highlight=False)
        sys.exit(2 if isinstance(error, USER_ERRORS) else 1)


if __name__ == "__main__":
    main()
