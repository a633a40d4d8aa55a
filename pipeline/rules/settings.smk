# What the configuration says of a data set or a run, as files and as words for gms-lmm.
import os
from pathlib import Path

# How the scores of images that chose the epoch are marked: those of test, if test is to choose it.
SEEN = "-seen" if config["train"].get("select_on") == "test" else ""

# Studies by name: that of their grid's file.
GRIDS = {Path(said).stem: said for said in config["studies"]}


def flags(settings, without=()):
    """Settings as options of the command line: val_every: 5 becomes --val-every 5."""
    words = []
    for key, value in settings.items():
        option = f"--{key.replace('_', '-')}"
        if key in without or value is False:
            continue
        words += [option] if value is True else [option, str(value)]
    return words


def raw_root(wildcards):
    """Folder of a data set as published, or that its phantoms are drawn into."""
    return config["datasets"][wildcards.dataset].get(
        "root", f"results/{wildcards.dataset}/raw"
    )


def raw_files(wildcards):
    """Every file of a data set, so that an edited, added or removed one is noticed."""
    if "phantoms" in config["datasets"][wildcards.dataset]:
        checkpoints.phantoms.get(dataset=wildcards.dataset)  # first, draw them
    root = raw_root(wildcards)
    files = [
        os.path.join(folder, name)
        for folder, _, names in os.walk(root, followlinks=True)
        for name in names
        if not name.startswith(".")
    ]
    return sorted(files) or root


def split_file(wildcards):
    """The file with the published split of a data set, when it has one."""
    return config["datasets"][wildcards.dataset].get("split_file", [])


def phantom_options(wildcards):
    """How many phantoms, of which seed."""
    return flags(config["datasets"][wildcards.dataset]["phantoms"])


def ingest_options(wildcards):
    """Layout, split and whatever else the configuration says of a data set."""
    settings = config["datasets"][wildcards.dataset]
    return flags(settings, without=("root", "phantoms"))


def store_folder(wildcards):
    """The store of a data set."""
    return f"results/{wildcards.dataset}/latents.zarr"


def encode_options(wildcards):
    """Views, tokenizer and whatever else the configuration says of a store's cells."""
    return flags(config["encode"], without=("partitions",))


def share_number(wildcards):
    """Which share of how many: 2-of-4 becomes 2/4."""
    return wildcards.scatteritem.replace("-of-", "/")


def run_folder(wildcards):
    """The run of a loss and a seed on a data set."""
    return f"results/{wildcards.dataset}/runs/{wildcards.loss}-s{wildcards.seed}"


def grid_file(wildcards):
    """The grid of a study: one of those in config/studies, or a file of its own."""
    said = GRIDS[wildcards.study]
    if said.endswith(".yaml"):
        return said
    return str(Path(workflow.basedir) / "config" / "studies" / f"{said}.yaml")


def study_folder(wildcards):
    """The folder of a study on a data set."""
    return f"results/{wildcards.dataset}/studies/{wildcards.study}"


def environment(wildcards):
    """The conda environment that has gms-lmm, or None where it is beside Snakemake."""
    return config["conda"]
