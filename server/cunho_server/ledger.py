"""The compute driver without a hypervisor: the record is the truth, and your own provisioner acts on it."""

import asyncio


class Ledger:
    """Completes every action by itself.

    Args:
        seconds: how long each action takes.
    """

    def __init__(self, seconds: float = 0) -> None:
        self._seconds = seconds

    async def act(self, action: str, region_id: str, target_id: str) -> None:
        """Does one step of an operation to an image or instance; see `work.Driver`."""
        if self._seconds:
            await asyncio.sleep(self._seconds)
