# In:   manifest.parquet and the images and masks that it names
# Out:  latents.zarr, finished by its receipt.json
#
# The output is the receipt and not the store: Snakemake empties an output folder before it runs
# a job again, and deletes it when the job fails. The store has to outlive both, to be resumed.
# So a share's output is a marker, which goes once the store is finished.

PARTITIONS = config["encode"].get("partitions", 1)


scattergather:
    share=PARTITIONS,


rule encode_share:
    """Encode one share of a store's blocks, beside the jobs that encode the others."""
    input:
        manifest="results/{dataset}/manifest.parquet",
    output:
        done=temp("results/{dataset}/shares/{scatteritem}"),
    log:
        "logs/{dataset}/encode-{scatteritem}.log",
    benchmark:
        "results/{dataset}/benchmarks/encode-{scatteritem}.tsv"
    conda:
        environment
    threads: 8
    params:
        store=store_folder,
        share=share_number,
        options=encode_options,
    shell:
        "gms-lmm encode {input.manifest:q} {params.store:q} {params.options:q}"
        " --partition {params.share} 2>&1 | tee {log:q} && touch {output.done:q}"


rule encode_store:
    """Encode every view of every sample that the store does not hold yet, and finish it."""
    input:
        manifest="results/{dataset}/manifest.parquet",
        shares=(
            gather.share("results/{{dataset}}/shares/{scatteritem}")
            if PARTITIONS > 1
            else []
        ),
    output:
        receipt="results/{dataset}/latents.zarr/receipt.json",
    log:
        "logs/{dataset}/encode.log",
    benchmark:
        "results/{dataset}/benchmarks/encode.tsv"
    conda:
        environment
    threads: 8
    params:
        store=store_folder,
        options=encode_options,
    shell:
        "gms-lmm encode {input.manifest:q} {params.store:q} {params.options:q}"
        " 2>&1 | tee {log:q}"
