"""What takes longer than a lesson may: each script prints a table and keeps its runs in results/."""

from utils import profiles

profiles.wait_in_passing()  # before a script loads torch
