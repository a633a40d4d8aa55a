"""The gms-lmm command: subcommands in workflow order, and errors turned into exit codes."""

import importlib
import sys
from typing import Any, NoReturn

import click

from pipeline.errors import ArtefactError, GmsLmmError
from pipeline.memory import keep_freed_memory
from pipeline.places import refusal, require_no_credentials

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
        urls = [word for word in ctx.args if "://" in word]  # to be named; invoke empties args
        try:
            for url in urls:
                require_no_credentials(url)
            return super().invoke(ctx)
        except GmsLmmError as error:
            _exit(error)
        except Exception as error:
            # An object store may fail in any request; what concerns images is an InputError by now.
            if refused := refusal(error, ", ".join(urls) or "object store", ArtefactError):
                _exit(refused)
            raise


def _exit(error: GmsLmmError) -> NoReturn:
    click.echo(f"error: {error}", err=True)
    sys.exit(error.exit_code)


@click.group(
    cls=WorkflowGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="gms-lmm")
def main() -> None:
    """Encode a medical data set once, train every latent mapping model from it."""
    keep_freed_memory()
