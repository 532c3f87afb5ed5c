"""What measures networks and shows what they do.

For applications: `inspection.load` and all that `inspection` names, `files.evaluate_workdir`,
`evaluation.summarize`, `table.print_table`.
"""
