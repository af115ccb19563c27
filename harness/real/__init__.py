"""Real benchmarks: what is on the hub, fetching it, looking it over, and making a suite of it.

    catalogue.py    the repositories: tables, archives, where videos go, what is known of counts and bytes
    tables.py       a benchmark's table as it is on the hub, checked against the registry
    videos.py       its videos: which are there, which can be read
    archives.py     archives unpacked, once and never outside their folder
    fetch.py        download and unpack
    suite.py        a data root as a suite, in the layout that the mini suites have
    checkpoints.py  is a saved model complete
    checks.py       the machine: versions, GPU, memory, disk, FFmpeg, hub
    doctor.py       all of these looked over; what is missing, and the command that mends it
    verb.py         what the command line calls

A data root is a folder DATA with the layout of a suite:

    DATA/hub/<org>/<name>/     a dataset's repository as it is on the hub
    DATA/home/<folder>/        its videos, where lmms-eval's packaged tasks look for them (HF_HOME is DATA/home)
    DATA/models/<org>/<name>/  checkpoints
    DATA/suites/               suites made of these
    DATA/expected.json         if there: how many questions and videos each benchmark has here, for a data root that
                               is meant to hold fewer than the published ones
"""
