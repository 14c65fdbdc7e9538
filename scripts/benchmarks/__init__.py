"""Measures fsinbox beside what a user would pick instead, and beside the bare system calls. Run by
scripts/bench.

    queues.py      the contenders, each with the same few methods: ours, bare SQLite, the libraries, a draft
                   on SQLAlchemy
    bare.py        the limit: the system calls that fsinbox makes, in bare loops, in Python and (bare.c) in C
    processes.py   runs a contender in one process or many, for a slice of time, and brings back what they
                   measured
    bench.py       how much is measured; rounds in which contenders alternate
    cases.py       the cases in which queues are compared, and what each is to reach
    commands.py    those in which fsinbox's commands are measured (consuming.py, handlers.py: what runs there)
    disks.py       a fresh ext4 for root
    results.py     figures, ratios, targets: what is kept of a run
    report.py      tables, plots, and the pages that show them

Everything of one group is run in one go, interleaved: each round runs every contender once, in another order,
and a ratio is taken within a round. So a machine that slows down meanwhile slows all of them, and only ratios
are quoted.
"""
