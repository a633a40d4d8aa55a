# In:   nothing but a seed
# Out:  a synthetic data set in BUSI's layout, for data sets configured with phantoms, not root


checkpoint phantoms:
    """Draw synthetic breast-ultrasound images and the masks of their lesions."""
    output:
        raw=directory("results/{dataset}/raw"),
    log:
        "logs/{dataset}/phantoms.log",
    benchmark:
        "results/{dataset}/benchmarks/phantoms.tsv"
    conda:
        environment
    threads: 1
    params:
        options=phantom_options,
    shell:
        "gms-lmm phantoms {output.raw:q} {params.options:q} 2>&1 | tee {log:q}"
