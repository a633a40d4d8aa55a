# In:   a finished store, known by its receipt
# Out:  a run: run.json, log.jsonl, best.safetensors, last.safetensors, summary.json


rule train_run:
    """Train one LMM, or go on with it; start anew when settings or store are others."""
    input:
        receipt="results/{dataset}/latents.zarr/receipt.json",
    output:
        summary="results/{dataset}/runs/{loss}-s{seed}/summary.json",
    log:
        "logs/{dataset}/train-{loss}-s{seed}.log",
    benchmark:
        "results/{dataset}/benchmarks/train-{loss}-s{seed}.tsv"
    conda:
        environment
    threads: 4
    params:
        store=store_folder,
        run=run_folder,
        options=flags(config["train"], without=("loss", "seeds")),
    shell:
        "gms-lmm train --latents {params.store:q} --out {params.run:q} --resume --overwrite"
        " --loss {wildcards.loss} --seed {wildcards.seed} {params.options:q}"
        " 2>&1 | tee {log:q}"
