"""Labelling replayed on labelled data, to see what a strategy saves before anybody labels.

listing.py      which images there are and what they show, by the names of files or a CSV
datasets.py     images and their labels, from a folder, a CSV, a zip or a Label Studio project
features.py     pixels, and what a frozen network says of them, computed once
measures.py     how right a network is, where an image has one class and where it has several
replay.py       one run: a seed and a strategy, round by round, with the code that serves production
runs.py         many runs, in processes; each kept whole as it ends
statistics.py   paired differences, intervals, labels saved
report.py       table, curves, results
"""
