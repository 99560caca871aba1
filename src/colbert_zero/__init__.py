"""Train multi-vector (ColBERT) retrievers from zero, and learn whether pre-training was worth its cost."""
