"""NeuroSSM, the region family: model, protocol, attribution, Neurosynth."""
