"""FMamba, the voxel family: backbone, heads, losses, modules, flags, runs."""
