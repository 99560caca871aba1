"""An index behind HTTP."""
