"""A study from Python: a recipe, its pipelines trained and evaluated, and what came out.

python examples/study.py [FOLDER [KEY=VALUE ...]]
"""

import sys
from pathlib import Path

from colbert_zero import Study, load_recipe
from colbert_zero.report import write_report
from colbert_zero.study.comparison import run_study

if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "out/study")
    recipe = load_recipe("smoke", sys.argv[2:])  # a file of your own, with changes as for the command's --set
    results = run_study(Study(recipe, folder), only=["kd-only", "full"], command="examples/study.py")
    for name, system in results["systems"].items():
        scores = {collection: round(score["nDCG@10"], 4) for collection, score in system["scores"].items()}
        print(name, scores, f"{system['flops'] or 0:.2e} FLOP")
    print(write_report(folder))
