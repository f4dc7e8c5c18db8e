"""Labelling replayed on labelled data, to see what a strategy saves before anybody labels.

datasets.py     images and their labels, from a folder, a CSV, a zip or a Label Studio project
features.py     pixels, and what a frozen network says of them, computed once
replay.py       one run: a seed and a strategy, round by round, with the code that serves production
runs.py         many runs, in processes; each kept whole as it ends
statistics.py   paired differences, intervals, labels saved
report.py       table, curves, results
"""
