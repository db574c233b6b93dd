"""`hutch doctor`: checks everything that Hutch needs; works without a daemon."""

import click

from hutch.cli.app import App
from hutch.cli.escape import escape_lines
from hutch.cli.options import command, pass_app
from hutch.cli.render import print_json
from hutch.cli.terminal import no_color

_MARKS = {"ok": ("ok  ", "green"), "warn": ("warn", "yellow"), "fail": ("FAIL", "red")}


@command("doctor", examples=["hutch doctor", "hutch doctor --json"])
@pass_app
def doctor(app: App) -> int:
    """Check what Hutch needs and say how to fix what is missing.

    Ends with the exit code 1 when something that is needed is missing.
    """
    from hutch.service.doctor import run_checks

    checks = run_checks(app.settings)
    failed = any(check.status == "fail" for check in checks)
    if app.json:
        print_json(checks)
        return int(failed)
    for check in checks:
        mark, color = _MARKS.get(check.status, (check.status, "white"))
        mark = mark if no_color() else click.style(mark, fg=color, bold=True)
        click.echo(f"{mark}  {escape_lines(check.name)}: {escape_lines(check.message)}")
        if check.fix and check.status != "ok":
            click.echo(f"      fix: {escape_lines(check.fix)}")
    return int(failed)
