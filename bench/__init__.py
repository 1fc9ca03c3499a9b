"""What calls cost, measured on the real server: `python -m bench`, see docs/performance.md. No test asserts a time.

`calls` names what is measured, `data` fills the database, `load`, `echo` and `statements` are the processes that are
measured or make load, `machine` reads what they cost, `measure` puts it together, `report` prints it.
"""
