"""What a run will need, and what a machine has: ``project/doctor.py``."""
