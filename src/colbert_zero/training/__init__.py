"""One phase: its batches, its loss, its loop, its checkpoints."""
