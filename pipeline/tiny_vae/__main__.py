"""`python -m pipeline.tiny_vae`: train the embedded tokenizer again, or measure some.

python -m pipeline.tiny_vae train --busi DIR --split FILE --photos DIR --taesd DIR --work DIR
python -m pipeline.tiny_vae measure --busi DIR --split FILE --tokenizer tiny-vae
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny

from pipeline.tiny_vae.pictures import Pictures
from pipeline.tiny_vae.recipe import Recipe, export, scaling_factor_of, train
from pipeline.tiny_vae.scores import read_pairs, score_extremes, score_fidelity, score_speed
from pipeline.tokenizer import Tokenizer, load_tokenizer
from pipeline.weights import TINY_VAE


def run_training(chosen: argparse.Namespace) -> None:
    """Train by the command line's words and export what came out."""
    recipe = Recipe(steps=chosen.steps, seed=chosen.seed)
    teacher = AutoencoderTiny.from_pretrained(chosen.taesd).eval().requires_grad_(False)
    pictures = Pictures(chosen.busi, chosen.split, chosen.photos, recipe.seed)
    model = train(pictures, teacher, recipe, chosen.work, log_line)
    export(model, scaling_factor_of(model, pictures), chosen.out)


def run_measuring(chosen: argparse.Namespace) -> None:
    """Print the model card's table: a row a score, a column a tokenizer."""
    torch.set_num_threads(chosen.threads)
    tokenizers = [load_tokenizer(name) for name in chosen.tokenizer]
    columns = [{"parameters": count_parameters(tokenizer)} for tokenizer in tokenizers]
    for name, split_file in (("busi", chosen.split), ("glas", None), ("ham10000", None)):
        root = getattr(chosen, name)
        if root is not None:
            pairs = read_pairs(name, root, split_file, "test", chosen.limit)
            for scores, tokenizer in zip(columns, tokenizers, strict=True):
                scores |= score_fidelity(tokenizer, name, pairs)
    for scores, tokenizer in zip(columns, tokenizers, strict=True):
        scores |= score_extremes(tokenizer)
    for scores, speed in zip(columns, score_speed(tokenizers), strict=True):
        scores |= speed
    sys.stdout.write("| | " + " | ".join(chosen.tokenizer) + " |\n")
    sys.stdout.write("|---|" + "---|" * len(columns) + "\n")
    for row in columns[0]:
        values = " | ".join(f"{scores[row]:.6g}" for scores in columns)
        sys.stdout.write(f"| {row} | {values} |\n")


def count_parameters(tokenizer: Tokenizer) -> float:
    """Numbers in all weights of a tokenizer."""
    return float(sum(weight.numel() for weight in tokenizer.autoencoder.parameters()))


def log_line(values: dict[str, Any]) -> None:
    """One line of JSON on stderr."""
    sys.stderr.write(json.dumps(values) + "\n")


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line of `python -m pipeline.tiny_vae`."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.tiny_vae")
    verbs = parser.add_subparsers(required=True)
    trainer = verbs.add_parser("train", help="train the tiny VAE; run again to go on")
    trainer.set_defaults(run=run_training)
    trainer.add_argument("--photos", type=Path, required=True, help="skimage/data of its wheel")
    trainer.add_argument("--taesd", type=Path, required=True, help="folder of the teacher")
    trainer.add_argument("--work", type=Path, required=True, help="folder for the training state")
    trainer.add_argument("--out", type=Path, default=TINY_VAE, help="folder for the trained model")
    trainer.add_argument("--steps", type=int, default=Recipe.steps, help="steps in all")
    trainer.add_argument("--seed", type=int, default=Recipe.seed, help="seed of everything drawn")
    measurer = verbs.add_parser("measure", help="print the table of the model card")
    measurer.set_defaults(run=run_measuring)
    measurer.add_argument("--tokenizer", nargs="+", default=["tiny-vae"], help="names or folders")
    measurer.add_argument("--glas", type=Path, help="folder of GlaS")
    measurer.add_argument("--ham10000", type=Path, help="folder of HAM10000")
    measurer.add_argument("--limit", type=int, default=200, help="images of each set at most")
    measurer.add_argument("--threads", type=int, default=2, help="CPU threads")
    for verb in (trainer, measurer):
        verb.add_argument("--busi", type=Path, required=True, help="folder of BUSI's archive")
        verb.add_argument("--split", type=Path, required=True, help="GMS's split of BUSI")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    words = parse(sys.argv[1:])
    words.run(words)
