"""The tree of all commands, in click: a table finds a command's module when it is asked for.

No command's logic belongs here. main.py calls `run_tree` for what it has not read itself.
"""

from collections.abc import Sequence

import click

from hutch.cli.app import App
from hutch.cli.grammar import Verb
from hutch.cli.main import COMPLETE_VARIABLE
from hutch.cli.options import json_option, verb_command
from hutch.errors import HutchError, error

SECTIONS: dict[str, dict[str, str]] = {
    "Sandboxes": {
        "run": "run:RUN",
        "create": "sandboxes:create",
        "start": "sandboxes:start",
        "stop": "sandboxes:stop",
        "restart": "sandboxes:restart",
        "pause": "sandboxes:pause",
        "park": "sandboxes:park",
        "resume": "sandboxes:resume",
        "kill": "sandboxes:kill",
        "rm": "sandboxes:remove",
        "ps": "listing:ps",
        "inspect": "listing:inspect",
        "rename": "sandboxes:rename",
        "wait": "sandboxes:wait",
        "port": "ports:port",
        "network": "networks:network",
        "policy": "policies:policy",
        "stats": "stats:stats",
        "top": "stats:top",
    },
    "Snapshots and forks": {
        "snapshot": "snapshots:snapshot",
        "restore": "snapshots:restore",
        "fork": "snapshots:fork",
        "checkpoint": "checkpoints:checkpoint",
        "checkpoints": "checkpoints:list_checkpoints",
        "undo": "checkpoints:undo",
        "diff": "checkpoints:diff",
    },
    "Programs": {
        "exec": "exec:EXEC",
        "shell": "shell:shell",
        "attach": "shell:attach",
        "logs": "logs:logs",
    },
    "Files": {
        "cp": "files:copy",
        "upload": "files:upload",
        "download": "files:download",
    },
    "Images, kernels and templates": {
        "image": "images:image",
        "kernel": "kernels:kernel",
        "template": "templates:template",
        "pool": "pools:pool",
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
    "unpause": "sandboxes:resume",
    "connect": "shell:shell",
    "images": "images:list_images",
    "pull": "images:pull",
    "build": "images:build",
    "rmi": "images:remove",
    "kernels": "kernels:list_kernels",
    "templates": "templates:list_templates",
    "snapshots": "snapshots:list_snapshots",
}


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
        found = getattr(__import__(f"hutch.cli.{module}", fromlist=[attribute]), attribute)
        if isinstance(found, Verb):
            return verb_command(found)
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
                rows.append((name, found.get_short_help_str(80)))
            with formatter.section(title):
                formatter.write_dl(rows)


EPILOG = """\b
Exit codes: `run` and `exec` end with their program's, or 128+n for signal n.
124: --timeout of exec. 125: Hutch failed. 126, 127: cannot be run, not found.
Failures: `hutch: MESSAGE (CODE)` and `hint: ...` on stderr; with --json,
{"error": {"code", "message", "hint", "details"}} on stdout.

`hutch COMMAND --help` tells more. The daemon starts by itself on first use.
"""


def _use_home(ctx: click.Context, _param: click.Parameter, value: str | None) -> None:
    if value is not None:
        ctx.ensure_object(App).flags["home"] = value


cli = LazyGroup(
    "hutch",
    help="Run OCI images as virtual machines of their own.",
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    params=[
        click.Option(
            ["--home"],
            metavar="DIR",
            expose_value=False,
            is_eager=True,
            callback=_use_home,
            help="Directory of all data (HUTCH_HOME).",
        ),
        json_option("Print JSON, failures too; may stand after the command as well."),
    ],
)


def run_tree(app: App, arguments: Sequence[str]) -> int:
    """Run a command line and return its exit code.

    Raises HutchError, for mistakes in the command line too (bad_request), and KeyboardInterrupt.
    """
    try:
        with cli.make_context("hutch", list(arguments), obj=app) as ctx:
            code = cli.invoke(ctx)
        return code if isinstance(code, int) else 0
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.Abort:
        raise KeyboardInterrupt from None
    except click.exceptions.NoArgsIsHelpError as shown:
        click.echo(shown.format_message())
        return 0
    except click.ClickException as cause:
        # --json may stand after the mistake, where the parser has not come.
        before = arguments[: list(arguments).index("--")] if "--" in arguments else arguments
        app.json = app.json or "--json" in before
        raise usage_error(cause) from None


def usage_error(cause: click.ClickException) -> HutchError:
    """Return a mistake in the command line as an error of the table."""
    context = getattr(cause, "ctx", None)
    where = context.command_path if context is not None else "hutch"
    message = cause.format_message().rstrip(".")
    message = message[:1].lower() + message[1:]
    return error("bad_request", message, hint=f"see `{where} --help`")


def complete(instruction: str) -> int:
    """Answer a shell that completes a command line."""
    from click.shell_completion import shell_complete

    return shell_complete(cli, {}, "hutch", COMPLETE_VARIABLE, instruction)
