# In:   a finished run and the store it was trained on
# Out:  evaluate/latents-SPLIT.json, the summary, and .parquet, the scores of each image;
#       latents-SPLIT-seen where the configuration has test choose the epoch

SCORES = f"results/{{dataset}}/runs/{{loss}}-s{{seed}}/evaluate/latents-{{split}}{SEEN}"


rule evaluate_run:
    """Score one run on one split of its data set."""
    input:
        summary="results/{dataset}/runs/{loss}-s{seed}/summary.json",
        receipt="results/{dataset}/latents.zarr/receipt.json",
    output:
        summary=f"{SCORES}.json",
        per_image=f"{SCORES}.parquet",
    log:
        "logs/{dataset}/evaluate-{loss}-s{seed}-{split}.log",
    benchmark:
        "results/{dataset}/benchmarks/evaluate-{loss}-s{seed}-{split}.tsv"
    conda:
        environment
    threads: 4
    params:
        store=store_folder,
        run=run_folder,
        allow=["--allow-seen"] if SEEN else [],
    shell:
        "gms-lmm evaluate --run {params.run:q} --latents {params.store:q}"
        " --split {wildcards.split} {params.allow:q} --ceiling 2>&1 | tee {log:q}"
