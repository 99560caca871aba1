"""One phase of a recipe from Python, without a study: its data, its training, its checkpoint.

python examples/train_phase.py [FOLDER]
"""

import sys
from pathlib import Path

from datasets import Dataset
from sentence_transformers import MultiVectorEncoder

from colbert_zero import train_phase
from colbert_zero.data.prepared import ArrowPart
from colbert_zero.models.alignment import Alignment
from colbert_zero.models.scratch import train_tokenizer, write_scratch
from colbert_zero.recipe.schema import Phase
from colbert_zero.training.phase import order_of_parts
from colbert_zero.training.training import Training

PAIRS = [{"query": f"what is {n} times 7", "document": f"{n} times 7 is {n * 7}", "negatives": []} for n in range(400)]

if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "out/train_phase")
    folder.mkdir(parents=True, exist_ok=True)
    # Any encoder's folder or Hub id is a start; this one is made here, so that nothing is downloaded.
    start = folder / "start"
    size = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    texts = [text for row in PAIRS for text in (row["query"], row["document"])]
    write_scratch(start, {"model_type": "bert", **size}, train_tokenizer(texts, 500, ["[Q]", "[D]"], 64), 1)

    parts = {"sums/all": ArrowPart("sums/all", Dataset.from_list(PAIRS), None)}
    spec = Phase(
        representation="multi-vector", objective="contrastive", sources=["sums"], global_batch_size=32,
        learning_rate=2e-3, temperature=0.3,
    )  # fmt: skip
    training = Training(
        name="sums", id="0", chain=("sums",), parent=None, start=str(start), spec=spec, seed=1, dim=32, steps=20,
        order=order_of_parts(spec, parts, 1, "sums"),
        alignment=Alignment("", "", "[Q]", "[D]", query_tokens=32, document_tokens=32),
    )  # fmt: skip
    record = train_phase(training, parts, folder / "sums-0")
    print(f"{record['steps']} steps, {record['tokens']} tokens, loss {record['final_loss']:.3f}")

    model = MultiVectorEncoder(str(folder / "sums-0" / "model"), device="cpu")
    print(model.similarity(model.encode_query(["what is 3 times 7"]), model.encode_document(["3 times 7 is 21"])))
