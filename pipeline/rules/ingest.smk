# In:   the images and masks of a data set, as published
# Out:  manifest.parquet: one row a sample, checked, hashed and split


rule ingest:
    """Check every image and mask of a data set and give every sample a split."""
    input:
        raw=raw_files,
        split_file=split_file,
    output:
        manifest="results/{dataset}/manifest.parquet",
    log:
        "logs/{dataset}/ingest.log",
    benchmark:
        "results/{dataset}/benchmarks/ingest.tsv"
    conda:
        environment
    threads: 4
    params:
        root=raw_root,
        options=ingest_options,
    shell:
        "gms-lmm ingest {params.root:q} {params.options:q} --name {wildcards.dataset:q}"
        " --output {output.manifest:q} 2>&1 | tee {log:q}"
