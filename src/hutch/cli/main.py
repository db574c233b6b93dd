"""The entry point: finds a command's module on demand, runs it, turns errors into exit codes.

The only place of the CLI that exits. A table maps each command to its module, so that
`hutch exec` imports what `exec` needs and nothing else. No command's logic belongs here.
"""

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from hutch.cli.app import App
from hutch.cli.failures import EXIT_BROKEN_PIPE, EXIT_INTERRUPTED, report_failure, usage_error
from hutch.errors import HutchError, error

SECTIONS: dict[str, dict[str, str]] = {
    "Sandboxes": {
        "run": "run:run",
        "create": "sandboxes:create",
        "start": "sandboxes:start",
        "stop": "sandboxes:stop",
        "restart": "sandboxes:restart",
        "kill": "sandboxes:kill",
        "rm": "sandboxes:remove",
        "ps": "listing:ps",
        "inspect": "listing:inspect",
        "rename": "sandboxes:rename",
        "wait": "sandboxes:wait",
        "stats": "stats:stats",
        "top": "stats:top",
    },
    "Programs": {
        "exec": "exec:exec_command",
        "shell": "exec:shell",
        "attach": "exec:attach",
        "logs": "logs:logs",
    },
    "Files": {
        "cp": "files:copy",
        "upload": "files:upload",
        "download": "files:download",
    },
    "Images and kernels": {
        "image": "images:image",
        "kernel": "kernels:kernel",
    },
    "Hutch itself": {
        "doctor": "doctor:doctor",
        "daemon": "daemon:daemon",
        "config": "config:config",
        "events": "events:events",
        "completion": "completion:completion",
        "version": "daemon:version",
    },
}

ALIASES: dict[str, str] = {
    "ls": "listing:ps",
    "list": "listing:ps",
    "delete": "sandboxes:remove",
    "remove": "sandboxes:remove",
    "connect": "exec:shell",
    "images": "images:list_images",
    "pull": "images:pull",
    "build": "images:build",
    "rmi": "images:remove",
    "kernels": "kernels:list_kernels",
}

COMPLETE_VARIABLE = "_HUTCH_COMPLETE"


class LazyGroup(click.Group):
    """The top of the command tree, which imports a command's module when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, without aliases, in the order of the help."""
        return [name for section in SECTIONS.values() for name in section]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command by its name or alias, importing its module."""
        place = ALIASES.get(cmd_name)
        for section in SECTIONS.values():
            place = section.get(cmd_name, place)
        if place is None:
            return None
        module, _, attribute = place.partition(":")
        # __import__ with a fromlist: importlib would be one more import on the hot path.
        found = getattr(__import__(f"hutch.cli.{module}", fromlist=[attribute]), attribute)
        assert isinstance(found, click.Command)
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command of an argument list. Raises InvalidInput with the closest name."""
        if self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            from difflib import get_close_matches

            close = get_close_matches(args[0], [*self.list_commands(ctx), *ALIASES], 1)
            hint = f"did you mean `hutch {close[0]}`?" if close else "see `hutch --help`"
            raise error("bad_request", f"there is no command {args[0]!r}", hint=hint)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands into the help, under the headings of `SECTIONS`."""
        for title, section in SECTIONS.items():
            rows = []
            for name in section:
                found = self.get_command(ctx, name)
                assert found is not None
                rows.append((name, found.get_short_help_str(70)))
            with formatter.section(title):
                formatter.write_dl(rows)


def _use_json(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        ctx.ensure_object(App).json = True


def _use_setting(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if value is not None:
        assert param.name is not None
        ctx.ensure_object(App).flags[param.name] = value


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="`hutch COMMAND --help` tells more. The daemon starts by itself on first use.",
)
@click.option(
    "--home",
    metavar="DIR",
    expose_value=False,
    is_eager=True,
    callback=_use_setting,
    help="Directory of all data (HUTCH_HOME).",
)
@click.option(
    "--json",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_use_json,
    help="Print JSON, errors too; works after the command as well.",
)
def cli() -> None:
    """Run OCI images as virtual machines of their own."""


def execute(arguments: Sequence[str]) -> int:
    """Run one command line (without the program's name) and return its exit code.

    Every failure is reported here and nowhere else.
    """
    app = App()
    try:
        with cli.make_context("hutch", list(arguments), obj=app) as ctx:
            code = cli.invoke(ctx)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.exceptions.Exit as done:
        sys.stdout.flush()
        return done.exit_code
    except BrokenPipeError:
        _abandon_stdout()
        return EXIT_BROKEN_PIPE
    except (KeyboardInterrupt, click.Abort):
        return EXIT_INTERRUPTED
    except click.exceptions.NoArgsIsHelpError as shown:
        click.echo(shown.format_message(), err=True)
        return HutchError.exit_code
    except click.ClickException as cause:
        # --json may stand after the mistake, where the parser has not come.
        before = arguments[: list(arguments).index("--")] if "--" in arguments else arguments
        app.json = app.json or "--json" in before
        return report_failure(usage_error(cause), json_output=app.json)
    except HutchError as failure:
        return report_failure(failure, json_output=app.json)
    except OSError as cause:
        return report_failure(
            error("bad_path", f"{cause.filename or 'the system'}: {cause.strerror or cause}"),
            json_output=app.json,
        )


def _abandon_stdout() -> None:
    # What is buffered for a closed pipe would fail again, loudly, when the interpreter ends.
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def main() -> NoReturn:
    """Run `hutch` with the process's own arguments and exit with its code."""
    if COMPLETE_VARIABLE in os.environ:
        from click.shell_completion import shell_complete

        sys.exit(shell_complete(cli, {}, "hutch", COMPLETE_VARIABLE, os.environ[COMPLETE_VARIABLE]))
    try:
        code = execute(sys.argv[1:])
    except BrokenPipeError:
        _abandon_stdout()
        code = EXIT_BROKEN_PIPE
    sys.exit(code)
