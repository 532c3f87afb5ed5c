"""`report.html`: tables, plots and images of an evaluation, in one file that a browser opens.

For applications: `report.make`.
"""
