"""What measures networks and shows what they do.

For applications: `inspection.load` and all that `inspection` names, `job.evaluate_workdir`,
`evaluation.summarize`, `table.print_table`.
"""
