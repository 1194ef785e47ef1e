"""Raw releases become a folder of training rows, with hard negatives and a report."""
