"""The gms-lmm command: subcommands in workflow order, and errors turned into exit codes."""

import importlib
import sys
from typing import Any

import click

from pipeline.errors import GmsLmmError

# Workflow order. Each command lives in cli/<module>.py under the command's name, and is imported
# only when it is asked for: `gms-lmm --help` must not wait for torch.
COMMANDS = [
    "datasets",
    "phantoms",
    "ingest",
    "preview",
    "encode",
    "inspect",
    "verify",
    "diff",
    "prune",
    "copy",
    "ceiling",
    "distill",
    "train",
    "baseline",
    "import-checkpoint",
    "evaluate",
    "predict",
    "report",
    "study",
    "bench",
    "doctor",
]


class WorkflowGroup(click.Group):
    """Lists commands in workflow order, imports a command's module when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return COMMANDS

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module = importlib.import_module(f"cli.{name.replace('-', '_')}")
        command = module.command
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except GmsLmmError as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(error.exit_code)


@click.group(
    cls=WorkflowGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="gms-lmm")
def main() -> None:
    """Encode a medical data set once, train every latent mapping model from it."""
