"""What `import jaxalign.losses, jaxalign.adaptive` costs beyond `import jax`, in fresh interpreters.

`python benchmarks/import_time.py [--repeats N]` prints the median and the spread of both, and the difference.
"""

import argparse
import importlib.metadata
import platform
import statistics
import subprocess
import sys

JAX, BOTH = "import jax", "import jax, jaxalign.losses, jaxalign.adaptive"


def seconds_of(statement: str) -> float:
    """Wall-clock time of a statement in a new interpreter, measured inside: its start does not count."""
    program = f"import time; start = time.perf_counter(); {statement}; print(time.perf_counter() - start)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return float(done.stdout)


def measure(repeats: int) -> dict[str, list[float]]:
    """Times by statement; the two alternate, so that a busy machine slows both alike."""
    seconds_of(BOTH)  # compiles to bytecode and fills the file cache
    times: dict[str, list[float]] = {JAX: [], BOTH: []}
    for _ in range(repeats):
        for statement, found in times.items():
            found.append(seconds_of(statement))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9, help="interpreters for each statement")
    repeats = parser.parse_args().repeats
    if repeats < 1:
        parser.error(f"--repeats {repeats} must be at least 1")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "jaxalign"))
    print(f"{versions}, Python {platform.python_version()}, {repeats} interpreters each")
    times = measure(repeats)
    for statement, found in times.items():
        print(f"{statement:46}  {statistics.median(found):.3f} s  ({min(found):.3f} to {max(found):.3f})")
    differences = [both - alone for alone, both in zip(times[JAX], times[BOTH], strict=True)]
    print(
        f"{'beyond jax':46}  {statistics.median(differences):.3f} s"
        f"  ({min(differences):.3f} to {max(differences):.3f})"
    )


if __name__ == "__main__":
    main()
