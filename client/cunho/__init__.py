"""Client of the Cunho image and instance service; its messages and enums are in cunho.v1."""

from cunho.client import Client
from cunho.operation import Operation
from cunho.refused import Refused

__all__ = ["Client", "Operation", "Refused"]
