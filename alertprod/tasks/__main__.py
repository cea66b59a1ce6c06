"""``python -m alertprod.tasks``: the command line of `ImageDifferenceTask`."""

from alertprod.tasks.image_difference import ImageDifferenceTask

if __name__ == "__main__":  # processes that are spawned import this module too
    ImageDifferenceTask.parseAndRun()
