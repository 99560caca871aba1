"""An index of files: segments that never change, and a manifest that is swapped last."""
