"""Our losses in sentence-transformers' own trainer: contrastive with masked duplicates, then distillation.

python examples/losses_in_sentence_transformers.py MODEL [FOLDER]

MODEL is anything that `MultiVectorEncoder` loads: a checkpoint of a study, a folder, a Hub id.
"""

import sys

from datasets import Dataset
from sentence_transformers import MultiVectorEncoder, MultiVectorEncoderTrainer, MultiVectorEncoderTrainingArguments

from colbert_zero import Contrastive, Distillation, TrainerLoss

PAIRS = [{"query": f"what is {n} times 7", "document": f"{n} times 7 is {n * 7}"} for n in range(64)]
SCORED = [
    row | {"close": f"{n} times 8 is {n * 8}", "far": f"{n} plus 1 is {n + 1}", "scores": [0.9, 0.4, 0.1]}
    for n, row in enumerate(PAIRS)
]

if __name__ == "__main__":
    model = MultiVectorEncoder(sys.argv[1], device="cpu")
    out = sys.argv[2] if len(sys.argv) > 2 else "out/losses"
    for name, rows, objective in (
        ("contrastive", PAIRS, Contrastive(temperature=0.3)),
        ("distillation", SCORED, Distillation(temperature=0.5)),
    ):
        trainer = MultiVectorEncoderTrainer(
            model=model,
            args=MultiVectorEncoderTrainingArguments(
                output_dir=f"{out}/{name}", max_steps=4, per_device_train_batch_size=16, learning_rate=1e-4,
                use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True,
            ),
            train_dataset=Dataset.from_list(rows),
            loss=TrainerLoss(model, objective),
        )  # fmt: skip
        print(name, f"{trainer.train().training_loss:.3f}")
    model.save_pretrained(f"{out}/model")
