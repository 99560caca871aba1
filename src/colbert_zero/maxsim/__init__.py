"""MaxSim in training: exact scores in bounded memory, with sparse gradients."""
