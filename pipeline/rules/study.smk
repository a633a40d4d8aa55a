# In:   a grid of settings, and the store of a data set
# Out:  studies/STUDY.json, the answer in numbers; beside it the study's folder: its runs, tables,
#       and report.html. They outlive a run that failed, as the next call goes on with them.


rule run_study:
    """Train, score and compare every setting of a grid; what is finished is left as it is."""
    input:
        grid=grid_file,
        receipt="results/{dataset}/latents.zarr/receipt.json",
    output:
        answer="results/{dataset}/studies/{study}.json",
    log:
        "logs/{dataset}/study-{study}.log",
    benchmark:
        "results/{dataset}/benchmarks/study-{study}.tsv"
    conda:
        environment
    threads: 16
    params:
        store=store_folder,
        out=study_folder,
    shell:
        "gms-lmm study {input.grid:q} --latents {params.store:q} --out {params.out:q}"
        " --jobs {threads} --json 2>&1 > {output.answer:q} | tee {log:q}"
