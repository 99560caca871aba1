"""A batch holds what the model itself makes of its rows."""

import pytest
import torch
from datasets import Dataset

from colbert_zero.data.order import Order
from colbert_zero.data.prepared import ArrowPart
from colbert_zero.models.alignment import Alignment
from colbert_zero.models.encoders import assemble, tokeniser
from colbert_zero.training.batches import Batches


@pytest.mark.parametrize("expansion", [None, {"strategy": "fixed", "attend": True, "length": 20}])
def test_a_batch_has_the_token_ids_that_the_model_makes_of_its_rows(backbone, expansion):
    alignment = Alignment("search_query: ", "search_document: ", "[Q]", "[D]", 20, 24)
    model = assemble(str(backbone), "multi-vector", alignment, 8, seed=0, phase="test")
    model[0].query_expansion = expansion
    rows = [{"query": f"lift of wing {n}", "document": "drag " * n, "negatives": [f"heat {n}", "x"]} for n in range(9)]
    parts = {"s/p": ArrowPart("s/p", Dataset.from_list(rows), None)}
    batches = Batches(parts, Order({"s/p": 9}, 4, seed=0), tokeniser(model), steps=2, negatives=1)
    batch, drawn = batches[1], [rows[n] for n in batches.order.batch(1)[1]]
    documents = [row["document"] for row in drawn] + [row["negatives"][0] for row in drawn]
    for texts, found in (([row["query"] for row in drawn], batch.queries), (documents, batch.documents)):
        expected = model.preprocess(texts, prompt=model.prompts[found.task], task=found.task)
        for key in ("input_ids", "attention_mask"):
            assert found.inputs[key].dtype == torch.int64
            assert torch.equal(found.inputs[key], expected[key])
    assert batch.teacher_scores is None
