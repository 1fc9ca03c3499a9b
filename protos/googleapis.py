"""Copies google's own protos out of the installed googleapis-common-protos: `python googleapis.py FOLDER`.

The wheel ships google/longrunning/operations_proto.proto but registers it as operations.proto; the copy has the
registered name, so that what protoc and buf read is what Python imports.
"""

import shutil
import sys
from pathlib import Path

import google.rpc

source, target = Path(google.rpc.__path__[0]).parent, Path(sys.argv[1], "google")
for folder in ("api", "longrunning", "rpc", "type"):
    for proto in source.joinpath(folder).glob("*.proto"):
        copy = target / folder / proto.name.replace("operations_proto", "operations")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(proto, copy)
