# In:   manifest.parquet and the images and masks that it names
# Out:  latents.zarr, finished by its receipt.json
#
# The output is the receipt and not the store: Snakemake empties an output folder before it runs
# a job again, and deletes it when the job fails. The store has to outlive both, to be resumed.


rule encode_store:
    """Encode every view of every sample that the store does not hold yet."""
    input:
        manifest="results/{dataset}/manifest.parquet",
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
        options=flags(config["encode"]),
    shell:
        "gms-lmm encode {input.manifest:q} {params.store:q} {params.options:q}"
        " 2>&1 | tee {log:q}"
