# Raw data sets to scored models. snakemake --cores 8 encode stops when every store is finished.
#
# In:   the data sets of config/config.yaml, or of --configfile mine.yaml in their place
# Out:  results/DATASET/{manifest.parquet, latents.zarr, runs/LOSS-sSEED, report.html},
#       results/DATASET/studies/STUDY
import re
import sys
from pathlib import Path
from shlex import quote

from snakemake.utils import min_version, validate

min_version("9.0")

# Data sets given on the command line replace the default ones; Snakemake alone would add them.
given = config.pop("datasets", None)


configfile: Path(workflow.basedir) / "config" / "config.yaml"


if given is not None:
    config["datasets"] = given
validate(config, "config/schema.yaml")

# gms-lmm lies beside the Python that runs Snakemake, also where no environment is activated.
beside = quote(str(Path(sys.executable).parent))
shell.prefix(f"set -euo pipefail; PATH={beside}:$PATH; ")


wildcard_constraints:
    dataset="|".join(map(re.escape, config["datasets"])),
    loss="lm|seg|compound",
    seed=r"\d+",
    split="train|val|test",
    study="[^/]+",


include: "pipeline/rules/settings.smk"
include: "pipeline/rules/phantoms.smk"
include: "pipeline/rules/ingest.smk"
include: "pipeline/rules/encode.smk"
include: "pipeline/rules/train.smk"
include: "pipeline/rules/evaluate.smk"
include: "pipeline/rules/report.smk"
include: "pipeline/rules/study.smk"


localrules:
    encode,
    train,
    evaluate,
    report,
    study,
    all,


RUNS = expand(
    "results/{dataset}/runs/{loss}-s{seed}",
    dataset=config["datasets"],
    loss=config["train"]["loss"],
    seed=config["train"]["seeds"],
)


rule encode:
    """Every data set as a finished latent store."""
    input:
        expand(
            "results/{dataset}/latents.zarr/receipt.json", dataset=config["datasets"]
        ),


rule train:
    """Every run of every data set."""
    input:
        expand("{run}/summary.json", run=RUNS),


rule evaluate:
    """Every run scored on its data set's test split."""
    input:
        expand("{run}/evaluate/latents-test{seen}.json", run=RUNS, seen=SEEN),


rule report:
    """A page for every data set."""
    input:
        expand("results/{dataset}/report.html", dataset=config["datasets"]),


rule study:
    """Every study that the configuration names, on every data set."""
    input:
        expand(
            "results/{dataset}/studies/{study}.json",
            dataset=config["datasets"],
            study=GRIDS,
        ),


rule all:
    """Everything but studies: every store encoded, every run trained and scored, a page for each data set."""
    default_target: True
    input:
        rules.evaluate.input,
        rules.report.input,
