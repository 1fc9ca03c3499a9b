"""Client of the Cunho image and instance service; its messages and enums are in cunho.v1, asyncio's in cunho.aio."""

from cunho.client import Client
from cunho.connection import CHANNEL_OPTIONS, Tls, TokenFile
from cunho.operation import Operation
from cunho.refused import Refused

__all__ = ["CHANNEL_OPTIONS", "Client", "Operation", "Refused", "Tls", "TokenFile"]
