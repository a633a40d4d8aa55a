# In:   the scored runs of a data set
# Out:  report.html, one page that needs no other file


rule report_dataset:
    """Put scores, curves and pictures of every run of a data set on one page."""
    input:
        scores=expand(
            "results/{{dataset}}/runs/{loss}-s{seed}/evaluate/latents-test{seen}.json",
            seen=SEEN,
            loss=config["train"]["loss"],
            seed=config["train"]["seeds"],
        ),
    output:
        page="results/{dataset}/report.html",
    log:
        "logs/{dataset}/report.log",
    benchmark:
        "results/{dataset}/benchmarks/report.tsv"
    conda:
        environment
    threads: 4
    params:
        runs=expand(
            "results/{{dataset}}/runs/{loss}-s{seed}",
            loss=config["train"]["loss"],
            seed=config["train"]["seeds"],
        ),
    shell:
        "gms-lmm report {params.runs:q} --output {output.page:q} 2>&1 | tee {log:q}"
