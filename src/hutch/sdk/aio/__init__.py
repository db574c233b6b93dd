"""The asyncio client, from which the blocking one (hutch.sdk.sync) is generated."""
