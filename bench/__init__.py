"""What calls cost, measured on the real server: `python -m bench`, see docs/performance.md. No test asserts a time.

`calls` names what is measured, `yardstick` the bare statements beside it. `data` fills the database, over which
`installation` runs a real server. `child` starts `load`, `echo` and `statements`, the processes that are measured or
make load. `machine` reads what they cost, `measure` puts it together, `waiting` does so for those who wait for
operations, `report` prints it.
"""
