"""``python -m benchmarks NAME``: one benchmark of the suite."""

from jsonargparse import auto_cli

from benchmarks import (
    callbacks,
    channels_last,
    compiled,
    data,
    evaluate,
    gammas,
    held_memory,
    parts,
    scale,
    step,
)

if __name__ == "__main__":
    auto_cli(
        {
            "callbacks": callbacks.run,
            "channels_last": channels_last.run,
            "compiled": compiled.run,
            "data": data.run,
            "evaluate": evaluate.run,
            "gammas": gammas.run,
            "held_memory": held_memory.run,
            "parts": parts.run,
            "scale": scale.run,
            "step": step.run,
        },
        description="Timings, contestants interleaved in one process.",
    )
