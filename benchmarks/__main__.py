"""``python -m benchmarks NAME``: one benchmark of the suite."""

from jsonargparse import CLI

from benchmarks import gammas

if __name__ == "__main__":
    CLI({"gammas": gammas.run}, description="Timings, contestants interleaved in one process.")
