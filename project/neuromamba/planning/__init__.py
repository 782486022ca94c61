"""What a run will need (memory, hours, FLOPs), and what a machine has."""
