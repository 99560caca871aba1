"""Run benchmarks one after the other, and say first how long they take: python benchmarks/run.py [NAME …] [--quick]

Without names all that need no data of yours. Minutes are those of two cores of an AMD EPYC, peers installed; another
machine takes others. Leave the machine alone meanwhile. A peer that is missing is told and left out;
`encoding` wants the extra cpu, `compiled_maxsim` g++ and AVX2, `gpu` a GPU; each ends with a message without.
`supervision`, `precision_study`, `precision_rankings`, `index_quality`, `qdrant_engine`, `serve`, `shrinking`,
`healing`, `merging`, `rescoring`, `ensembles`, `adapting` and `choosing` want data or a model: see their first lines.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

MINUTES = {  # whole, quick
    "maxsim": (12, 2),
    "compiled_maxsim": (5, 1),
    "distillation": (3, 2),
    "evaluation": (10, 2),
    "encoding": (3, 1),
    "arithmetic": (15, 4),
    "index": (4, 1),
    "indexing": (14, 1),
    "training_step": (60, 6),
    "data": (20, 2),
    "resume": (15, 2),
    "leaks": (2, 1),
    "mining": (17, 3),
    "gpu": (10, 1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(MINUTES))
    parser.add_argument("--quick", action="store_true", help="smaller cases of each")
    asked = parser.parse_args()
    names = asked.names or list(MINUTES)
    if unknown := set(names) - set(MINUTES):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(MINUTES)}")
    print(f"about {sum(MINUTES[name][asked.quick] for name in names)} minutes:")
    for name in names:
        print(f"  {name:16} {MINUTES[name][asked.quick]:3} min", flush=True)
    failed = []
    for name in names:
        print(f"\n{name}", flush=True)
        started = time.monotonic()
        command = [sys.executable, f"{name}.py", *(["--quick"] if asked.quick else [])]
        if subprocess.run(command, cwd=Path(__file__).parent).returncode:
            failed.append(name)
        print(f"{name}: {(time.monotonic() - started) / 60:.1f} min", flush=True)
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
