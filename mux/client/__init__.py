"""The Python client: `MuxClient` for asyncio, `SyncMuxClient` for everything else."""

from mux.client.aio import MuxClient, Run
from mux.client.sync import SyncMuxClient, SyncRun

__all__ = ["MuxClient", "Run", "SyncMuxClient", "SyncRun"]
