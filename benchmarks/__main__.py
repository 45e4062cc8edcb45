"""``python -m benchmarks NAME``: one benchmark of the suite."""

from jsonargparse import auto_cli

from benchmarks import callbacks, evaluate, gammas

if __name__ == "__main__":
    auto_cli(
        {"callbacks": callbacks.run, "evaluate": evaluate.run, "gammas": gammas.run},
        description="Timings, contestants interleaved in one process.",
    )
