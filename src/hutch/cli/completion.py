"""`hutch completion`: scripts that make a shell complete commands, options and sandbox names."""

import click

from hutch.cli.app import App
from hutch.cli.options import command, pass_app
from hutch.cli.render import print_json

_WHERE = {
    "bash": 'eval "$(hutch completion bash)"  # in ~/.bashrc',
    "zsh": 'eval "$(hutch completion zsh)"  # in ~/.zshrc',
    "fish": "hutch completion fish | source  # in ~/.config/fish/config.fish",
}


@command("completion", examples=list(_WHERE.values()))
@click.argument("shell", type=click.Choice(sorted(_WHERE)))
@pass_app
def completion(app: App, /, shell: str) -> None:
    """Print the completion script of a shell."""
    from click.shell_completion import get_completion_class

    from hutch.cli.main import COMPLETE_VARIABLE
    from hutch.cli.tree import cli

    cls = get_completion_class(shell)
    assert cls is not None
    script = cls(cli, {}, "hutch", COMPLETE_VARIABLE).source()
    if app.json:
        print_json({"shell": shell, "script": script})
    else:
        click.echo(script)
