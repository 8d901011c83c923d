"""What the lessons share. Importing it costs nothing: torch and the model libraries load when first needed."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def start(seed=0):
    """Begin a lesson: choose the profile, keep it offline if it is a local one, seed, and say so in one line.

    Returns the `profiles.Profile` named by COURSE_PROFILE (default `cpu`).
    """
    from utils import profiles

    profile = profiles.get()
    if not profiles.wait_in_passing():
        print(
            "torch was loaded before utils.start(): beside other busy programs training may crawl. Restart the kernel to mend it."
        )
    profiles.apply(profile, seed)
    print(f"Profile {profile.name}: {profile.summary}.")
    return profile
