"""A hub and two sites for a whole module of tests: starting them costs more than most tests do."""

import asyncio
import contextlib

import pytest
from tests.hub.hub_harness import running_hub
from tests.site.site_harness import running_sites


class World:
    """A real hub, and the real sites daegu and gumi. Everything of them runs only inside `run`."""

    def __init__(self, folder):
        self._runner = asyncio.Runner()
        self._stack = contextlib.AsyncExitStack()
        try:
            self.hub, self.daegu, self.gumi = self.run(self._start(folder))
        except BaseException:
            self.close()
            raise

    async def _start(self, folder):
        hub = await self._stack.enter_async_context(running_hub(folder))
        daegu, gumi = await self._stack.enter_async_context(running_sites(hub, "daegu", "gumi"))
        return hub, daegu, gumi

    def run(self, coroutine):
        return self._runner.run(coroutine)

    def close(self):
        self.run(self._stack.aclose())
        self._runner.close()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    made = World(tmp_path_factory.mktemp("world"))
    yield made
    made.close()
