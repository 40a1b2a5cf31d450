"""The `moonshard` command. Each subcommand lives in a module of its own; heavy imports happen inside them."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

import moonshard
from moonshard.errors import CheckpointError, ConfigError, MoonshardError, RequestError
from moonshard_cluster.access import Access, give_access
from moonshard_cluster.commands import (
    ask,
    bench,
    chaos,
    demo_model,
    drain,
    experts,
    inspect,
    placement,
    plan,
    restart,
    status,
    trace,
    up,
)

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


def _file(option: str, text: str) -> Any:
    """A root option, which the environment may give as well: it applies to every subcommand that asks a router."""
    return typer.Option(option, envvar="MOONSHARD" + option.replace("-", "_").replace("__", "_").upper(), help=text)


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="and exit")] = False,
    tls_ca: Annotated[Path | None, _file("--tls-ca", "PEM of the authority to trust; turns TLS on")] = None,
    tls_cert: Annotated[Path | None, _file("--tls-cert", "PEM certificate to bring, for mutual TLS")] = None,
    tls_key: Annotated[Path | None, _file("--tls-key", "its private key")] = None,
    api_key_file: Annotated[Path | None, _file("--api-key-file", "file with the API key to bring")] = None,
    operator_key_file: Annotated[Path | None, _file("--operator-key-file", "file with the operator's key")] = None,
) -> None:
    give_access(Access.of_files(tls_ca, tls_cert, tls_key, api_key_file, operator_key_file))


app.command("up")(up.up)
app.command("chat")(ask.chat)
app.command("generate")(ask.generate)
app.command("drain")(drain.drain)
app.command("restart")(restart.restart)
app.command("status")(status.status)
app.command("experts")(experts.experts)
app.command("trace")(trace.trace)
app.add_typer(placement.app, name="placement")
app.command("chaos")(chaos.chaos)
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
